# SPDX-License-Identifier: Apache-2.0
"""Run host profiles and compare what they give with what was recorded: `scripts/matrix --hosts`.

With `--json` the report is one object: `hosts`, a list in the file's order, and `states`, the count of each state.
A host has its `name`, `machine`, `kernel` (the release that ran), `state`, `seconds`, `totals` and `recorded` (counts
by verdict), `alarms` (the records of clauses with FAIL, ERROR, TIMEOUT or XPASS as `vmm check --format json` writes
them, and `explained`: the reference of the finding, or null) and `lines`, what differs, in words. States:

* `as recorded`, `differs` (no alarm that is not explained, other totals or findings), `not recorded`
* `alarm`: a clause ended with one that no finding explains
* `no results`: the machine failed, or the run was cut short
* `not served`: Debian no longer has the profile's kernel
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cache import Cache
from .config import CHECK
from .errors import LabError
from .hosts import ALARMS, VERDICTS, Profile
from .kept import POOL_SIZE
from .kernels import fetch_kernel
from .packages import NotServed
from .progress import note
from .session import MACHINES

__all__ = ["STATES", "Outcome", "as_json", "as_text", "failed", "judge", "records", "run_profiles"]

STATES = ("as recorded", "differs", "not recorded", "alarm", "no results", "not served")
_FAILED = ("alarm", "no results")

_LAB = Path(__file__).resolve().parents[1] / "lab"
_POOL = "hosts"  # out of the way of the machines that everybody uses
_BUILDING = 1800.0  # seconds that a machine may take to be built


@dataclass
class Outcome:
    """What became of a profile."""

    profile: Profile
    state: str
    release: str = ""
    seconds: float = 0.0
    totals: dict[str, int] = field(default_factory=dict)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the host's record."""
        profile = self.profile
        return {
            "name": profile.name,
            "machine": profile.machine,
            "kernel": self.release,
            "state": self.state,
            "seconds": round(self.seconds, 1),
            "totals": self.totals,
            "recorded": dict(profile.totals),
            "alarms": self.alarms,
            "lines": self.lines,
        }


