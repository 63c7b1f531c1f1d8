# SPDX-License-Identifier: Apache-2.0
"""The clause registry and the preconditions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from vmm._kvm import lib
from vmm.arch import ARCHITECTURE
from vmm.conformance import registry
from vmm.conformance.needs import Need, capability, kernel, unmet
from vmm.conformance.registry import Clause, all_clauses, select
from vmm.probe.host import Host

MakeHost = Callable[..., Host]
CLAUSES = all_clauses()
on_x86 = pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"x86 clauses; this is {ARCHITECTURE}")


# The catalogue


@on_x86
def test_there_are_at_least_90_clauses() -> None:
    assert len(CLAUSES) >= 90


def test_no_id_is_used_twice() -> None:
    assert len({clause.id for clause in CLAUSES}) == len(CLAUSES)


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.id)
def test_a_clause_is_well_written(clause: Clause) -> None:
    assert re.fullmatch(r"[a-z0-9]+(\.[a-z0-9]+(-[a-z0-9]+)*)+", clause.id)
    assert clause.arch == ARCHITECTURE
    assert clause.statement.endswith(".") and "\n" not in clause.statement and "Source:" not in clause.statement
    assert len(clause.source) > 10 and "Source:" not in clause.source
    assert clause.timeout > 0
    assert all(isinstance(need, Need) and str(need) for need in clause.needs)


def test_an_area_comes_in_one_piece() -> None:
    # KTAP reports an area as one block, in the order of the clauses.
    areas = [clause.id.split(".")[0] for clause in CLAUSES]
    blocks = [area for number, area in enumerate(areas) if number == 0 or areas[number - 1] != area]
    assert len(blocks) == len(set(blocks))


def test_another_architecture_does_not_have_this_ones_clauses() -> None:
    assert not {clause.id for clause in all_clauses("riscv")}


# Choosing


def fake(identifier: str) -> Clause:
    """A clause that is not registered."""
    return Clause(identifier, lambda context: None, "x86", (), False, False, "S.", "here", 10.0)


SOME = [fake(name) for name in ("perm.a", "xsave.a", "xsave.size.b", "xcrs.c")]


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ([], ["perm.a", "xsave.a", "xsave.size.b", "xcrs.c"]),
        (["xsave.*"], ["xsave.a", "xsave.size.b"]),
        (["xcrs.c", "perm.a"], ["perm.a", "xcrs.c"]),
        (["*.a", "perm.*"], ["perm.a", "xsave.a"]),
        (["x*.[bc]"], ["xsave.size.b", "xcrs.c"]),
        (["xsave.?"], ["xsave.a"]),
    ],
)
def test_a_pattern_chooses_the_clauses_that_match(patterns: list[str], chosen: list[str]) -> None:
    assert [clause.id for clause in select(patterns, SOME)] == chosen


@pytest.mark.parametrize("pattern", ["nothing.*", "PERM.A", "xsave", ""])
def test_a_pattern_that_matches_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(LookupError, match="no clause matches") as caught:
        select(["perm.*", pattern], SOME)
    assert repr(pattern) in str(caught.value.args[0])


def test_an_iterator_of_patterns_chooses_like_a_list() -> None:
    assert [clause.id for clause in select(iter(["xsave.*"]), SOME)] == ["xsave.a", "xsave.size.b"]


# Registering


@pytest.fixture
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[str, str], Clause]]:
    clauses: dict[tuple[str, str], Clause] = {}
    monkeypatch.setattr(registry, "_clauses", clauses)
    yield clauses


def test_a_clause_keeps_all_of_its_record(empty_registry: dict[tuple[str, str], Clause]) -> None:
    need = Need("luck", lambda host: (True, "luck is 1"))

    @registry.clause("perm.some", arch="x86", needs=(need,), info=True, dangerous=True, timeout=3.0)
    def some(context: object) -> None:
        """The first paragraph
        on two lines.

        More about it.

        Source: this file;
        and that one.

        An afterthought.
        """

    assert empty_registry["x86", "perm.some"] == Clause(
        "perm.some", some, "x86", (need,), True, True, "The first paragraph on two lines.",
        "this file; and that one.", 3.0,
    )  # fmt: skip


def test_a_second_clause_of_the_same_id_is_refused(empty_registry: dict[tuple[str, str], Clause]) -> None:
    def function(context: object) -> None:
        """Statement.

        Source: here.
        """

    registry.clause("perm.twice", arch="x86")(function)
    with pytest.raises(ValueError, match=r"perm\.twice is registered twice"):
        registry.clause("perm.twice", arch="x86")(function)
    registry.clause("perm.twice", arch="arm64")(function)
    assert [key for key in empty_registry] == [("x86", "perm.twice"), ("arm64", "perm.twice")]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "A statement without more.",
        "A statement.\n\nSource:",
        pytest.param("Source: that"),
    ],
)
def test_a_clause_without_statement_or_source_is_refused(
    empty_registry: dict[tuple[str, str], Clause], text: str | None
) -> None:
    def function(context: object) -> None: ...

    function.__doc__ = text
    with pytest.raises(ValueError, match=r"perm\.bare: the docstring needs a statement and a 'Source:' line"):
        registry.clause("perm.bare", arch="x86")(function)
    assert not empty_registry


# Preconditions


def test_a_need_gives_the_measured_value(make_host: MakeHost) -> None:
    host = make_host("6.1.128", capabilities={"KVM_CAP_XSAVE2": 0, "KVM_CAP_XCRS": 1})
    needs = (capability("KVM_CAP_XCRS"), capability("KVM_CAP_XSAVE2"), kernel("7.0"))
    assert unmet(needs, host) == "needs KVM_CAP_XSAVE2: KVM_CAP_XSAVE2 is 0"
    assert unmet(needs[2:], host) == "needs Linux 7.0: this kernel is 6.1.128"
    assert unmet(needs[:1], host) is None and unmet((), host) is None


@pytest.mark.parametrize(
    ("running", "met"), [("6.12.0", True), ("6.11.9", False), ("7.0-rc1", True), ("6.12.0-rc3", True)]
)
def test_a_kernel_need_is_judged_by_the_release(make_host: MakeHost, running: str, met: bool) -> None:
    assert kernel("6.12").measure(make_host(running))[0] is met


def test_a_need_is_not_measured_after_one_that_is_not_met(make_host: MakeHost) -> None:
    def never(host: Host) -> tuple[bool, str]:
        raise AssertionError("measured although an earlier need is not met")

    assert unmet((Need("first", lambda host: (False, "it is 3")), Need("second", never)), make_host())


@on_x86
def test_every_capability_that_a_need_names_is_measured() -> None:
    from vmm.probe.x86.facts import CAPABILITIES

    assert all(getattr(lib, name, number) == number for name, number in CAPABILITIES.items())
    for clause in CLAUSES:
        for need in clause.needs:
            if need.name.startswith("KVM_CAP_"):
                assert need.name in CAPABILITIES, clause.id
