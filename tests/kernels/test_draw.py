# SPDX-License-Identifier: Apache-2.0
"""Faults at random: what is drawn from a source, that it is what its operator says, and that it compiles."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labs.cache import default_root

from tests.kernels.build import patched
from tests.kernels.draw import Drawn, Target, draw, functions, load_targets, write
from tests.kernels.draw_places import OPERATORS, places
from tests.kernels.patch import blank, find_function, locate
from tests.kernels.table import Fault, load

SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>

#define LOW 0x0f

struct state {
	unsigned int flags;
	int mode;
};

static struct state kept;

static void note(int a)
{
	kept.mode = a;
}

static int __init at_load(void)
{
	kept.mode = 1;
	return 0;
}

/* if (nothing) return 1; */
static int take(unsigned int flags,
		int mode)
{
	unsigned int before = kept.flags;
	int r = 0;

	if (mode < 0 || (mode > 3 && !flags))
		return -1;
	switch (mode) {
	case 0:
		kept.flags = flags & LOW;
		break;
	case 1: {
		kept.flags |= flags | 0x40;
		break;
	}
#ifdef MORE
	case 2:
		missing(flags);
		break;
#endif
	default:
		r = before == flags ? 7 :
			8;
		goto out;
	}
	note(mode);
	if (kept.flags >= 0x20)
		note(mode + 10);
	else
		note(mode + 20);
	if (flags & 1) {
		puts("if (odd) { return 5; }");
	} else if (flags & 2)
		kept.mode++;
out:
	return r;
}

int main(int argc, char **argv)
{
	int r = take(strtoul(argv[1], 0, 0), atoi(argv[2]));

	printf("%d %u %d\n", r, kept.flags, kept.mode);
	return 0;
}
"""
TARGET = Target("a.c", ("*",), ("svm",), ("main",))
PRELUDE = """#include <stdlib.h>
#define __init
extern int vmm_fault;
#define FAULT(n) (vmm_fault == (n))
"""
CHOSEN = """
int vmm_fault;
__attribute__((constructor)) static void on(void) { vmm_fault = atoi(getenv("FAULT")); }
"""
EVERYTHING = 1000


def drawn(seed: int, count: int = EVERYTHING) -> list[Drawn]:
    return draw({"a.c": SOURCE}, [TARGET], seed, count)


def as_table(folder: Path, found: Sequence[Drawn]) -> list[Fault]:
    (folder / "drawn.toml").write_text(write(found, "seed-1", ["*"]))
    return load(folder)


def texts(found: Sequence[Drawn], operator: str) -> set[str]:
    """The parts of the source where an operator is applied, and what is there instead."""
    return {
        f"{SOURCE[slice(*locate(SOURCE, one.edit))]} {one.edit.code}".strip()
        for one in found
        if one.operator == operator
    }


def test_functions_are_those_of_the_globs_that_do_not_run_at_load() -> None:
    assert functions(SOURCE, TARGET) == ["note", "take"]
    assert functions(SOURCE, Target("a.c", ("n*",), ("svm",))) == ["note"]


