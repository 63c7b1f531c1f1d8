# SPDX-License-Identifier: Apache-2.0
"""The benchmark: its arithmetic, its sentences, and that it measures; how fast, a test cannot promise."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmm import bench
from vmm.bench import compare as compare_module
from vmm.bench import memory_subject, programs
from vmm.bench.compare import MEMORY_OPERATIONS, OPERATIONS
from vmm.bench.result import BenchResult, BenchUnavailable, Limit, compare, quartiles
from vmm.bench.subject import runs
from vmm.cli import bench as command_module
from vmm.kvm.memory import PAGE_SIZE
from vmm.kvm.system import Kvm

KEYS = {
    "name", "unit", "rounds", "ours", "baseline", "ours_quartiles", "baseline_quartiles", "ratio", "difference",
    "limit", "limited", "within",
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], (7.0, 7.0, 7.0)),
        ([1.0, 2.0], (1.25, 1.5, 1.75)),
        ([3.0, 1.0, 2.0], (1.5, 2.0, 2.5)),
        ([5.0, 1.0, 4.0, 2.0, 3.0], (2.0, 3.0, 4.0)),
    ],
)
def test_quartiles_lie_between_the_neighbouring_values(
    values: list[float], expected: tuple[float, float, float]
) -> None:
    assert quartiles(values) == expected


def test_one_outlier_does_not_move_the_median() -> None:
    assert quartiles([1.0] * 10 + [1000.0]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("limit", "within"),
    [
        (Limit("ratio", 1.25), True),
        (Limit("ratio", 1.24), False),
        (Limit("difference", 0.5), True),
        (Limit("difference", 0.49), False),
    ],
)
def test_a_result_is_within_up_to_its_limit(limit: Limit, within: bool) -> None:
    result = compare("x", [2.0, 2.5, 9.0], [1.0, 2.0, 3.0], limit)
    assert (result.ours, result.baseline, result.ratio, result.difference) == (2.5, 2.0, 1.25, 0.5)
    assert (result.limit, result.limited, result.within) == (limit.value, limit.limited, within)
    assert result.rounds == 3


def test_faster_than_c_is_within() -> None:
    assert compare("x", [1.0, 1.0], [2.0, 2.0], Limit("difference", 0.35)).within


def test_a_cost_without_a_limit_is_never_too_slow() -> None:
    shown = compare("x", [9.0, 9.0], [1.0, 1.0], None)
    assert (shown.within, shown.limit, shown.limited, shown.ratio) == (True, None, None, 9.0)
    row = command_module.table([shown]).splitlines()[1]
    assert "9.000x" in row and "ok" not in row and "SLOW" not in row


def test_both_programs_copy_the_same_amounts_of_memory() -> None:
    source = (Path(bench.__file__).parent / "baseline.c").read_text()
    for name, size in (("PIECE", memory_subject.PIECE), ("REGION", memory_subject.REGION)):
        value, shift = re.search(rf"#define {name} \(\(size_t\)(\d+) << (\d+)\)", source).groups()  # type: ignore[union-attr]
        assert int(value) << int(shift) == size


def result(name: str = "x", *, within: bool = True) -> BenchResult:
    ours = 1.0 if within else 9.0
    return compare(name, [ours, ours], [1.0, 1.0], Limit("ratio", 1.25))


def test_json_keys_are_the_documented_ones() -> None:
    assert set(result().to_json()) == KEYS == {field.name for field in fields(BenchResult)}
    assert all(f"``{key}``" in (bench.__doc__ or "") for key in KEYS)


@pytest.mark.parametrize("within", [True, False])
def test_the_status_of_the_command_says_whether_all_results_are_within(
    monkeypatch: pytest.MonkeyPatch, within: bool
) -> None:
    results = [result("first"), result("second", within=within)]
    monkeypatch.setattr(command_module, "run", lambda rounds, progress: results)
    status = 0 if within else 1

    text = CliRunner().invoke(command_module.command, standalone_mode=False)
    assert text.return_value == status
    assert ("TOO SLOW" in text.output) is not within

    printed = CliRunner().invoke(command_module.command, ["--json"], standalone_mode=False)
    assert printed.return_value == status
    answer = json.loads(printed.output)
    assert answer["within"] is within
    assert [set(entry) for entry in answer["results"]] == [KEYS, KEYS]


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="2 or more"):
        bench.run(rounds=1)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [("", "neither cc nor gcc is there"), ("no-such-cc -O3", r"\$CC names no-such-cc, which is not there")],
)
def test_a_missing_compiler_is_reported_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: str, sentence: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", wanted)
    with pytest.raises(BenchUnavailable, match=f"{sentence}: install a C compiler or set"):
        programs.compiler()


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "fake-cc"
    fake.write_text("#!/bin/sh\necho 'linux/kvm.h: fatal error: no such file' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CC", str(fake))
    with pytest.raises(BenchUnavailable, match=r"does not compile baseline\.c \(linux/kvm\.h: fatal error"):
        programs.build(tmp_path)


def test_what_is_missing_is_one_sentence_and_exit_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(rounds: int, progress: object) -> list[BenchResult]:
        raise BenchUnavailable("there is no compiler: install one")

    monkeypatch.setattr(command_module, "run", unavailable)
    outcome = CliRunner().invoke(command_module.command, standalone_mode=False)
    assert outcome.return_value == 2
    assert outcome.stderr == "vmm: there is no compiler: install one\n"


# The second is a package of ours, and no architecture.
@pytest.mark.parametrize("architecture", ["riscv64", "conformance"])
def test_an_architecture_without_a_workload_is_refused(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    monkeypatch.setattr(compare_module, "ARCHITECTURE", architecture)
    with pytest.raises(BenchUnavailable, match=f"no guest to measure on {architecture}"):
        bench.run(rounds=2)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("printf 'error: out of order\\n'", "out of order"),
        ("exit 3", "ended without a word"),
        ("echo 12 monkeys", "12 monkeys"),
    ],
)
def test_a_program_that_fails_is_quoted(script: str, message: str) -> None:
    sentence = f"the test of the benchmark failed: .*{message}"
    with (
        programs.Program("the test", ["sh", "-c", script], None) as program,
        pytest.raises(BenchUnavailable, match=sentence),
    ):
        program.measure("exit", 1)


def test_a_program_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_ANSWER_TIMEOUT", 0.05)
    with (
        programs.Program("the test", ["sleep", "60"], None) as program,
        pytest.raises(BenchUnavailable, match="silent"),
    ):
        program.measure("exit", 1)
    assert program._child.returncode


def test_neighbouring_pages_with_data_make_one_run() -> None:
    memory = bytearray(6 * PAGE_SIZE)
    memory[PAGE_SIZE] = memory[3 * PAGE_SIZE - 1] = memory[5 * PAGE_SIZE] = 1
    found = runs(memoryview(memory))
    assert [(at // PAGE_SIZE, len(data) // PAGE_SIZE) for at, data in found] == [(1, 2), (5, 1)]
    assert all(bytes(memory[at : at + len(data)]) == data for at, data in found)


@pytest.mark.kvm
def test_the_benchmark_measures_every_operation(kvm: Kvm) -> None:
    progress: list[tuple[int, int]] = []
    results = bench.run(rounds=2, progress=lambda done, wanted: progress.append((done, wanted)))
    assert [entry.name for entry in results] == [operation.name for operation in (*OPERATIONS, *MEMORY_OPERATIONS)]
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for entry in results:
        assert entry.rounds == 2
        assert min(entry.ours, entry.baseline, entry.ratio, *entry.ours_quartiles, *entry.baseline_quartiles) > 0
