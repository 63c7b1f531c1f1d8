# SPDX-License-Identifier: Apache-2.0
"""The table of faults: its form, and whether each fault has its place in the kernel's source."""

import re
from pathlib import Path
from typing import Any

import pytest
from labs.cache import default_root

from tests.kernels.build import patched, read_sources
from tests.kernels.built import those_of
from tests.kernels.table import Fault, choose, load, parse

FAULTS = load()
EDIT = {"file": "a.c", "function": "f", "skip": "x = 1"}
ENTRY: dict[str, Any] = {"name": "a-fault", "does": "nothing", "clauses": ["a.*"], "edit": [EDIT]}


def test_the_table_has_faults_and_they_are_numbered_from_1() -> None:
    assert len(FAULTS) >= 30
    assert [fault.number for fault in FAULTS] == list(range(1, len(FAULTS) + 1))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_named_said_and_has_clauses(fault: Fault) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", fault.name)
    assert fault.does and not fault.does.endswith(".")
    assert all(re.fullmatch(r"[a-z0-9]+\.[a-z0-9.*-]+", glob) for glob in fault.clauses)


def test_each_anchor_is_short() -> None:
    anchors = [edit.anchor for fault in FAULTS for edit in fault.edits]
    assert max(map(len, anchors)) < 90


#: architecture -> the kind of the cache's entries that have the sources of its kernels
KINDS = {"x86": "kvm-source", "arm64": "kernel-source"}


def sources_of(architecture: str, series: str) -> Path | None:
    """The folder of the cache with the sources of a series."""
    found = [path.parent for path in (default_root() / KINDS[architecture]).glob("*/manifest.json")]
    return next((path for path in found if f"linux-source-{series}" in (path / "manifest.json").read_text()), None)


@pytest.mark.parametrize("architecture", KINDS)
def test_each_fault_has_one_place_in_the_newest_kernel(architecture: str) -> None:
    folder = sources_of(architecture, "7.2")
    if folder is None:
        pytest.skip("the kernel's sources are not in the cache; python -m tests.kernels place fetches them")
    faults = those_of(architecture, FAULTS)
    _, unplaced = patched(read_sources(folder, faults), faults)
    assert faults and not unplaced


@pytest.mark.parametrize(
    "change",
    [
        {"edit": []},
        {"clauses": []},
        {"machines": ["vax"]},
        {"since": "7.2"},
        {"edit": [{**EDIT, "code": "y = 1;"}]},
        {"edit": [{"file": "a.c", "function": "f", "value": "x"}]},
        {"edit": [{**EDIT, "negate": "x"}]},
        {"edit": [{"file": "a.c", "skip": "x"}]},
        {"edit": [{"file": "a.c", "function": "f"}]},
    ],
    ids=str,
)
def test_an_entry_that_is_not_well_formed_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"there: "):
        parse({**ENTRY, **change}, 1, "there")


def test_an_entry_is_a_fault_with_its_edits() -> None:
    fault = parse({**ENTRY, "edit": [EDIT, {"file": "a.c", "function": "f", "entry": "x = 2;"}]}, 7, "there")
    assert (fault.number, fault.machines, fault.at_load) == (7, ("amx",), False)
    assert [(edit.how, edit.anchor, edit.code) for edit in fault.edits] == [
        ("skip", "x = 1", ""),
        ("entry", "", "x = 2;"),
    ]


def test_two_faults_of_a_name_are_refused(tmp_path: Path) -> None:
    edit = '[{ file = "e", function = "f", skip = "g" }]'
    entry = f'[[fault]]\nname = "a-b"\ndoes = "c"\nclauses = ["d.*"]\nedit = {edit}\n'
    (tmp_path / "one.toml").write_text(entry)
    assert [fault.name for fault in load(tmp_path)] == ["a-b"]
    (tmp_path / "arm64").mkdir()
    (tmp_path / "arm64" / "two.toml").write_text(entry)
    with pytest.raises(ValueError, match="two faults a-b"):
        load(tmp_path)


def test_faults_are_chosen_by_globs() -> None:
    assert choose(FAULTS, []) == FAULTS
    assert {fault.name.split("-")[0] for fault in choose(FAULTS, ["xfd-*", "cet-*"])} == {"xfd", "cet"}


def test_the_machines_of_a_file_are_those_of_its_faults_unless_one_says_others(tmp_path: Path) -> None:
    edit = '[{ file = "e", function = "f", skip = "g" }]'
    rest = f'does = "c"\nclauses = ["d.*"]\nedit = {edit}\n'
    head = 'machines = ["sve"]\n[[fault]]\n'
    text = f'{head}name = "a-b"\n{rest}[[fault]]\nname = "a-c"\nmachines = ["svm", "sve"]\n{rest}'
    (tmp_path / "one.toml").write_text(text)
    first, second = load(tmp_path)
    assert (first.machines, second.machines) == (("sve",), ("svm", "sve"))
    assert (first.architectures, second.architectures) == ({"arm64"}, {"x86", "arm64"})
    assert those_of("x86", [first, second]) == [second]
    (tmp_path / "one.toml").write_text(f'kernels = ["7.2"]\n{text}')
    with pytest.raises(ValueError, match=r"one\.toml: it is to consist of"):
        load(tmp_path)
