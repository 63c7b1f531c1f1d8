# SPDX-License-Identifier: Apache-2.0
"""Two probes compared: what was measured between recorded hosts, what each dimension has to notice, and masks.

What compat says of the recorded kernels was replayed on them, in every direction: test_machines.py.
"""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compat.compat_cases import CASES, HARMLESS, Case, Change, Document, changed, field, same
from tests.data.probes import ARM64, NAMES, X86, offer
from vmm.arm64.id_registers import REGISTERS, Rule
from vmm.arm64.system_registers import FIELDS
from vmm.compat.arm64 import dimensions as arm64
from vmm.compat.offer import Offer, Verdict
from vmm.compat.report import Report, compare
from vmm.compat.x86 import cpuid_rules
from vmm.compat.x86 import dimensions as x86
from vmm.x86 import cpuid_names, msr_names

OFFERS = {name: offer(name) for name in NAMES}
PAIRS = [*itertools.permutations(X86, 2), *itertools.permutations(ARM64, 2)]


def names(report: Report, verdict: Verdict) -> set[str]:
    """The names of the findings with a verdict."""
    return {finding.name for finding in report.findings if finding.verdict is verdict}


def masked_names(report: Report) -> set[str]:
    """The names of what has to be masked."""
    return {mask.name for mask in report.masks}


# Recorded hosts


@pytest.mark.parametrize("name", NAMES)
def test_a_host_can_take_its_own_guest(name: str) -> None:
    report = compare(OFFERS[name], OFFERS[name])
    assert report.verdict is Verdict.OK and not report.findings


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_masking_what_compat_names_is_enough(source: str, destination: str) -> None:
    report = compare(OFFERS[source], OFFERS[destination])
    again = compare(OFFERS[source].masked(report.masks), OFFERS[destination])
    assert not again.masks
    assert names(again, Verdict.NO) == names(report, Verdict.NO)
    if report.verdict is Verdict.MASK:
        assert again.verdict is Verdict.OK


def test_a_host_of_another_architecture_is_refused() -> None:
    report = compare(OFFERS["svm-7.2"], OFFERS["sve-7.2"])
    assert report.verdict is Verdict.NO
    assert [(found.source, found.destination) for found in report.findings] == [("x86", "arm64")]


@pytest.mark.parametrize(
    ("source", "destination", "verdict", "blocking"),
    [
        ("sve-6.1", "sve-6.12", Verdict.NO, {"ID_AA64MMFR1_EL1.HCX"}),
        ("sve-6.1", "sve-7.2", Verdict.OK, set()),
        ("sve-6.12", "sve-7.2", Verdict.MASK, set()),
        ("sve-7.2", "sve-6.12", Verdict.MASK, set()),
        (
            "sve-7.2",
            "sve-6.1",
            Verdict.NO,
            {"CLIDR_EL1", "CCSIDR[1]", "CCSIDR[2]", "CNTPCT_EL0", "CNTP_CTL_EL0", "CNTP_CVAL_EL0"},
        ),
        ("sve-7.2", "sve-7.2-nvhe", Verdict.NO, {"ID_AA64MMFR1_EL1.VH"}),
        ("sve-7.2-nvhe", "sve-7.2", Verdict.NO, {"ID_AA64MMFR1_EL1.VH"}),
        ("sve-7.2-vq12", "sve-7.2-vq124", Verdict.OK, set()),
        ("sve-7.2-vq124", "sve-7.2", Verdict.MASK, set()),
        ("amx-6.1", "amx-7.2", Verdict.OK, set()),
        ("amx-7.2", "amx-6.12", Verdict.MASK, set()),
        ("svm-7.2-less", "svm-7.2", Verdict.OK, set()),
        ("svm-7.2", "svm-7.2-less", Verdict.MASK, set()),
        ("amx-7.2", "svm-7.2", Verdict.NO, {"vendor (CPUID 0)", "IA32_MCG_EXT_CTL (0x4d0)", "TSC frequency"}),
    ],
)
def test_recorded_hosts_get_the_verdict_that_was_measured(
    source: str, destination: str, verdict: Verdict, blocking: set[str]
) -> None:
    report = compare(OFFERS[source], OFFERS[destination])
    assert report.verdict is verdict
    assert names(report, Verdict.NO) == blocking


