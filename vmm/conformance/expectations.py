# SPDX-License-Identifier: Apache-2.0
"""Known failures: data files, one for each back end or fault, every entry with a reason and a reference.

A file ``expectations/NAME.toml`` looks like this:

    backend = "kvm_pvm"            # which hosts the whole file is about, by back end
    architecture = "x86"           # or by architecture; both may be left out

    [[known]]
    clause = "pat.invalid-type"    # a clause id
    what = "IA32_PAT with type *"  # the finding that is known: what was looked at, and
    observed = "success*"          # what was observed there; a * stands for any text
    reason = "one sentence: what this KVM does instead"
    reference = "where that can be checked: kernel file and function, commit, manual"
    introduced = "5.17"            # optional: the release that has the fault first
    fixed = ["6.16", "6.12.77"]    # optional: the release without it, and the stable releases that took the mend
    cpu = "AuthenticAMD"           # optional: only with this CPU vendor
    hypervisor = "TCGTCGTCGTCG"    # optional: only below this hypervisor, by CPUID 0x40000000
    mode = "Protected*"            # optional: only where KVM uses EL2 like this (arm64)
    erratum = "834220"             # optional: only where a CPU has this erratum (arm64)
    supports = "XTILEDATA"         # optional: only where KVM can give guests this xfeature (x86)
    passes = "QEMU 10 mended it"   # optional: why hosts that no key tells apart pass: PASS is then not an XPASS
    verdict = "TIMEOUT"            # optional: the guest hangs; ``observed`` is then the reason and ``what`` empty

A KNOWN is one finding, not a licence for the clause: any other finding of it stays a FAIL. Where a clause has several
entries, each is a finding of its own; one that looks at many fields is KNOWN if every field that is wrong is.

``fixed`` is read as a kernel's stable releases are made: a release of a series that it names has the mend from that
release on; one of any other series has it if the series is not older than the first entry's. A distribution that took
the mend by itself passes, which is an XPASS: not a failure, and no silence either.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmm.conformance.model import ClauseResult, Verdict
from vmm.probe.host import Host, version

__all__ = ["FOLDER", "Expectation", "ExpectationError", "apply", "has_fault", "load", "read_all"]

FOLDER = Path(__file__).resolve().parent / "expectations"
_RELEASE = re.compile(r"\d+\.\d+(\.\d+)?")
_FILE_KEYS = {"backend", "architecture", "known"}
_REQUIRED = {"clause", "reason", "reference", "observed"}
_STRINGS = _REQUIRED | {
    "what", "introduced", "cpu", "hypervisor", "mode", "erratum", "supports", "passes", "verdict",
}  # fmt: skip
_FACTS = {"cpu": "vendor", "hypervisor": "hypervisor", "mode": "mode", "erratum": "errata"}


class ExpectationError(Exception):
    """An expectations file is wrong; the message names file and entry."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """One finding of one clause that is known, and on which hosts."""

    clause: str
    reason: str
    reference: str
    observed: str
    what: str = ""
    introduced: str = ""
    fixed: tuple[str, ...] = ()
    cpu: str = ""
    hypervisor: str = ""
    mode: str = ""
    erratum: str = ""
    supports: str = ""
    passes: str = ""
    verdict: str = "FAIL"
    backend: str = ""
    architecture: str = ""

    def applies(self, host: Host) -> bool:
        """Is ``host`` one of those that the finding is known on?"""
        if self.backend not in ("", host.backend) or self.architecture not in ("", host.architecture):
            return False
        for key, fact in _FACTS.items():
            wanted = getattr(self, key)
            if wanted and not _matches(wanted, str(getattr(host.facts, fact, ""))):
                return False
        if self.supports and not host.facts.supports(self.supports):
            return False
        return has_fault(host.version, self.introduced, self.fixed)

    def matches(self, verdict: Verdict, what: str, observed: str) -> bool:
        """Is a finding this one?"""
        return verdict == self.verdict and _matches(self.what, what) and _matches(self.observed, observed)


def _matches(pattern: str, text: str) -> bool:
    """Whether ``text`` is ``pattern``, in which a * stands for anything and nothing else is special."""
    expression = ".*".join(re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(expression, text, re.DOTALL) is not None


def has_fault(running: tuple[int, int, int], introduced: str, fixed: Sequence[str]) -> bool:
    """Whether the release ``running`` has a fault that came with ``introduced`` and went with ``fixed``.

    >>> has_fault((6, 12, 80), "5.17", ["6.16", "6.12.77"])
    False
    >>> has_fault((6, 13, 9), "5.17", ["6.16", "6.12.77"])
    True
    """
    if introduced and running < version(introduced):
        return False
    mended = [version(release) for release in fixed]
    for release in mended[1:]:
        if running[:2] == release[:2]:
            return running < release
    return not mended or running < mended[0]


def _entry(entry: Mapping[str, Any], whole: Mapping[str, str], where: str) -> Expectation:
    wrong = set(entry) - _STRINGS - {"fixed"}
    missing = {key for key in _REQUIRED if not entry.get(key)}
    if "what" not in entry and entry.get("verdict") != "TIMEOUT":
        missing.add("what")
    if wrong or missing:
        raise ExpectationError(f"{where}: unknown keys {sorted(wrong)}, missing keys {sorted(missing)}")
    fixed = entry.get("fixed", [])
    releases = [*fixed, entry["introduced"]] if "introduced" in entry else fixed
    if not isinstance(fixed, list) or not all(isinstance(entry[key], str) for key in set(entry) - {"fixed"}):
        raise ExpectationError(f"{where}: fixed is a list of releases, every other key a string")
    for release in releases:
        if not isinstance(release, str) or not _RELEASE.fullmatch(release):
            raise ExpectationError(f"{where}: {release!r} is not a kernel release such as '6.16' or '6.12.77'")
    if entry.get("verdict", "FAIL") not in ("FAIL", "TIMEOUT"):
        raise ExpectationError(f"{where}: verdict is FAIL or TIMEOUT, not {entry['verdict']!r}")
    return Expectation(**{**whole, **entry, "fixed": tuple(fixed)})


def _read(path: Path) -> list[Expectation]:
    try:
        data = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ExpectationError(f"{path.name} is not TOML: {error}") from error
    wrong = set(data) - _FILE_KEYS
    if wrong:
        raise ExpectationError(f"{path.name}: unknown keys {sorted(wrong)}, missing keys []")
    entries = data.pop("known", [])
    return [_entry(entry, data, f"{path.name}, entry {at}") for at, entry in enumerate(entries)]


def read_all(paths: Iterable[Path] | None = None) -> list[Expectation]:
    """Return every expectation of all files, or of those given, whatever the host."""
    files = sorted(FOLDER.glob("*.toml")) if paths is None else paths
    return [known for path in files for known in _read(path)]


def load(host: Host, paths: Iterable[Path] | None = None) -> dict[str, list[Expectation]]:
    """Return the findings that are known on ``host`` by clause id, from all files or those given."""
    found: dict[str, list[Expectation]] = {}
    for known in read_all(paths):
        if known.applies(host):
            found.setdefault(known.clause, []).append(known)
    return found


def _findings(result: ClauseResult) -> list[tuple[str, str]]:
    """Return what was looked at and observed: of a clause about many fields, for each that is wrong."""
    if result.fields:
        return [(field["what"], field["observed"]) for field in result.fields]
    return [(result.what, result.reason if result.verdict is Verdict.TIMEOUT else result.observed)]


def _known(verdict: Verdict, finding: tuple[str, str], expected: Iterable[Expectation]) -> Expectation | None:
    return next((one for one in expected if one.matches(verdict, *finding)), None)


def apply(result: ClauseResult, known: Mapping[str, Sequence[Expectation]]) -> ClauseResult:
    """Turn a failure that is known into KNOWN, and a PASS that is known to fail into XPASS, in place.

    A failure of such a clause with another finding stays what it is; a note says which one was expected.
    """
    expected = known.get(result.id, ())
    if not expected or result.verdict not in (Verdict.FAIL, Verdict.TIMEOUT, Verdict.PASS):
        return result
    if result.verdict is Verdict.PASS:
        if any(one.passes for one in expected):
            return result
        chosen = expected[0]
        result.verdict = Verdict.XPASS
    else:
        matching = [_known(result.verdict, finding, expected) for finding in _findings(result)]
        if None in matching:
            listed = "; ".join(f"{one.what}: {one.observed}" for one in expected)
            result.notes.append(f"not what is known of this clause here ({listed})")
            return result
        chosen = next(one for one in matching if one)
        result.verdict = Verdict.KNOWN
    result.reason, result.reference = chosen.reason, chosen.reference
    return result
