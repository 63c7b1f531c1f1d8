# SPDX-License-Identifier: Apache-2.0
"""Host profiles: what the machines can be made to look like, as data in a TOML file (`hosts.toml` is ours).

Each `[[profile]]` has a `name` (`MACHINE.words`), the `machine`, one line `why`, and any of

* `kernel`, `cpu`, `cpus`, `mode`, `memory` (MiB), `emulator`: as the options of `scripts/lab`;
* `parameters`: a list of kernel arguments, those of modules as `module.name=value`;
* `limits`: the limits of the process that checks, by the names of setrlimit(2): `{ nofile = 16 }`;
* `ignored`, `blocked`: signals that it inherits so, by their names: `["CHLD"]`; `["ALL"]` may be blocked;
* `before`: a line for the shell, run in the machine as root before the check, in the check's own process;
* `clauses`: a list of globs, if not all clauses are to be checked;
* `timeout` in seconds, and `slow = true` for what no sample should draw;
* `recorded`: the kernel's release and the count of each verdict when the totals were recorded.

A `[[profile.finding]]` of a profile is a `clause` that ends there with a `verdict` that would fail the run, and the
`reference` that explains it as a fault of the kernel or the emulator.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import resource
import signal
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .config import DEFAULT_KERNEL
from .errors import LabError
from .machines import MODES
from .processors import parse_processor
from .releases import parse_kernel
from .session import MACHINES

__all__ = ["ALARMS", "VERDICTS", "Finding", "Profile", "load_profiles", "matching", "sample"]

VERDICTS = ("PASS", "KNOWN", "SKIP", "INFO", "FAIL", "ERROR", "TIMEOUT", "XPASS")
#: the verdicts that fail a run unless a finding explains them
ALARMS = ("FAIL", "ERROR", "TIMEOUT", "XPASS")

_SECONDS = 600.0


@dataclass(frozen=True)
class Finding:
    """An alarm that is explained."""

    clause: str
    verdict: str
    reference: str


@dataclass(frozen=True)
class Profile:
    """One host."""

    name: str
    machine: str
    why: str
    kernel: str = DEFAULT_KERNEL
    cpu: str = ""
    cpus: int | None = None
    mode: str = ""
    memory: int | None = None
    emulator: str = ""
    parameters: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    before: str = ""
    clauses: tuple[str, ...] = ()
    timeout: float = _SECONDS
    slow: bool = False
    release: str = ""  # of the kernel that `totals` were recorded with
    totals: Mapping[str, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def options(self) -> list[str]:
        """Return the arguments for `scripts/lab`, up to the command."""
        words = [self.machine, "--kernel", self.kernel, "--timeout", f"{self.timeout:g}"]
        for option in ("cpu", "cpus", "mode", "memory", "emulator"):
            value = getattr(self, option)
            if value:
                words.append(f"--{option}={value}")
        if self.parameters:
            words.append("--append=" + " ".join(self.parameters))
        return words

    def command(self, check: Sequence[str]) -> list[str]:
        """Return the command that checks under the profile's conditions."""
        words = list(check)
        conditions = [f"limit {name} {value}" for name, value in self.limits.items()]
        conditions += [f"ignored {name}" for name in self.ignored] + [f"blocked {name}" for name in self.blocked]
        if conditions:
            words = ["python3", "-c", _LAUNCHER, *conditions, "exec", *words]
        if self.before:
            words = ["sh", "-c", f'{self.before}\nexec "$@"', "sh", *words]
        return words