@pytest.mark.parametrize(
    ("source", "destination", "masks"),
    [
        ("sve-6.12", "sve-7.2", {"TCR2_EL1", "PIRE0_EL1", "PIR_EL1"}),
        ("sve-7.2", "sve-6.12", {"PSCI_VERSION=0x10001", "VENDOR_HYP_BMAP_2", "KVM_CAP_GUEST_MEMFD"}),
        ("sve-7.2", "sve-7.2-vq1", {"KVM_REG_ARM64_SVE_VLS={1}"}),
        ("sve-7.2-vq124", "sve-7.2", {"KVM_REG_ARM64_SVE_VLS={1,2}"}),
        ("svm-7.2", "svm-7.2-less", {"PKRU", "PKU", "AVX2", "SSE4A"}),
        ("amx-6.12", "amx-6.1", {
            "FLUSH_L1D", "FZRM", "FSRS", "FSRC", "KVM_CAP_DISABLE_QUIRKS2=0x7f", "KVM_CAP_MAX_VCPUS=0x400",
            "KVM_CAP_MAX_VCPU_ID=0x1000",
        }),
        ("amx-7.2", "amx-6.12", {
            "CET_U", "CET_S", "SHSTK", "IBT", "KVM_CAP_GUEST_MEMFD", "KVM_CAP_DISABLE_QUIRKS2=0x7ff",
            "KVM_CAP_X2APIC_API=0x3", "IA32_VMX_BASIC=0xd8100011e57ed0",
            "IA32_VMX_PROCBASED_CTLS2=0x6137bff00000000", "IA32_VMX_EPT_VPID_CAP=0xf0106334041",
            "IA32_VMX_TRUE_EXIT_CTLS=0x7fffff00036dfb", "IA32_VMX_TRUE_ENTRY_CTLS=0xf3ff000011fb",
        }),
    ],
)  # fmt: skip
def test_recorded_hosts_need_the_masks_that_were_measured(source: str, destination: str, masks: set[str]) -> None:
    assert masked_names(compare(OFFERS[source], OFFERS[destination])) == masks


def test_a_kvm_that_rewrites_cpuid_blocks_guests_in_both_directions() -> None:
    leaving = compare(OFFERS["pvm-6.18"], OFFERS["svm-7.2"])
    coming = compare(OFFERS["svm-7.2"], OFFERS["pvm-6.18"])
    for report, word in ((leaving, "source"), (coming, "destination")):
        found = next(f for f in report.findings if f.name.startswith("AVX512F"))
        assert found.verdict is Verdict.NO and word in found.note


# One change, and what has to be noticed.


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.base}-{case.name}-{case.verdict.value}")
def test_a_difference_is_noticed(case: Case) -> None:
    guest, destination = changed(case.base, case.ours), changed(case.base, case.theirs)
    report = compare(guest, destination)
    found = [f for d in report.dimensions if d.name == case.dimension for f in d.findings if f.name == case.name]
    assert [f.verdict for f in found] == [case.verdict], [(f.name, f.verdict) for f in report.findings]
    assert tuple(mask.name for mask in found[0].masks) == case.masks
    again = compare(guest.masked(report.masks), destination)
    assert not again.masks
    # What is masked may have been what nobody knew enough about.
    left = {Verdict.MASK: {Verdict.OK}, Verdict.UNKNOWN: {Verdict.OK, Verdict.UNKNOWN}}
    assert again.verdict in left.get(report.verdict, {report.verdict})


def test_every_dimension_has_a_case_that_it_notices() -> None:
    for dimensions, files in ((x86.DIMENSIONS, X86), (arm64.DIMENSIONS, ARM64)):
        noticed = {case.dimension for case in CASES if case.base in files}
        assert noticed == {dimension.name for dimension in dimensions}


@pytest.mark.parametrize(("base", "ours", "theirs"), HARMLESS)
def test_a_difference_that_does_not_matter_is_not_reported(base: str, ours: Change, theirs: Change) -> None:
    assert compare(changed(base, ours), changed(base, theirs)).findings == ()


