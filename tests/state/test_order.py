# SPDX-License-Identifier: Apache-2.0
"""The order matrix: a planted partial order is found, no more and no less, and the drawing shows it."""

from __future__ import annotations

import json
import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.kvm.system import Kvm
from vmm.report import order as report
from vmm.report import order_dot
from vmm.state import trials
from vmm.state.capture import capture
from vmm.state.order import Edge, Matrix, Pair, discover, judge, linear_extension
from vmm.state.vcpu import steps

NAMES = tuple("ABCDEFG")
pairs = st.sets(
    st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(lambda p: p[0] < p[1]).map(
        lambda p: (NAMES[p[0]], NAMES[p[1]])
    ),
    max_size=8,
)  # fmt: skip


def holds(order: Sequence[str], planted: set[tuple[str, str]]) -> str | None:
    broken = [(a, b) for a, b in sorted(planted) if order.index(b) < order.index(a)]
    return f"{broken[0]} broken" if broken else None


def closure(found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
        found = found | more
    return found


@given(pairs)
def test_a_planted_partial_order_is_found(planted: set[tuple[str, str]]) -> None:
    matrix = discover(NAMES, lambda order: holds(order, planted), samples=5, seed=1)
    assert closure({(edge.first, edge.then) for edge in matrix.edges}) == closure(planted)
    assert not matrix.surprises and not matrix.harmless


@given(pairs, st.integers(0, 99))
def test_a_linear_extension_breaks_no_constraint(planted: set[tuple[str, str]], seed: int) -> None:
    order = linear_extension(NAMES, planted, source=random.Random(seed))
    assert order is not None and sorted(order) == list(NAMES) and holds(order, planted) is None


def test_an_impossible_block_has_no_order() -> None:
    assert linear_extension("ABC", [("A", "B"), ("B", "C")], ("C", "A")) is None
    assert linear_extension("ABC", [("A", "B")], ("B", "A")) is None
    assert linear_extension("ABC", [("A", "B")], ("C", "A")) == ["C", "A", "B"]


def test_an_order_that_fails_by_chance_is_a_surprise() -> None:
    calls = 0

    def attempt(order: Sequence[str]) -> str | None:
        nonlocal calls
        calls += 1
        return "it failed" if calls == 15 else None

    assert discover("ABCD", attempt, samples=20, seed=1).surprises


def test_a_usual_order_that_does_not_work_is_refused() -> None:
    with pytest.raises(ValueError, match="does not work: never"):
        discover("AB", lambda order: "never", samples=1, seed=1)


def test_the_graph_has_every_box_and_every_arrow_that_does_not_follow() -> None:
    edges = [Edge("A", "B", 'a "<refused>"'), Edge("B", "C", "lost"), Edge("A", "C", "lost")]
    lines = order_dot.dot(Matrix(("A", "B", "C", "D"), edges), (), [("kernel", "6.12")]).splitlines()
    assert [line for line in lines if line.strip() in ('"A";', '"B";', '"C";', '"D";')] == [
        f'  "{name}";' for name in "ABCD"
    ]
    arrows = [line.strip() for line in lines if "->" in line]  # A before C follows
    assert arrows == ['"A" -> "B" [label="a \\"<refused>\\""];', '"B" -> "C" [label="lost"];']
    assert "kernel: 6.12" in lines[1]


def test_the_graph_has_dashed_what_we_keep_and_this_kvm_does_not_enforce() -> None:
    names = tuple(step.name for step in steps())
    graph = order_dot.dot(Matrix(names, []), steps(), [])
    kept = {(follows.step, step.name) for step in steps() for follows in step.after}
    found = set(re.findall(r'^  "(\w+)" -> "(\w+)" \[label="[^"]+", style=dashed', graph, re.MULTILINE))
    assert found == kept


def test_graphviz_draws_the_graph(tmp_path: Path) -> None:
    if not order_dot.drawable():
        pytest.skip("graphviz's dot is not installed")
    names = tuple(step.name for step in steps())
    edges = [Edge(names[0], names[1], 'lost: \\ "\n{a|b}')]
    order_dot.draw(order_dot.dot(Matrix(names, edges), steps(), [("kernel", "<6.12>")]), str(tmp_path / "order.svg"))
    root = ET.parse(tmp_path / "order.svg").getroot()
    assert {element.text for element in root.iter() if element.tag.endswith("text")} > set(names)
    with pytest.raises(ValueError, match="could not draw it"):
        order_dot.draw("digraph {", str(tmp_path / "none.svg"))


@pytest.mark.parametrize(
    ("found", "kept", "always", "missing", "unknown"),
    [
        ([("A", "B")], [("A", "B"), ("B", "C")], [("A", "B")], [], []),
        ([], [("A", "B")], [("A", "B")], [("A", "B")], []),
        ([("A", "C")], [("A", "B"), ("B", "C")], [], [], []),  # follows from what is kept
        ([("A", "B"), ("B", "C")], [("A", "B"), ("B", "C"), ("A", "C")], [("A", "C")], [], []),  # and is enforced so
        ([("B", "A")], [("A", "B")], [], [], [("B", "A")]),
    ],
)
def test_constraints_that_are_expected_and_not_found_and_the_other_way_round_are_named(
    found: list[Pair], kept: list[Pair], always: list[Pair], missing: list[Pair], unknown: list[Pair]
) -> None:
    matrix = Matrix(("A", "B", "C"), [Edge(first, then, "lost") for first, then in found])
    judge(matrix, kept, always)
    assert matrix.missing == missing
    assert [(edge.first, edge.then) for edge in matrix.unknown] == unknown
    assert matrix.as_expected == (not missing and not unknown)
    shown = "\n".join(report.lines(matrix, ()))
    assert shown.count("unexpected: ") == len(missing) + len(unknown)
    assert report.to_json(matrix, ())["as_expected"] is (not missing and not unknown)


@pytest.mark.kvm
def test_this_kvm_refuses_the_orders_that_the_matrix_says_it_refuses(kvm: Kvm) -> None:
    matrix, state = trials.measure(kvm, samples=10, seed=3)
    assert matrix.as_expected, "\n".join(report.lines(matrix, steps()))
    assert matrix.surprises == [] and matrix.kept == matrix.broken == 10 and matrix.harmless < 10
    first = {"x86": ("CPUID", "XCRS"), "arm64": ("INIT", "CORE")}[state.arch]
    assert first in {(edge.first, edge.then) for edge in matrix.edges}
    shown = report.to_json(matrix, steps())
    assert json.loads(json.dumps(shown))["order"] == [name for name in state.vcpus[0].parts]


@pytest.mark.kvm
def test_an_attempt_with_the_wrong_order_says_why(kvm: Kvm) -> None:
    with trials.unsettled(kvm, 3) as guest:
        state = capture(guest)
    attempt = trials.attempt(kvm, state)
    names = list(state.vcpus[0].parts)
    assert attempt(names) is None
    assert attempt(names[::-1]) is not None
