# SPDX-License-Identifier: Apache-2.0
"""``vmm bench --migration``: what it compares, and what it says where it cannot."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from vmm.bench import migration
from vmm.bench.migration import compare_migration
from vmm.bench.result import BenchResult, BenchUnavailable, Limit, compare
from vmm.cli import bench as command_module
from vmm.kvm.system import Kvm


def test_one_round_is_too_few() -> None:
    with pytest.raises(ValueError, match="2 or more"):
        compare_migration(1)


@pytest.mark.kvm
def test_too_little_memory_is_refused(kvm: Kvm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "available_memory", lambda: 3 << 30)
    with pytest.raises(BenchUnavailable, match="needs 4 GiB of free memory, and 3072 MiB are available"):
        compare_migration()


def test_the_other_operations_are_not_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measured(rounds: int, progress: object) -> list[BenchResult]:
        asked.append(rounds)
        return [compare("x", [5.0, 5.0], [1.0, 1.0], Limit("ratio", 1.43))]

    monkeypatch.setattr(migration, "compare_migration", measured)
    monkeypatch.setattr(command_module, "run", lambda rounds, progress: pytest.fail("not asked for"))
    text = CliRunner().invoke(command_module.command, ["--migration"], standalone_mode=False)
    assert text.return_value == 1 and asked == [migration.ROUNDS]
    assert "TOO SLOW" in text.output and "in turns with plain sockets" in text.output
    printed = CliRunner().invoke(
        command_module.command, ["--migration", "--json", "--rounds", "2"], standalone_mode=False
    )
    assert json.loads(printed.output)["within"] is False and asked[-1] == 2


@pytest.mark.kvm
def test_the_copying_and_the_pause_of_a_guest_are_measured(kvm: Kvm) -> None:
    try:
        copying, standing = compare_migration(2)
    except BenchUnavailable as error:
        pytest.skip(str(error))
    for result in (copying, standing):
        assert result.rounds == 2
        assert min(result.ours, result.baseline) > 0
    # A guest stands still for less than all of its memory takes.
    assert standing.ours < copying.ours