def test_a_guest_without_sve_needs_neither_vector_lengths_nor_z_registers() -> None:
    def without(made: Document) -> None:
        made["vcpu_features"].remove("SVE")
        made["guest_vector_lengths"] = None
        vector = re.compile(r"[ZP][0-9]+|FFR|VLS|ZCR_EL1")
        made["registers"] = {i: name for i, name in made["registers"].items() if not vector.fullmatch(name)}
        made["registers"] |= {i: "V" for i in made["registers_plain"] if i.startswith("0x60400000001000")}
        field("ID_AA64PFR0_EL1", "SVE", 0, False)(made)
        made["id_registers"]["ID_AA64ZFR0_EL1"]["value"] = "0x0"

    there, back = changed("sve-7.2", same), changed("sve-7.2", without)
    report = compare(there, back)
    assert masked_names(report) == {"SVE"} and report.verdict is Verdict.MASK
    assert compare(there.masked(report.masks), back).verdict is Verdict.OK
    assert compare(back, there).verdict is Verdict.OK


# Tables


def test_the_fields_of_an_id_register_do_not_overlap_and_agree_with_the_other_table() -> None:
    for name, register in REGISTERS.items():
        used = 0
        for each in register.fields:
            assert not used & each.mask, f"{name}.{each.name}"
            used |= each.mask
        places = {each.name: each.low for each in register.fields}
        assert FIELDS.get(name, {}).items() <= places.items()
    assert len({register.encoding for register in REGISTERS.values()}) == len(REGISTERS)


@given(st.integers(0, 15), st.integers(0, 15))
def test_a_safe_value_is_safe_with_both(first: int, second: int) -> None:
    for register in REGISTERS.values():
        for each in register.fields:
            a, b = first & (1 << each.width) - 1, second & (1 << each.width) - 1
            safe = each.safe_value(a, b)
            assert safe == each.safe_value(b, a)
            if safe is None:
                assert each.rule is Rule.FROZEN and a != b
            else:
                assert each.safe_value(safe, a) == safe == each.safe_value(safe, b)


def test_no_two_cpuid_features_or_msrs_share_a_name() -> None:
    spelled = [name for bits in cpuid_names.BITS.values() for name in bits.values()]
    assert len(spelled) == len(set(spelled)) == len(cpuid_names.PLACES)
    by_name = [msr_names.name(index) for index in sorted(msr_names.KNOWN)]
    assert len(by_name) == len(set(by_name))
    ours = {"ARCH_PERFMON", "TSX_CTRL", "SMM", msr_names.NOBODY}
    assert {feature for index in msr_names.KNOWN for feature in msr_names.gate(index)} <= {*spelled, *ours}
    assert {feature for needing in cpuid_rules.BY_XFEATURE.values() for feature in needing} <= set(spelled)
    assert {*cpuid_rules.REQUIRED, *cpuid_rules.BY_CAPABILITY, *cpuid_rules.AS_A_WHOLE.values()} <= set(spelled)


# Properties

_NUMBERS = st.integers(0, 0xFFFFFFFF)


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, list[tuple[str, int]]]:
    """A recorded host and some of its numbers with other values."""
    name = draw(st.sampled_from(NAMES))
    keys = st.sampled_from(sorted(OFFERS[name].values))
    return name, draw(st.lists(st.tuples(keys, _NUMBERS | st.sampled_from([0, 1, 1 << 31])), min_size=1, max_size=12))


@settings(max_examples=150)
@given(changes(), st.booleans())
def test_masking_what_compat_names_is_enough_for_an_invented_host(
    made: tuple[str, list[tuple[str, int]]], away: bool
) -> None:
    name, values = made
    recorded = OFFERS[name]
    numbers = {**recorded.values, **{key: value or int(key == "tsc.khz") for key, value in values}}
    for key in [key for key in numbers if key.startswith("forced.")]:  # every guest has what is forced on it
        numbers[key.removeprefix("forced.")] = numbers.get(key.removeprefix("forced."), 0) | numbers[key]
    numbers["xsave2"] = 1 << 40  # KVM takes what it saves, however large a component was made
    invented = Offer(recorded.about, numbers)
    source, destination = (recorded, invented) if away else (invented, recorded)
    report = compare(source, destination)
    again = compare(source.masked(report.masks), destination)
    assert not again.masks
    assert names(again, Verdict.NO) <= names(report, Verdict.NO)
    assert report.verdict is not Verdict.MASK or again.verdict is Verdict.OK
    assert compare(invented, invented).verdict is Verdict.OK
    json.dumps(report.to_json())