@given(st.integers(0, 2**32), st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_a_seed_draws_the_same_each_time_and_more_of_it_begins_alike(seed: int, count: int) -> None:
    assert drawn(seed, count) == drawn(seed, count)
    assert drawn(seed, count) == drawn(seed, count + 5)[:count]


def test_other_seeds_draw_other_faults() -> None:
    assert drawn(1, 10) != drawn(2, 10)


def test_everything_is_drawn_once_and_then_no_more() -> None:
    found = drawn(3)
    assert len(found) == sum(len(places(SOURCE, name)) for name in ("note", "take")) < EVERYTHING
    assert {one.operator for one in found} == set(OPERATORS)


def test_each_operator_is_applied_where_it_means_something() -> None:
    found = [one for seed in range(20) for one in drawn(seed)]
    assert texts(found, "boundary") == {
        "mode < 0 mode <= 0",
        "mode > 3 mode >= 3",
        "kept.flags >= 0x20 kept.flags > 0x20",
    }
    assert texts(found, "mask") == {
        *("flags & LOW flags", "flags & LOW LOW", "flags | 0x40 flags", "flags | 0x40 0x40"),
        "kept.flags (kept.flags) & ~1ULL",
    }
    assert {"mode < 0", "!flags", "flags & 2", "(mode > 3 && !flags)", "mode < 0 || (mode > 3 && !flags)"} <= texts(
        found, "negate"
    )
    assert "kept.mode++;" in texts(found, "delete") and "goto out;" in texts(found, "delete")
    assert "r = before == flags ? 7 :\n\t\t\t8;" in texts(found, "delete")
    assert "note(mode); return 0;" in texts(found, "return") and "kept.mode = a; return;" in texts(found, "return")
    assert {"mode > 3 0", "!flags 1"} & texts(found, "constant") == {"!flags 1"}
    assert "r ~0ULL" in texts(found, "constant")


def test_no_declaration_label_or_line_for_the_preprocessor_is_a_statement() -> None:
    statements = texts(drawn(4), "delete") | texts(drawn(4), "return")
    assert not [one for one in statements if one.startswith(("int ", "unsigned", "case", "default", "out", "#", "8"))]


@given(st.integers(0, 2**32), st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_what_is_drawn_has_one_place_inside_of_its_function(seed: int, count: int) -> None:
    for one in drawn(seed, count):
        start, end = locate(SOURCE, one.edit)
        first, last = find_function(SOURCE, one.edit.function)
        assert first <= start < end <= last
        assert blank(SOURCE)[start:end].strip()
        assert one.line == SOURCE[:start].count("\n") + 1


@pytest.mark.parametrize("seed", range(3))
def test_a_table_of_everything_compiles_as_one_and_each_fault_is_on_by_itself(tmp_path: Path, seed: int) -> None:
    found = drawn(seed)
    faults = as_table(tmp_path, found)
    text, unplaced = patched({"a.c": SOURCE}, faults)
    assert not unplaced
    (tmp_path / "a.c").write_text(PRELUDE + text["a.c"] + CHOSEN)
    command: list[str | Path] = ["cc", "-w", "-o", tmp_path / "a", tmp_path / "a.c"]
    subprocess.run(command, check=True)

    def says(fault: int) -> str:
        printed = ""
        for words in (["3", "0"], ["0x12", "1"], ["0", "2"], ["0", "3"], ["0", "4"], ["9", "-1"], ["0x20", "1"]):
            command: list[str | Path] = [tmp_path / "a", *words]
            done = subprocess.run(command, env={"FAULT": str(fault)}, capture_output=True, text=True, check=True)
            printed += done.stdout
        return printed

    honest = says(0)
    seen = {one.operator for one, fault in zip(found, faults, strict=True) if says(fault.number) != honest}
    assert seen == set(OPERATORS)


def test_a_table_is_read_as_it_was_drawn(tmp_path: Path) -> None:
    found = drawn(5, 30)
    faults = as_table(tmp_path, found)
    assert [fault.edits for fault in faults] == [(one.edit,) for one in found]
    assert faults[0].name == f"seed-1-01-{found[0].operator}"
    assert {fault.machines for fault in faults} == {("svm",)}


@pytest.mark.parametrize(("architecture", "machines"), [("x86", {"svm", "amx"}), ("arm64", {"sve"})])
def test_what_is_declared_names_files_functions_and_machines(architecture: str, machines: set[str]) -> None:
    targets = load_targets(architecture)
    assert {machine for target in targets for machine in target.machines} == machines
    assert all(target.functions and target.file.endswith((".c", ".h")) for target in targets)


@pytest.mark.parametrize(("architecture", "kind"), [("x86", "kvm-source"), ("arm64", "kernel-source")])
def test_each_target_has_functions_in_the_newest_kernel(architecture: str, kind: str) -> None:
    found = [path.parent for path in (default_root() / kind).glob("*/manifest.json")]
    folder = next((path for path in found if "linux-source-7.2" in (path / "manifest.json").read_text()), None)
    if folder is None:
        pytest.skip("the kernel's sources are not in the cache; python -m tests.kernels place fetches them")
    for target in load_targets(architecture):
        assert functions((folder / target.file).read_text(), target), target.file
