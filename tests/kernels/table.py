# SPDX-License-Identifier: Apache-2.0
"""The table of faults: a file for each area, ``faults/*.toml`` for x86 and ``faults/arm64/*.toml``.

A fault is ``name``, ``does`` (what the kernel does wrong), ``clauses`` (globs of those that have to notice), and its
edits (``tests.kernels.patch``): ``file`` and ``function`` with one of the keys of HOW, whose value is the anchor, and
``code``. ``machines`` says where it can be seen, ``at_load`` that it acts when KVM is loaded. At the head of a file
``machines`` is for all of its faults that say nothing else; the default is ``["amx"]``.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kernels.patch import HOW, Edit

__all__ = ["FOLDER", "MACHINES", "Fault", "choose", "load", "parse"]

#: machine -> its architecture, as vmm.arch calls it
MACHINES = {"amx": "x86", "svm": "x86", "sve": "arm64"}
FOLDER = Path(__file__).parent / "faults"
_KEYS = {"name", "does", "clauses", "machines", "at_load", "edit"}


@dataclass(frozen=True)
class Fault:
    """One fault of a kernel. Its number is what the module parameter ``kvm.fault`` takes: 0 is none."""

    number: int
    name: str
    does: str
    clauses: Sequence[str]
    edits: Sequence[Edit]
    machines: Sequence[str] = ("amx",)
    at_load: bool = False

    @property
    def architectures(self) -> set[str]:
        """The architectures of the kernels that it is built into."""
        return {MACHINES[machine] for machine in self.machines}


def load(folder: Path = FOLDER) -> list[Fault]:
    """Return all faults, numbered from 1; raise ValueError for a table that is not well-formed."""
    entries = []
    if not folder.is_dir():
        raise ValueError("there is no such folder")
    for path in [*sorted(folder.glob("*.toml")), *sorted(folder.glob("*/*.toml"))]:
        table = tomllib.loads(path.read_text())
        if set(table) - {"machines"} != {"fault"}:
            raise ValueError(f"{path.name}: it is to consist of [[fault]], and machines for all of them")
        usual = {"machines": table["machines"]} if "machines" in table else {}
        entries += [(path.name, usual | entry) for entry in table["fault"]]
    faults = [parse(entry, number, where) for number, (where, entry) in enumerate(entries, start=1)]
    names = [fault.name for fault in faults]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"there are two faults {', '.join(sorted(twice))}")
    return faults


def parse(entry: dict[str, Any], number: int, where: str) -> Fault:
    """Return the fault of an entry of the table."""
    missing = {"name", "does", "clauses", "edit"} - set(entry)
    if missing or set(entry) - _KEYS:
        raise ValueError(f"{where}: a fault with {sorted(entry)}")
    fault = Fault(
        number,
        entry["name"],
        entry["does"],
        tuple(entry["clauses"]),
        tuple(_edit(edit, f"{where}: {entry['name']}") for edit in entry["edit"]),
        tuple(entry.get("machines", ("amx",))),
        entry.get("at_load", False),
    )
    if not fault.clauses or not fault.edits or not fault.machines or set(fault.machines) - set(MACHINES):
        raise ValueError(f"{where}: {fault.name} lacks clauses or edits, or names a machine that there is not")
    return fault


def _edit(entry: dict[str, str], where: str) -> Edit:
    found = [how for how in HOW if how in entry]
    rest = set(entry) - set(HOW)
    if len(found) != 1 or rest not in ({"file", "function"}, {"file", "function", "code"}):
        raise ValueError(f"{where}: an edit with {sorted(entry)}")
    how = found[0]
    if ("code" in rest) != (how in ("before", "after", "value")):
        raise ValueError(f"{where}: {how} {'takes no' if 'code' in rest else 'needs'} code")
    if how == "entry":
        return Edit(entry["file"], entry["function"], how, "", entry["entry"])
    return Edit(entry["file"], entry["function"], how, entry[how], entry.get("code", ""))


def choose(faults: Iterable[Fault], patterns: Sequence[str]) -> list[Fault]:
    """Return the faults whose name matches one of the globs, all of them without any."""
    return [fault for fault in faults if not patterns or any(fnmatch.fnmatchcase(fault.name, p) for p in patterns)]
