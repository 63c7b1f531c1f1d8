# SPDX-License-Identifier: Apache-2.0
"""Known failures: data files, one for each back end or range of kernels, every entry with a reason and a reference.

A file ``expectations/NAME.toml`` looks like this:

    backend = "kvm_pvm"            # which hosts the whole file is about; each key may be left out
    kernel = ">=6.12 <7.0"

    [[known]]
    clause = "pat.invalid-type"    # a clause id, no pattern
    reason = "one sentence: what this KVM does instead"
    reference = "where that can be checked"
    cpu = "AuthenticAMD"           # optional: only with this CPU vendor
    model = "QEMU TCG CPU"         # optional: only with a CPU whose brand string starts like this
"""

from __future__ import annotations

import operator
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmm.conformance.host import Host, version
from vmm.conformance.model import ClauseResult, Verdict

__all__ = ["FOLDER", "Expectation", "ExpectationError", "apply", "load"]

FOLDER = Path(__file__).resolve().parent / "expectations"
_OPERATORS = {">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt}
_FILE_KEYS = {"backend", "kernel", "known"}
_ENTRY_KEYS = {"clause", "reason", "reference", "cpu", "model"}


class ExpectationError(Exception):
    """An expectations file is wrong; the message names file and entry."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """A clause that is known to fail on this host."""

    clause: str
    reason: str
    reference: str


def _kernel_matches(ranges: str, host: Host, path: Path) -> bool:
    for condition in ranges.split():
        symbol = condition.rstrip("0123456789.")
        if symbol not in _OPERATORS or symbol == condition:
            raise ExpectationError(f"{path.name}: {condition!r} is no kernel range such as '>=6.12'")
        if not _OPERATORS[symbol](host.version, version(condition[len(symbol) :])):
            return False
    return True


def _check_keys(table: dict[str, Any], allowed: set[str], required: set[str], where: str) -> None:
    wrong = set(table) - allowed
    missing = {key for key in required if not table.get(key)}
    if wrong or missing:
        raise ExpectationError(f"{where}: unknown keys {sorted(wrong)}, missing keys {sorted(missing)}")


def _read(path: Path, host: Host) -> list[Expectation]:
    try:
        data = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ExpectationError(f"{path.name} is no TOML: {error}") from error
    _check_keys(data, _FILE_KEYS, set(), path.name)
    found = []
    for number, entry in enumerate(data.get("known", [])):
        _check_keys(entry, _ENTRY_KEYS, {"clause", "reason", "reference"}, f"{path.name}, entry {number}")
        same_model = host.facts.model.startswith(entry.get("model", ""))
        if same_model and entry.get("cpu", host.facts.vendor) == host.facts.vendor:
            found.append(Expectation(entry["clause"], entry["reason"], entry["reference"]))
    applies = data.get("backend", host.backend) == host.backend
    return found if applies and _kernel_matches(data.get("kernel", ""), host, path) else []


def load(host: Host, paths: Iterable[Path] | None = None) -> dict[str, Expectation]:
    """Return the known failures of ``host`` by clause id, from all files (or those given)."""
    files = sorted(FOLDER.glob("*.toml")) if paths is None else paths
    return {known.clause: known for path in files for known in _read(path, host)}


def apply(result: ClauseResult, known: dict[str, Expectation]) -> ClauseResult:
    """Turn a FAIL that is known into KNOWN, and a PASS that is known to fail into XPASS, in place."""
    expectation = known.get(result.id)
    if expectation is not None and result.verdict in (Verdict.FAIL, Verdict.PASS):
        result.verdict = Verdict.KNOWN if result.verdict is Verdict.FAIL else Verdict.XPASS
        result.reason, result.reference = expectation.reason, expectation.reference
    return result
