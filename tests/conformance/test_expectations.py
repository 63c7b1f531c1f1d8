# SPDX-License-Identifier: Apache-2.0
"""Known failures as data: the shipped files, on which hosts they apply, and which finding they excuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.conformance.expectations import FOLDER, Expectation, ExpectationError, apply, has_fault, load, read_all
from vmm.conformance.model import ClauseResult, Verdict
from vmm.conformance.registry import all_clauses
from vmm.probe.host import Host, upstream, version

SHIPPED = sorted(FOLDER.glob("*.toml"))
# What no release of Linux has mended yet, on any x86 back end.
UNMENDED = {entry.clause for entry in read_all([FOLDER / "linux_x86.toml"]) if not entry.fixed}
MakeHost = Callable[..., Host]
Load = Callable[..., dict[str, list[Expectation]]]
ENTRY = """[[known]]
clause = "xcrs.fresh"
what = "XCR0"
observed = "3"
reason = "it is so"
reference = "see there"
"""


@pytest.fixture
def known(tmp_path: Path) -> Load:
    """Loads one file with the given text for a host."""

    def read(text: str, host: Host) -> dict[str, list[Expectation]]:
        path = tmp_path / "some.toml"
        path.write_text(text)
        return load(host, [path])

    return read


def test_expectations_are_shipped_and_readable() -> None:
    assert {"kvm_pvm.toml", "qemu_tcg.toml", "linux_x86.toml", "kvm_arm.toml"} <= {path.name for path in SHIPPED}
    assert len(read_all()) >= 10


@pytest.mark.parametrize("entry", read_all(), ids=lambda entry: f"{entry.clause} {entry.what}")
def test_a_shipped_entry_names_a_clause_a_finding_and_where_to_look(entry: Expectation) -> None:
    clauses = {clause.id for arch in ("x86", "arm64") for clause in all_clauses(arch)}
    assert entry.clause in clauses
    assert entry.verdict == "TIMEOUT" or len(entry.what) > 3
    assert entry.observed != "*", "an entry that excuses whatever is found"
    assert len(entry.reason.split()) > 5 and len(entry.reference) > 10


@pytest.mark.parametrize("entry", read_all(), ids=lambda entry: f"{entry.clause} {entry.what}")
def test_a_shipped_entry_excuses_its_own_finding_and_no_other(entry: Expectation) -> None:
    if entry.verdict == "TIMEOUT":
        own = ClauseResult(entry.clause, Verdict.TIMEOUT, "S.", reason=entry.observed)
        others = [ClauseResult(entry.clause, Verdict.TIMEOUT, "S.", reason="the clause did not end")]
    else:
        what, observed = entry.what.replace("*", "5"), entry.observed.replace("*", "5")
        own = ClauseResult(entry.clause, Verdict.FAIL, "S.", what=what, expected="E", observed=observed)
        others = [
            ClauseResult(entry.clause, Verdict.FAIL, "S.", what=what, expected="E", observed="another observation"),
            ClauseResult(entry.clause, Verdict.FAIL, "S.", what="another look", expected="E", observed=observed),
            ClauseResult(entry.clause, Verdict.ERROR, "S.", reason=observed),
        ]
    known = {entry.clause: [entry]}
    assert apply(own, known).verdict is Verdict.KNOWN
    assert Verdict.KNOWN not in {apply(other, known).verdict for other in others}


def test_no_two_shipped_entries_are_the_same_finding() -> None:
    keys = [(e.clause, e.what, e.observed, e.backend, e.cpu, e.hypervisor, e.mode) for e in read_all()]
    assert len(keys) == len(set(keys))


def test_an_ordinary_host_of_today_has_only_the_findings_of_its_back_end_and_of_all(make_host: MakeHost) -> None:
    for backend, vendor in (("kvm_intel", "GenuineIntel"), ("kvm_amd", "AuthenticAMD")):
        host = make_host("99.0.1", backend=backend, vendor=vendor, supports=lambda name: True)
        found = [entry for entries in load(host).values() for entry in entries]
        assert {entry.backend for entry in found if entry.clause not in UNMENDED} <= {backend}
        assert not {e.hypervisor for entries in load(host).values() for e in entries} - {""}


# Releases


@pytest.mark.parametrize(
    ("running", "introduced", "fixed", "faulty"),
    [
        ("5.16.9", "5.17", ["6.16"], False),
        ("5.17.0", "5.17", ["6.16"], True),
        ("6.15.11", "5.17", ["6.16"], True),
        ("6.16.0", "5.17", ["6.16"], False),
        ("6.16.0-rc1", "5.17", ["6.16"], False),
        ("7.2.13", "5.17", ["6.16"], False),
        ("6.12.77", "5.17", ["6.16", "6.12.78"], True),
        ("6.12.78", "5.17", ["6.16", "6.12.78"], False),
        ("6.12.117", "5.17", ["6.16", "6.12.78"], False),
        ("6.13.9", "5.17", ["6.16", "6.12.78"], True),
        ("6.6.200", "5.17", ["6.16", "6.12.78"], True),
        ("6.17.12", "4.19", ["6.18", "6.17.13", "6.12.108"], True),
        ("6.17.13", "4.19", ["6.18", "6.17.13", "6.12.108"], False),
        ("2.6.32", "", [], True),
        ("9.9", "", [], True),
    ],
)
def test_a_release_has_a_fault_from_its_introduction_to_its_mend(
    running: str, introduced: str, fixed: list[str], faulty: bool
) -> None:
    assert has_fault(version(running), introduced, fixed) is faulty


_NUMBERS = st.tuples(st.integers(5, 7), st.integers(0, 20), st.integers(0, 120))


@given(running=_NUMBERS, mainline=st.tuples(st.integers(5, 7), st.integers(0, 20)), patch=st.integers(1, 120))
def test_a_stable_mend_says_nothing_about_other_series(
    running: tuple[int, int, int], mainline: tuple[int, int], patch: int
) -> None:
    fixed = [f"{mainline[0]}.{mainline[1]}"]
    stable = f"{running[0]}.{running[1] + 1}.{patch}"
    assert has_fault(running, "", [*fixed, stable]) == has_fault(running, "", fixed)
    own = f"{running[0]}.{running[1]}.{patch}"
    assert has_fault(running, "", [*fixed, own]) == (running[2] < patch)


@pytest.mark.parametrize(
    ("release", "build", "signature", "found"),
    [
        ("6.1.0-50-cloud-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-09-01)", "", (6, 1, 176)),
        ("6.12.107-cloud-arm64", "#1 SMP Debian 6.12.107-1 (2026-07-01)", "", (6, 12, 107)),
        ("7.2.13-1+deb14-amd64", "#1 SMP Debian 7.2.13-1", "", (7, 2, 13)),
        ("6.8.0-45-generic", "#45-Ubuntu SMP", "Ubuntu 6.8.0-45.45-generic 6.8.12\n", (6, 8, 12)),
        ("6.18.44-fc-v669", "#1 SMP PREEMPT_DYNAMIC @0", "", (6, 18, 44)),
        ("5.14.0-570.12.1.el9_6.x86_64", "#1 SMP PREEMPT_DYNAMIC Tue", "", (5, 14, 0)),
    ],
)
def test_the_upstream_release_is_the_one_that_a_distributions_kernel_is_made_from(
    release: str, build: str, signature: str, found: tuple[int, int, int]
) -> None:
    assert version(upstream(release, build, signature)) == found


@pytest.mark.parametrize(
    ("release", "numbers"),
    [("6.12.107-cloud", (6, 12, 107)), ("7.2", (7, 2, 0)), ("6.18.44-fc-v669", (6, 18, 44)),
     ("6.1.0-28-amd64", (6, 1, 0)), ("5.17", (5, 17, 0)), ("6", (6, 0, 0)), ("6.6.1.2.3", (6, 6, 1)),
     ("7.2.0+deb", (7, 2, 0))],
)  # fmt: skip
def test_a_release_reads_as_its_first_three_numbers(release: str, numbers: tuple[int, int, int]) -> None:
    assert version(release) == numbers


def _known_at(release: str, make_host: MakeHost, arch: str = "x86", **facts: object) -> set[str]:
    """The clauses with a known finding on a host of this release, whose KVM can give tiles to guests."""
    backend = "kvm_intel" if arch == "x86" else "kvm_arm"
    host = make_host(release, backend=backend, supports=lambda name: True, **facts)
    return set(load(host, [FOLDER / f"{'linux_x86' if arch == 'x86' else 'kvm_arm'}.toml"]))


@pytest.mark.parametrize(
    "minor", [f"5.{n}.0" for n in (17, 18, 19)] + [f"6.{n}.0" for n in range(20)] + ["7.0.0", "7.2.0"]
)
def test_every_minor_release_since_5_17_has_the_faults_of_its_time(make_host: MakeHost, minor: str) -> None:
    found = _known_at(minor, make_host)
    release = version(minor)
    assert ("quirk.one-way" in found) is (release < (6, 16, 0))
    assert ("cpuid.hidden-without-perm" in found) is (release < (6, 4, 0))
    assert ("xsave.set-xfd-filter" in found) is (release < (6, 19, 0))
    assert ("xsave.set-cpuid-independent" in found) is (release < (6, 6, 0))
    arm = _known_at(minor, make_host, "arm64", mode="VHE", midr=0)
    assert ("init.events-before-init-enoexec" in arm) is (release < (6, 18, 0))
    assert ("vm.mmio-read-signext" in arm) is (release < (7, 2, 0))


@pytest.mark.parametrize(
    ("release", "clause", "faulty"),
    [
        ("6.12.77", "quirk.one-way", True), ("6.12.78", "quirk.one-way", False), ("6.12.43", "quirk.one-way", True),
        ("6.12.66", "xsave.set-xfd-filter", True), ("6.12.67", "xsave.set-xfd-filter", False),
        ("6.1.161", "xsave.set-xfd-filter", True), ("6.1.162", "xsave.set-xfd-filter", False),
        ("6.16.3", "xsave.set-xfd-filter", True), ("6.6.121", "xsave.set-xfd-filter", True),
        ("6.1.59", "xsave.set-cpuid-independent", True), ("6.1.60", "xsave.set-cpuid-independent", False),
    ],
)  # fmt: skip
def test_a_stable_release_has_the_faults_that_its_changelog_does_not_mend(
    make_host: MakeHost, release: str, clause: str, faulty: bool
) -> None:
    assert (clause in _known_at(release, make_host)) is faulty


def test_a_fault_of_tile_state_is_known_only_where_kvm_can_give_tiles(make_host: MakeHost) -> None:
    host = make_host("6.1.100", backend="kvm_amd", supports=lambda name: False)
    other = {"cet.rsm-control-registers", "world.fpu-fresh"}  # of a later release, of tiles
    found = set(load(host, [FOLDER / "linux_x86.toml"]))
    msrs = {f"world.msrs-{name}" for name in ("kept", "moved", "guest-reads", "guest-writes")}
    assert found == {"quirk.one-way", "world.sregs-refused", *msrs, *UNMENDED} - other


# Hosts


@pytest.mark.parametrize(
    ("head", "tail", "applies"),
    [
        ('backend = "kvm_intel"', "", True),
        ('backend = "kvm_amd"', "", False),
        ("", 'cpu = "GenuineIntel"', True),
        ("", 'cpu = "AuthenticAMD"', False),
        ("", 'hypervisor = "TCGTCGTCGTCG"', True),
        ("", 'hypervisor = "KVMKVMKVM"', False),
        ("", 'mode = "Protected*"', True),
        ("", 'mode = "VHE"', False),
        ("", 'cpu = "GenuineIntel"\nmode = "VHE"', False),
        ('backend = "kvm_intel"', 'fixed = ["6.0"]', False),
    ],
)
def test_an_entry_applies_where_all_of_its_keys_do(
    known: Load, make_host: MakeHost, head: str, tail: str, applies: bool
) -> None:
    host = make_host("6.12.1", hypervisor="TCGTCGTCGTCG", mode="Protected nVHE")
    assert bool(known(f"{head}\n{ENTRY}{tail}\n", host)) is applies


def test_a_key_of_the_other_architectures_facts_does_not_apply(known: Load, make_host: MakeHost) -> None:
    assert not known(f'{ENTRY}mode = "VHE"\n', make_host())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'back_end = "kvm_intel"\n{ENTRY}', "unknown keys"),
        (f'kernel = "<6"\n{ENTRY}', "unknown keys"),
        (f'{ENTRY}kernel = "<6"\n', "unknown keys"),
        (f'{ENTRY}since = "6.1"\n', "unknown keys"),
        (ENTRY.replace('reference = "see there"\n', ""), r"missing keys \['reference'\]"),
        (ENTRY.replace('"see there"', '""'), r"missing keys \['reference'\]"),
        (ENTRY.replace('what = "XCR0"\n', ""), r"missing keys \['what'\]"),
        (ENTRY.replace('observed = "3"\n', ""), r"missing keys \['observed'\]"),
        (f'{ENTRY}fixed = "6.16"\n', "fixed is a list of releases"),
        (f'{ENTRY}fixed = ["soon"]\n', "not a kernel release"),
        (f'{ENTRY}fixed = ["6.16", 6]\n', "not a kernel release"),
        (f'{ENTRY}introduced = ">=6.16"\n', "not a kernel release"),
        (f"{ENTRY}introduced = 6.16\n", "every other key a string"),
        (f'{ENTRY}verdict = "ERROR"\n', "verdict is FAIL or TIMEOUT"),
        ("[[known]\n", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(known: Load, make_host: MakeHost, text: str, message: str) -> None:
    with pytest.raises(ExpectationError, match=rf"some\.toml.*{message}"):
        known(text, make_host())


# Findings


def _entry(**changes: str) -> dict[str, list[Expectation]]:
    fields: dict[str, Any] = {
        "reason": "it is so",
        "reference": "see there",
        "what": "XCR0 *",
        "observed": "0x*",
        **changes,
    }
    return {"xcrs.fresh": [Expectation(clause="xcrs.fresh", **fields)]}


def _fail(what: str = "XCR0 after", observed: str = "0x3") -> ClauseResult:
    return ClauseResult("xcrs.fresh", Verdict.FAIL, "S.", what=what, expected="1", observed=observed)


def test_the_finding_that_is_known_is_known() -> None:
    result = apply(_fail(), _entry())
    assert (result.verdict, result.reason, result.reference) == (Verdict.KNOWN, "it is so", "see there")
    assert (result.expected, result.observed) == ("1", "0x3")


@pytest.mark.parametrize(("what", "observed"), [("XCR1 after", "0x3"), ("XCR0 after", "3"), ("XCR0", "0x3")])
def test_another_finding_of_the_same_clause_stays_a_fail_and_says_what_was_known(what: str, observed: str) -> None:
    result = apply(_fail(what, observed), _entry())
    assert result.verdict is Verdict.FAIL
    assert result.notes == ["not what is known of this clause here (XCR0 *: 0x*)"]


def test_each_entry_of_a_clause_is_a_finding_of_its_own() -> None:
    both = {"xcrs.fresh": [*_entry(what="flags")["xcrs.fresh"], *_entry(reason="another")["xcrs.fresh"]]}
    assert apply(_fail(), both).reason == "another"
    assert apply(_fail("flags"), both).reason == "it is so"


def _fails_with_fields(*whats: str) -> ClauseResult:
    result = _fail(f"{whats[0]} (also others)")
    result.fields = [{"what": what, "expected": "1", "observed": "0x3"} for what in whats]
    return result


def test_a_failure_of_many_fields_is_known_if_every_field_is() -> None:
    both = {"xcrs.fresh": [*_entry()["xcrs.fresh"], *_entry(what="flags")["xcrs.fresh"]]}
    assert apply(_fails_with_fields("XCR0 after", "flags"), both).verdict is Verdict.KNOWN
    assert apply(_fails_with_fields("XCR0 after", "flags", "nr_xcrs"), both).verdict is Verdict.FAIL
    assert apply(_fails_with_fields("nr_xcrs", "XCR0 after"), both).verdict is Verdict.FAIL


def test_nothing_but_a_star_is_special_in_a_pattern() -> None:
    known = _entry(what="XSETBV 0x*", observed="[0, 0]")
    assert apply(_fail("XSETBV 0x1f", "[0, 0]"), known).verdict is Verdict.KNOWN
    assert apply(_fail("XSETBV 0x1f", "0"), known).verdict is Verdict.FAIL
    assert apply(_fail("XSETBV 0x1f", "[0, 0]."), known).verdict is Verdict.FAIL


def test_a_pass_where_a_failure_is_known_is_an_xpass() -> None:
    result = apply(ClauseResult("xcrs.fresh", Verdict.PASS, "S."), _entry())
    assert (result.verdict, result.reason) == (Verdict.XPASS, "it is so")


def test_a_pass_that_no_key_tells_from_the_known_failure_stays_a_pass() -> None:
    known = _entry(passes="newer releases mended it")
    assert apply(ClauseResult("xcrs.fresh", Verdict.PASS, "S."), known).verdict is Verdict.PASS
    assert apply(_fail(), known).verdict is Verdict.KNOWN


def test_a_guest_that_hangs_can_be_known_by_its_reason() -> None:
    hangs = ClauseResult("xcrs.fresh", Verdict.TIMEOUT, "S.", reason="the guest did not leave in time")
    assert apply(hangs, _entry()).verdict is Verdict.TIMEOUT
    known = _entry(verdict="TIMEOUT", what="", observed="the guest did not *")
    assert apply(hangs, known).verdict is Verdict.KNOWN
    assert apply(_fail(), known).verdict is Verdict.FAIL


@pytest.mark.parametrize("verdict", [v for v in Verdict if v not in (Verdict.FAIL, Verdict.PASS, Verdict.TIMEOUT)])
def test_other_verdicts_stay_what_they_are(verdict: Verdict) -> None:
    result = apply(ClauseResult("xcrs.fresh", verdict, "S.", reason="its own"), _entry())
    assert (result.verdict, result.reason, result.reference) == (verdict, "its own", "")


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_clause_that_is_not_listed_stays_what_it_is(verdict: Verdict) -> None:
    result = apply(ClauseResult("xcrs.rules", verdict, "S."), _entry())
    assert (result.verdict, result.reason) == (verdict, "")


def test_the_other_kind_of_pvm_host_knows_what_ldtilecfg_does_there(make_host: MakeHost) -> None:
    """The finding of a host with AMX whose kvm_pvm does not give it to guests, as it was seen there."""
    host = make_host("6.18.44-fc", backend="kvm_pvm", supports=lambda name: False)
    finding = ClauseResult(
        "amx.no-perm-vcpu-fully-usable", Verdict.FAIL, "S.",
        what="faults of ldtilecfg_once with no permission", expected="1", observed="0",
    )  # fmt: skip
    assert apply(finding, load(host)).verdict is Verdict.KNOWN