def run_profiles(
    profiles: Sequence[Profile], clauses: Sequence[str], jobs: int, ended: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Run profiles, some at the same time, and return the outcomes in the order of the profiles.

    With `clauses`, globs, only those are checked, and totals mean nothing. `ended` is told each outcome as soon as
    there is one, never two at once: what a long run has found is not lost if it is interrupted.
    """
    lock = threading.Lock()
    cache = Cache()
    # More than the pool holds would only push one another out of it.
    kept = sum(MACHINES[profile.machine].keeps_state for profile in profiles) <= POOL_SIZE
    where = ["--pool", _POOL] if kept else ["--fresh"]
    done = 0

    def run(profile: Profile) -> Outcome:
        nonlocal done
        note(f"{profile.name}: started")
        outcome = _run(cache, profile, where, clauses)
        with lock:
            done += 1
            if ended is not None:
                ended(outcome)
        note(f"[{done}/{len(profiles)}] {_headline(outcome)}")
        return outcome

    pool = ThreadPoolExecutor(max(1, jobs))
    try:
        return list(pool.map(run, profiles))
    finally:
        pool.shutdown(cancel_futures=True)


def _run(cache: Cache, profile: Profile, where: Sequence[str], clauses: Sequence[str]) -> Outcome:
    try:
        kernel = fetch_kernel(cache, profile.kernel, MACHINES[profile.machine].arch)
    except NotServed as error:
        return Outcome(profile, "not served", lines=[str(error)])
    except LabError as error:
        return Outcome(profile, "no results", lines=str(error).splitlines())
    # Without the shards of scripts/lab: the profiles themselves run at the same time.
    check = profile.command([*CHECK, *(clauses or profile.clauses)])
    words = [sys.executable, str(_LAB), *profile.options(), *where, "--", *check]
    start = time.monotonic()
    try:
        found = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=profile.timeout + _BUILDING,
        )
    except subprocess.TimeoutExpired:
        return Outcome(profile, "no results", kernel.release, lines=["scripts/lab itself did not end in time"])
    outcome = judge(profile, kernel.release, found.stdout, found.stderr, found.returncode, whole=not clauses)
    outcome.seconds = time.monotonic() - start
    return outcome


def judge(profile: Profile, release: str, output: str, errors: str, status: int, *, whole: bool = True) -> Outcome:
    """Return what the output of a profile's run amounts to; only if `whole` are its totals compared."""
    read = records(output)
    clauses = [record for record in read if record.get("record") == "clause"]
    totals = Counter(str(record["verdict"]) for record in clauses)
    outcome = Outcome(
        profile, "", release, totals={verdict: totals[verdict] for verdict in VERDICTS if totals[verdict]}
    )
    explained = {(finding.clause, finding.verdict): finding.reference for finding in profile.findings}
    for record in clauses:
        if record["verdict"] in ALARMS:
            reference = explained.pop((record["id"], record["verdict"]), None)
            outcome.alarms.append({**record, "explained": reference})
    outcome.lines += [_alarm_line(alarm) for alarm in outcome.alarms if alarm["explained"] is None]
    if not any(record.get("record") == "totals" for record in read):
        outcome.state = "no results"
        outcome.lines += [
            f"cut short after {len(clauses)} clauses, status {status}",
            *errors.strip().splitlines()[:8],
        ]
        return outcome
    outcome.lines += [f"the kernel's log: {line}" for line in errors.strip().splitlines()]
    if whole:
        outcome.lines += [f"{verdict} {clause}, a finding, was not seen" for clause, verdict in explained]
        outcome.lines += _differences(profile, outcome)
    outcome.state = _state(profile, outcome, whole)
    return outcome


def _state(profile: Profile, outcome: Outcome, whole: bool) -> str:
    if any(alarm["explained"] is None for alarm in outcome.alarms):
        return "alarm"
    if not profile.totals:
        return "not recorded"
    return "differs" if outcome.lines or not whole else "as recorded"


def records(output: str) -> list[dict[str, Any]]:
    """Return the JSON objects among the lines of an output; other lines are passed over."""
    found = []
    for line in output.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def _alarm_line(alarm: dict[str, Any]) -> str:
    details = [f"{key} {alarm[key]}" for key in ("what", "expected", "observed", "reason") if alarm.get(key)]
    return f"{alarm['verdict']} {alarm['id']}: {', '.join(details)}"


def _differences(profile: Profile, outcome: Outcome) -> list[str]:
    """Return what is not as it was recorded, if anything was."""
    if not profile.totals:
        return []
    changes = [
        f"{verdict} {outcome.totals.get(verdict, 0)}, recorded {profile.totals.get(verdict, 0)}"
        for verdict in VERDICTS
        if outcome.totals.get(verdict, 0) != profile.totals.get(verdict, 0)
    ]
    if changes and profile.release != outcome.release:
        changes.append(f"recorded with {profile.release}")
    return ["; ".join(changes)] if changes else []


def failed(outcomes: Sequence[Outcome]) -> bool:
    """Tell whether a run of profiles has failed."""
    return any(outcome.state in _FAILED for outcome in outcomes)


def _headline(outcome: Outcome) -> str:
    totals = ", ".join(f"{count} {verdict}" for verdict, count in outcome.totals.items())
    middle = f" {totals} ({outcome.seconds:.0f} s)" if totals else ""
    return f"{outcome.profile.name} [{outcome.release or outcome.profile.kernel}]:{middle} {outcome.state}"


def as_text(outcomes: Sequence[Outcome]) -> str:
    """Return the report for people: a line for each profile, below it what differs, then the count of each state."""
    lines = []
    for outcome in outcomes:
        lines.append(_headline(outcome))
        lines += [f"    {line}" for line in outcome.lines]
    states = Counter(outcome.state for outcome in outcomes)
    counts = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    return "\n".join([*lines, "", f"{len(outcomes)} profiles: {counts}"]) + "\n"


def as_json(outcomes: Sequence[Outcome]) -> str:
    """Return the report for machines, as this module's description says."""
    states = Counter(outcome.state for outcome in outcomes)
    content = {
        "hosts": [outcome.to_json() for outcome in outcomes],
        "states": {state: states[state] for state in STATES},
    }
    return json.dumps(content, indent=1) + "\n"
