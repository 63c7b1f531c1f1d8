# SPDX-License-Identifier: Apache-2.0
"""What the process lacks, or what its parent left behind, is never blamed on KVM."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.patience import LIMIT
from vmm.probe import process

pytestmark = pytest.mark.kvm
_CHECK = [sys.executable, "-m", "vmm", "check", "--format", "json", "--time-scale", "10"]


def _limit(which: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(which, (value, value))


def _check(prepare: Callable[[], None], *globs: str) -> list[dict[str, Any]]:
    """Run `vmm check` in a process that ``prepare`` has changed, and return the records of clauses that ran."""
    done = subprocess.run(
        [*_CHECK, *globs], preexec_fn=prepare, restore_signals=False, capture_output=True, text=True, timeout=LIMIT
    )
    assert "Traceback" not in done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return [record for record in records if record["record"] == "clause" and record["verdict"] != "SKIP"]


@pytest.fixture(scope="module")
def unlimited() -> dict[str, str]:
    """The verdicts of the clauses in a process that lacks nothing."""
    return {record["id"]: record["verdict"] for record in _check(lambda: None)}


@pytest.mark.parametrize(
    ("prepare", "name"),
    [(_limit(resource.RLIMIT_NOFILE, 16), "EMFILE"), (_limit(resource.RLIMIT_SIGPENDING, 0), "timer_create")],
    ids=["16 descriptors", "no pending signals"],
)
def test_what_the_process_lacks_is_an_error_by_its_name(
    unlimited: dict[str, str], prepare: Callable[[], None], name: str
) -> None:
    records = _check(prepare)
    errors = [record for record in records if record["verdict"] == "ERROR"]
    assert errors, "the limit was not reached: this tests nothing"
    assert all(name in record["reason"] for record in errors), [record["reason"] for record in errors]
    others = {record["id"]: record["verdict"] for record in records if record["verdict"] != "ERROR"}
    assert {identifier: unlimited[identifier] for identifier in others} == others


def test_too_few_descriptors_to_start_a_clause_at_all_are_each_clauses_error(unlimited: dict[str, str]) -> None:
    found = [_check(_limit(resource.RLIMIT_NOFILE, limit), "xcrs.*") for limit in range(8, 14)]
    records = [record for records in found for record in records]
    wrong = [record for record in records if record["verdict"] not in (unlimited.get(record["id"]), "ERROR")]
    assert not wrong
    assert any("could not be started: EMFILE" in record.get("reason", "") for record in records)


def _disturb() -> None:
    """Ignore the end of children, which takes their status away, and block every signal."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def test_what_a_parent_did_to_signals_changes_no_verdict(unlimited: dict[str, str]) -> None:
    assert {record["id"]: record["verdict"] for record in _check(_disturb)} == unlimited


def test_the_limits_of_the_process_are_among_the_hosts_facts() -> None:
    measured = process.measure()
    assert measured.open_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    (line,) = measured.lines()
    assert f"{measured.open_files} open files" in line[1] and f"uid {measured.uid}" in line[1]
    assert process.Process(memfd="EPERM").lines()[0][1].endswith("memfd_create fails with EPERM")