# Runs a command under conditions; what Python itself ignores is not to be one of them.
_LAUNCHER = """
import os, resource, signal, sys
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
while (condition := sys.argv.pop(1)) != "exec":
    kind, name, *value = condition.split()
    if kind == "limit":
        resource.setrlimit(getattr(resource, "RLIMIT_" + name.upper()), (int(value[0]), int(value[0])))
    elif kind == "ignored":
        signal.signal(signal.Signals["SIG" + name], signal.SIG_IGN)
    else:
        signals = signal.valid_signals() if name == "ALL" else [signal.Signals["SIG" + name]]
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def load_profiles(path: Path) -> list[Profile]:
    """Return the profiles of a file in its order; raise LabError for a file that is not of the form above."""
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise LabError(f"The host profiles {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LabError(f"The host profiles {path} are not TOML: {error}.") from None
    tables = content.pop("profile", None)
    if content or not isinstance(tables, list) or not tables:
        raise LabError(f"The host profiles {path} have to consist of [[profile]] tables and nothing else.")
    profiles: list[Profile] = []
    for number, table in enumerate(tables, start=1):
        named = table.get("name") if isinstance(table, dict) else None
        where = f"{path}, profile {named if isinstance(named, str) else number}"
        try:
            profiles.append(_profile(table))
        except LabError as error:
            raise LabError(f"{where}: {error}") from None
        if profiles[-1].name in {profile.name for profile in profiles[:-1]}:
            raise LabError(f"{where}: there are two of that name; rename one.")
    return profiles


#: what a profile may have: the type of each value
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "machine": str,
    "why": str,
    "kernel": str,
    "cpu": str,
    "cpus": int,
    "mode": str,
    "memory": int,
    "emulator": str,
    "parameters": list,
    "limits": dict,
    "ignored": list,
    "blocked": list,
    "before": str,
    "clauses": list,
    "timeout": (int, float),
    "slow": bool,
    "recorded": dict,
    "finding": list,
}
_NEEDED = ("name", "machine", "why")


def _profile(table: Any) -> Profile:
    """Return the profile of a table, checked."""
    _check_types(table, _FIELDS, _NEEDED)
    values = dict(table)
    recorded = dict(values.pop("recorded", {}))
    values["release"] = recorded.pop("release", "")
    values["totals"] = recorded
    values["findings"] = tuple(_finding(each) for each in values.pop("finding", ()))
    for key in ("parameters", "ignored", "blocked", "clauses"):
        values[key] = tuple(values.get(key, ()))
    profile = Profile(**values)
    _check_values(profile)
    return profile


def _finding(table: Any) -> Finding:
    fields = dict.fromkeys(("clause", "verdict", "reference"), str)
    _check_types(table, fields, tuple(fields))
    finding = Finding(**table)
    _require(finding.verdict in ALARMS, f"a finding's verdict is one of {', '.join(ALARMS)}, not {finding.verdict}")
    _require(bool(finding.reference.strip()), f"the finding {finding.clause} needs a reference")
    return finding


def _check_types(table: Any, fields: Mapping[str, type | tuple[type, ...]], needed: Sequence[str]) -> None:
    _require(isinstance(table, dict), "it is not a table")
    for key, value in table.items():
        _require(key in fields, f"'{key}' is none of {', '.join(fields)}")
        right = isinstance(value, fields[key]) and (not isinstance(value, bool) or fields[key] is bool)
        _require(right, f"'{key}' has a value of the wrong type, {value!r}")
    for key in needed:
        _require(key in table, f"'{key}' is missing")


def _check_values(profile: Profile) -> None:
    _require(profile.machine in MACHINES, f"machine is one of {', '.join(MACHINES)}, not {profile.machine}")
    pattern = rf"{profile.machine}\.[a-z0-9]+([.-][a-z0-9]+)*"
    _require(
        re.fullmatch(pattern, profile.name) is not None,
        f"a name is '{profile.machine}.' and small letters, digits, '-' and '.', not {profile.name}",
    )
    _require(bool(profile.why.strip()) and "\n" not in profile.why, "'why' has to say in one line what is special")
    parse_kernel(profile.kernel)
    if profile.cpu:
        parse_processor(profile.cpu)
    _require(profile.cpus in (None, 1, 2), "cpus is 1 or 2")
    mode = profile.mode in MODES and profile.machine == "sve"
    _require(mode or not profile.mode, f"mode is for sve and one of {', '.join(MODES)}")
    _require(profile.machine != "amx" or not profile.emulator, "emulator, a suite, is for svm and sve")
    _require(profile.memory is None or profile.memory > 0, "memory is a number of MiB")
    _require(profile.timeout > 0, "timeout is a number of seconds")
    for word in profile.parameters:
        _require(isinstance(word, str) and bool(re.fullmatch(r"\S+", word)), f"{word!r} is not one kernel argument")
    for glob in profile.clauses:
        _require(
            isinstance(glob, str) and bool(re.fullmatch(r"[\w.*?-]+", glob)), f"{glob!r} is not a glob of clauses"
        )
    for name, value in profile.limits.items():
        _require(hasattr(resource, f"RLIMIT_{name.upper()}"), f"setrlimit knows no limit '{name}'")
        _require(type(value) is int and value >= -1, f"the limit {name} is a number, not {value!r}")
    blocked = () if profile.blocked == ("ALL",) else profile.blocked
    for name in (*profile.ignored, *blocked):
        known = isinstance(name, str) and f"SIG{name}" in signal.Signals.__members__
        _require(known and name not in ("KILL", "STOP"), f"{name!r} is not a signal that can be ignored or blocked")
    _require(isinstance(profile.release, str), "'release' of what was recorded is a string")
    for verdict, count in profile.totals.items():
        _require(
            verdict in VERDICTS and type(count) is int and count >= 0, f"'{verdict}' is not a count of a verdict"
        )


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise LabError(otherwise + ".")


def matching(profiles: Sequence[Profile], globs: Sequence[str]) -> list[Profile]:
    """Return the profiles that a glob names, all for no globs; raise LabError for a glob that names none."""
    for glob in globs:
        if not any(fnmatchcase(profile.name, glob) for profile in profiles):
            raise LabError(f"No host profile is named {glob}; --list-hosts shows them.")
    return [profile for profile in profiles if not globs or any(fnmatchcase(profile.name, glob) for glob in globs)]


def sample(profiles: Sequence[Profile], count: int, day: datetime.date) -> list[Profile]:
    """Return `count` profiles for a day, as evenly of all machines as can be, slow ones only if nothing else is left.

    From day to day the choice continues where it ended, so that all of them have their turn.
    """
    groups = [_turns(profiles, machine) for machine in MACHINES]
    groups = [group for group in groups if group]
    shares = [0] * len(groups)
    for turn in range(count):
        open_groups = [index for index, group in enumerate(groups) if shares[index] < len(group)]
        if not open_groups:
            break
        # Whoever has least, and among those another one each day.
        least = min(open_groups, key=lambda index: (shares[index], (index + day.toordinal() + turn) % len(groups)))
        shares[least] += 1
    chosen = set()
    for group, share in zip(groups, shares, strict=True):
        start = day.toordinal() * share
        quick = [profile for profile in group if not profile.slow]
        slow = [profile for profile in group if profile.slow]
        chosen |= {quick[(start + index) % len(quick)].name for index in range(min(share, len(quick)))}
        chosen |= {slow[(start + index) % len(slow)].name for index in range(share - min(share, len(quick)))}
    return [profile for profile in profiles if profile.name in chosen]


def _turns(profiles: Sequence[Profile], machine: str) -> list[Profile]:
    """Return a machine's profiles in an order that has nothing to do with that of the file."""
    own = [profile for profile in profiles if profile.machine == machine]
    return sorted(own, key=lambda profile: hashlib.sha256(profile.name.encode()).digest())
