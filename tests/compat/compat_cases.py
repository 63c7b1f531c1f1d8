# SPDX-License-Identifier: Apache-2.0
"""Differences between two hosts, each made by one change to a recorded probe, and the finding it has to lead to."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.data.probes import document, offer
from vmm.arm64.id_registers import REGISTERS
from vmm.compat.offer import Offer, Verdict

__all__ = ["CASES", "HARMLESS", "Case", "Change", "Document", "changed", "field", "same"]

Document = dict[str, Any]
Change = Callable[[Document], None]


def leaf(made: Document, place: str, change: Callable[[dict[str, int]], object]) -> None:
    """Change the registers of a CPUID leaf such as 00000007.0, with permission and without."""
    for holder in (made, made["permission"]):
        if holder and "cpuid" in holder:
            old = [text for text in holder["cpuid"] if text.startswith(f"{place}: ")]
            values = dict.fromkeys(("eax", "ebx", "ecx", "edx"), 0)
            values |= {name: int(value, 16) for name, value in re.findall(r"(e.x)=([0-9a-f]{8})", " ".join(old))}
            change(values)
            line = " ".join(f"{name}={value:08x}" for name, value in values.items())
            holder["cpuid"] = [*(text for text in holder["cpuid"] if text not in old), f"{place}: {line}"]


def bit(place: str, register: str, number: int, value: int) -> Change:
    """Set or clear one CPUID bit."""

    def change(values: dict[str, int]) -> None:
        values[register] = values[register] & ~(1 << number) | value << number

    return lambda made: leaf(made, place, change)


def regs(place: str, **registers: int) -> Change:
    """Set registers of a CPUID leaf."""
    return lambda made: leaf(made, place, lambda values: values.update(registers))


def forced(place: str, **registers: int) -> Change:
    """Have bits that a KVM gives to every guest."""
    line = " ".join(f"{name}={registers.get(name, 0):08x}" for name in ("eax", "ebx", "ecx", "edx"))
    return put("cpuid_forced", value=[f"{place}: {line}"])


def put(*keys: str, value: Any) -> Change:
    """Set what is at a path of keys."""

    def change(made: Document) -> None:
        for key in keys[:-1]:
            made = made[key]
        made[keys[-1]] = value

    return change


def drop(*keys: str) -> Change:
    """Remove what is at a path of keys."""

    def change(made: Document) -> None:
        for key in keys[:-1]:
            made = made[key]
        del made[keys[-1]]

    return change


def unlist(key: str, value: str) -> Change:
    """Remove one value from a list, or a key from an object."""

    def change(made: Document) -> None:
        if isinstance(made[key], list):
            made[key] = [each for each in made[key] if each != value]
        else:
            del made[key][value]

    return change


def field(register: str, name: str, number: int, writable: bool = True) -> Change:
    """Set a field of an ID register, and whether it can be written."""

    def change(made: Document) -> None:
        entry = made["id_registers"].setdefault(register, {"value": "0x0", "writable": "0x0"})
        known = next(each for each in REGISTERS[register].fields if each.name == name)
        entry["value"] = f"{int(entry['value'], 16) & ~known.mask | number << known.low:#x}"
        entry["writable"] = f"{int(entry['writable'], 16) & ~known.mask | known.mask * writable:#x}"

    return change


def all_of(*changes: Change) -> Change:
    """Make several changes."""

    def change(made: Document) -> None:
        for each in changes:
            each(made)

    return change


def unlisted_msr(index: int) -> Change:
    return unlist("msrs", f"{index:#010x}")


def same(made: Document) -> None:
    """Change nothing."""


class Case(NamedTuple):
    """A guest of ``base`` changed by ``ours``, on ``base`` changed by ``theirs``: the finding it has to lead to.

    ``masks`` are the names of the masks of the finding.
    """

    base: str
    ours: Change
    theirs: Change
    dimension: str
    verdict: Verdict
    name: str
    masks: tuple[str, ...] = ()


def changed(base: str, change: Change) -> Offer:
    """The offer of a recorded probe with a change."""
    made = document(base)
    change(made)
    return offer(made)


_AMX_FEATURES = ("AMX_BF16", "AMX_TILE", "AMX_INT8", "XFD")
_TILES = ("XTILECFG", *_AMX_FEATURES, "XTILEDATA")
_NO, _MASK, _UNKNOWN = Verdict.NO, Verdict.MASK, Verdict.UNKNOWN
CASES = [
    Case("amx-7.2", same, put("cpu", "vendor", value="AuthenticAMD"), "vendor", _NO, "vendor (CPUID 0)"),
    # Extended state
    Case("amx-7.2", same, bit("0000000d.0", "eax", 9, 0), "xfeatures", _MASK, "PKRU (XCR0[9])", ("PKRU", "PKU")),
    Case(
        "amx-7.2", same, bit("0000000d.0", "eax", 18, 0), "xfeatures", _MASK, "XTILEDATA (XCR0[18])", _TILES
    ),
    Case("amx-7.2", same, bit("0000000d.0", "eax", 1, 0), "xfeatures", _NO, "SSE (XCR0[1])"),
    Case("amx-7.2", same, forced("0000000d.0", eax=1 << 19), "xfeatures", _NO, "APX (XCR0[19])"),
    Case("amx-7.2", same, all_of(regs("0000000d.9", ebx=832), forced("0000000d.0", eax=1 << 9)), "XSAVE layout", _NO,
         "PKRU (CPUID D.9)"),
    Case("amx-7.2", same, regs("0000000d.9", ebx=832), "XSAVE layout", _MASK, "PKRU (CPUID D.9)", ("PKRU", "PKU")),
    Case("amx-7.2", same, regs("0000000d.12", eax=32), "XSAVE layout", _MASK, "CET_S (CPUID D.12)",
         ("CET_U", "SHSTK", "IBT", "CET_S")),
    Case("amx-7.2", same, regs("0000000d.18", ecx=2), "XSAVE layout", _MASK, "XTILEDATA (CPUID D.18)", _TILES),
    Case("amx-7.2", same, put("permission", "xsave2", value=4096), "XSAVE layout", _NO, "KVM_CAP_XSAVE2"),
    Case("amx-7.2", same, regs("0000001d.1", ebx=0x00080020), "AMX limits", _MASK, "bytes_per_row (CPUID 1D.1)",
         _TILES),
    Case("amx-7.2", same, regs("0000001e.0", ebx=0x2010), "AMX limits", _MASK, "tmul_maxn (CPUID 1E.0)", _TILES),
    Case("amx-7.2", same, put("permission", value={"refused": "EBUSY"}), "guest permission", _UNKNOWN,
         "guest permission"),
    Case("amx-7.2", drop("permission"), same, "guest permission", _UNKNOWN, "guest permission"),
    # CPUID
    Case("svm-7.2", same, bit("00000007.0", "ebx", 8, 0), "CPUID features", _MASK, "BMI2 (CPUID 7.0 EBX[8])",
         ("BMI2",)),
    Case("svm-7.2", same, bit("80000001.0", "edx", 29, 0), "CPUID features", _NO, "LM (CPUID 80000001.0 EDX[29])"),
    Case("svm-7.2", bit("00000007.1", "eax", 9, 1), same, "CPUID features", _MASK, "CPUID 7.1 EAX[9]",
         ("CPUID 7.1 EAX[9]",)),
    Case("svm-7.2", forced("00000007.0", ebx=1 << 8), bit("00000007.0", "ebx", 8, 0), "CPUID features", _NO,
         "BMI2 (CPUID 7.0 EBX[8])"),
    Case("svm-7.2", bit("00000007.0", "ebx", 8, 0), forced("00000007.0", ebx=1 << 8), "CPUID features", _NO,
         "BMI2 (CPUID 7.0 EBX[8])"),
    Case("svm-7.2", bit("00000001.0", "ecx", 24, 1),
         all_of(bit("00000001.0", "ecx", 24, 0), put("capabilities", "KVM_CAP_TSC_DEADLINE_TIMER", value=0)),
         "CPUID features", _MASK, "TSC_DEADLINE (CPUID 1.0 ECX[24])", ("TSC_DEADLINE",)),
    Case("svm-7.2", regs("80000008.0", eax=0x3030), regs("80000008.0", eax=0x302E), "CPUID numbers", _MASK,
         "MAXPHYADDR (CPUID 80000008.0 EAX[7:0])", ("MAXPHYADDR=46",)),
    Case("amx-7.2", regs("0000000a.0", eax=0x07300402), regs("0000000a.0", eax=0x07300202), "CPUID numbers", _MASK,
         "PMU_COUNTERS (CPUID A.0 EAX[15:8])", ("PMU_COUNTERS=2",)),
    Case("amx-7.2", regs("0000000a.0", ebx=1), regs("0000000a.0", ebx=6), "CPUID numbers", _MASK,
         "PMU_EVENTS_MISSING (CPUID A.0 EBX[31:0])", ("PMU_EVENTS_MISSING=7",)),
    Case("amx-7.2", regs("00000099.0", eax=5), same, "other CPUID leaves", _UNKNOWN, "CPUID 99.0 EAX"),
    Case("amx-7.2", all_of(bit("00000007.0", "ebx", 25, 1), regs("00000014.0", ebx=0xF)),
         all_of(bit("00000007.0", "ebx", 25, 1), regs("00000014.0", ebx=0x7)), "other CPUID leaves", _MASK,
         "CPUID 14 (INTEL_PT)", ("INTEL_PT",)),
    # MSRs
    Case("amx-7.2", put("feature_msrs", "0x0000010a", "value", value="0x29"),
         put("feature_msrs", "0x0000010a", "value", value="0x9"), "feature MSRs", _MASK,
         "IA32_ARCH_CAPABILITIES (MDS_NO)", ("IA32_ARCH_CAPABILITIES (MDS_NO)",)),
    Case("amx-7.2", put("feature_msrs", "0x0000010a", "value", value="0x9"),
         put("feature_msrs", "0x0000010a", "value", value="0x8000d"), "feature MSRs", _MASK,
         "IA32_ARCH_CAPABILITIES (RSBA RRSBA)", ("IA32_ARCH_CAPABILITIES (RSBA RRSBA)",)),
    Case("amx-7.2", same, put("feature_msrs", "0x00000480", "value", value="0x1d8100011e57ed1"), "feature MSRs",
         _MASK, "IA32_VMX_BASIC", ("VMX",)),
    Case("amx-7.2", put("feature_msrs", "0x00000485", "value", value="0x20000065"),
         put("feature_msrs", "0x00000485", "value", value="0x20000064"), "feature MSRs", _MASK, "IA32_VMX_MISC",
         ("VMX",)),
    Case("amx-7.2", same, drop("feature_msrs", "0x0000048c"), "feature MSRs", _MASK, "IA32_VMX_EPT_VPID_CAP",
         ("VMX",)),
    Case("amx-7.2", same, drop("feature_msrs"), "feature MSRs", _UNKNOWN, "PLATFORM_INFO"),
    Case("amx-7.2", same, all_of(unlisted_msr(0x1C4), put("msrs_unlisted", value=[])), "MSRs to save", _MASK,
         "IA32_XFD (0x1c4)", ("XFD",)),
    Case("amx-7.2", same, unlisted_msr(0xC0000082), "MSRs to save", _NO, "LSTAR (0xc0000082)"),
    Case("amx-7.2", same, drop("msrs"), "MSRs to save", _UNKNOWN, "MSR list"),
    # Time and capabilities
    Case("pvm-6.18", put("tsc", value={"khz": 2000000, "scaling": False}),
         put("tsc", value={"khz": 2000600, "scaling": False}), "TSC", _NO, "TSC frequency"),
    Case("pvm-6.18", same, put("tsc", value={"khz": None, "scaling": False}), "TSC", _UNKNOWN, "TSC frequency"),
    Case("amx-7.2", same, put("capabilities", "KVM_CAP_XCRS", value=0), "capabilities", _NO, "KVM_CAP_XCRS"),
    Case("amx-7.2", same, put("capabilities", "KVM_CAP_SREGS2", value=0), "capabilities", _MASK, "KVM_CAP_SREGS2",
         ("KVM_CAP_SREGS2",)),
    Case("amx-7.2", same, drop("capabilities", "KVM_CAP_SREGS2"), "capabilities", _UNKNOWN, "KVM_CAP_SREGS2"),
    Case("amx-7.2", same, put("capabilities", "KVM_CAP_MAX_VCPUS", value=288), "capabilities", _MASK,
         "KVM_CAP_MAX_VCPUS", ("KVM_CAP_MAX_VCPUS=0x120",)),
    # arm64: what VCPU_INIT and the VM's creation choose
    Case("sve-7.2", same, unlist("vcpu_features", "PMU_V3"), "vCPU features", _MASK, "PMU_V3", ("PMU_V3",)),
    Case("sve-7.2", same, unlist("vcpu_features", "PTRAUTH_GENERIC"), "vCPU features", _MASK,
         "PTRAUTH_ADDRESS and PTRAUTH_GENERIC", ("PTRAUTH", "PTRAUTH")),
    Case("sve-7.2", same, put("guest_vector_lengths", value=[2, 4]), "vector lengths", _MASK,
         "KVM_REG_ARM64_SVE_VLS", ("SVE",)),
    Case("sve-7.2", same, put("guest_vector_lengths", value=None), "vector lengths", _UNKNOWN,
         "KVM_REG_ARM64_SVE_VLS"),
    Case("sve-7.2", same, put("ipa_bits", value=40), "address space", _MASK, "guest physical addresses",
         ("IPA=40",)),
    Case("sve-7.2", same, drop("ipa_bits"), "address space", _UNKNOWN, "guest physical addresses"),
    Case("sve-7.2", same, put("implementation", "MIDR_EL1", value="0x410fd4f0"), "implementation", _MASK, "MIDR_EL1",
         ("WRITABLE_IMP_ID_REGS",)),
    Case("sve-6.12", same, put("implementation", "REVIDR_EL1", value="0x1"), "implementation", _NO, "REVIDR_EL1"),
    Case("sve-7.2", same, drop("implementation", "AIDR_EL1"), "implementation", _UNKNOWN, "AIDR_EL1"),
    # ID registers: one case a rule
    Case("sve-7.2", same, field("ID_AA64ZFR0_EL1", "F64MM", 0), "ID registers", _MASK, "ID_AA64ZFR0_EL1.F64MM",
         ("ID_AA64ZFR0_EL1.F64MM=0",)),
    Case("sve-7.2", field("ID_AA64ZFR0_EL1", "F64MM", 1, False), field("ID_AA64ZFR0_EL1", "F64MM", 0),
         "ID registers", _MASK, "ID_AA64ZFR0_EL1.F64MM", ("SVE",)),
    Case("sve-7.2", same, field("ID_AA64ISAR0_EL1", "TLB", 0, False), "ID registers", _MASK, "ID_AA64ISAR0_EL1.TLB",
         ("ID_AA64ISAR0_EL1.TLB=0",)),
    Case("sve-7.2", field("ID_AA64ISAR0_EL1", "TLB", 0), field("ID_AA64ISAR0_EL1", "TLB", 2, False), "ID registers",
         _NO, "ID_AA64ISAR0_EL1.TLB"),
    Case("sve-7.2", field("ID_AA64MMFR0_EL1", "TGran64", 0), field("ID_AA64MMFR0_EL1", "TGran64", 15),
         "ID registers", _MASK, "ID_AA64MMFR0_EL1.TGran64", ("ID_AA64MMFR0_EL1.TGran64=15",)),
    Case("sve-7.2", field("ID_AA64MMFR1_EL1", "SpecSEI", 0), field("ID_AA64MMFR1_EL1", "SpecSEI", 1),
         "ID registers", _MASK, "ID_AA64MMFR1_EL1.SpecSEI", ("ID_AA64MMFR1_EL1.SpecSEI=1",)),
    Case("sve-7.2", field("ID_AA64MMFR0_EL1", "TGran4_2", 2), field("ID_AA64MMFR0_EL1", "TGran4_2", 0),
         "ID registers", _MASK, "ID_AA64MMFR0_EL1.TGran4_2", ("ID_AA64MMFR0_EL1.TGran4_2=1",)),
    Case("sve-7.2", same, field("ID_AA64ISAR1_EL1", "API", 3, False), "ID registers", _MASK, "ID_AA64ISAR1_EL1.API",
         ("PTRAUTH", "PTRAUTH")),
    Case("sve-7.2", field("ID_AA64MMFR1_EL1", "CMOW", 1), same, "ID registers", _NO, "ID_AA64MMFR1_EL1.CMOW"),
    Case("sve-7.2", field("CTR_EL0", "CWG", 3, False), same, "ID registers", _NO, "CTR_EL0.CWG"),
    Case("sve-7.2", field("CTR_EL0", "L1Ip", 3), field("CTR_EL0", "L1Ip", 2), "ID registers", _MASK, "CTR_EL0.L1Ip",
         ("CTR_EL0.L1Ip=2",)),
    Case("sve-7.2", put("id_registers", "ID_AA64ISAR0_EL1", "value", value="0x1"),
         put("id_registers", "ID_AA64ISAR0_EL1", "value", value="0x0"), "ID registers", _NO,
         "ID_AA64ISAR0_EL1 bits 0x1"),
    Case("sve-7.2", put("id_registers", "ID_AA64ZFR0_EL1", "value", value="0x100"),
         put("id_registers", "ID_AA64ZFR0_EL1", "value", value="0x0"), "ID registers", _MASK,
         "ID_AA64ZFR0_EL1 bits 0x100", ("SVE",)),
    Case("sve-7.2", put("id_registers", "S3_0_C0_C4_3", value={"value": "0x1", "writable": "0x0"}), same,
         "ID registers", _UNKNOWN, "S3_0_C0_C4_3"),
    Case("sve-7.2", field("ID_AA64PFR0_EL1", "MPAM", 1, False),
         all_of(field("ID_AA64PFR0_EL1", "MPAM", 0, False), put("implementation", "MIDR_EL1", value="0x1")),
         "ID registers", _UNKNOWN, "ID_AA64PFR0_EL1.MPAM"),
    # The rest of the state
    Case("sve-7.2", same, all_of(put("caches_settable", value=False), put("caches", "CLIDR_EL1", value="0x123")),
         "caches", _NO, "CLIDR_EL1"),
    Case("sve-7.2", put("caches", "CCSIDR[1]", value="0x0"),
         field("CTR_EL0", "IminLine", 5), "caches", _NO, "CCSIDR[1]"),
    Case("sve-7.2", put("caches", "CLIDR_EL1", value="0x2000021"),
         all_of(put("caches", "CLIDR_EL1", value="0x9200003"), field("CTR_EL0", "IDC", 0)), "caches", _NO,
         "CLIDR_EL1"),
    Case("sve-7.2", same, put("firmware", "PSCI_VERSION", value="0x10000"), "firmware registers", _MASK,
         "PSCI_VERSION", ("PSCI_VERSION=0x10000",)),
    Case("sve-7.2", put("firmware", "WORKAROUND_1", value="0x2"), put("firmware", "WORKAROUND_1", value="0x1"),
         "firmware registers", _NO, "WORKAROUND_1"),
    Case("sve-7.2", put("firmware", "WORKAROUND_2", value="0x2"), put("firmware", "WORKAROUND_2", value="0x1"),
         "firmware registers", _NO, "WORKAROUND_2"),
    Case("sve-7.2", same, put("firmware", "STD_BMAP", value="0x0"), "firmware registers", _MASK, "STD_BMAP",
         ("STD_BMAP=0x0",)),
    Case("sve-7.2", same, unlist("registers", "0x603000000013c080"), "register list", _NO, "SCTLR_EL1"),
    Case("sve-6.12", field("ID_AA64MMFR3_EL1", "TCRX", 1), all_of(
        field("ID_AA64MMFR3_EL1", "TCRX", 1), unlist("registers", "0x603000000013c103")), "register list", _MASK,
        "TCR2_EL1", ("ID_AA64MMFR3_EL1.TCRX=0", "TCR2_EL1")),
    Case("sve-6.12", field("ID_AA64MMFR3_EL1", "TCRX", 1, False), all_of(
        field("ID_AA64MMFR3_EL1", "TCRX", 1), unlist("registers", "0x603000000013c103")), "register list", _NO,
        "TCR2_EL1"),
    Case("sve-7.2", same, put("counter_hz", value=24000000), "counter", _NO, "CNTFRQ_EL0"),
    Case("sve-7.2", put("counter_hz", value=None), same, "counter", _UNKNOWN, "CNTFRQ_EL0"),
    Case("sve-7.2", same, put("capabilities", "KVM_CAP_ONE_REG", value=0), "capabilities", _NO, "KVM_CAP_ONE_REG"),
]  # fmt: skip


# Differences that are none for a guest.
HARMLESS: list[tuple[str, Change, Change]] = [
    ("amx-7.2", same, unlisted_msr(0x40000022)),  # Hyper-V's, which no guest has by its CPUID
    ("amx-7.2", same, unlisted_msr(0x390)),  # keeps nothing
    ("amx-7.2", same, all_of(unlisted_msr(0x1D9), put("msrs_unlisted", value=["0x000001d9"]))),
    ("amx-7.2", same, bit("00000001.0", "ecx", 31, 0)),  # HYPERVISOR is the VMM's word
    ("amx-7.2", same, put("tsc", value={"khz": 3000000, "scaling": True})),
    ("pvm-6.18", put("tsc", value={"khz": 2000000, "scaling": False}),
     put("tsc", value={"khz": 2000400, "scaling": False})),
    ("svm-7.2", same, put("cpu", "vendor", value="HygonGenuine")),
    ("svm-7.2", same, put("cpu", "model", value="Another CPU")),
    ("amx-7.2", same, regs("0000001e.0", ebx=0x8020)),
    ("amx-7.2", same, put("capabilities", "KVM_CAP_DIRTY_LOG_RING", value=0)),
    ("sve-7.2", field("CTR_EL0", "DminLine", 3), same),
    ("sve-7.2", field("ID_AA64ISAR2_EL1", "MOPS", 0), field("ID_AA64ISAR2_EL1", "MOPS", 1)),
    ("sve-7.2", field("ID_AA64PFR0_EL1", "MPAM", 1, False), field("ID_AA64PFR0_EL1", "MPAM", 0, False)),
    ("sve-7.2", same, put("firmware", "PSCI_VERSION", value="0x20000")),
    ("sve-7.2", same, put("ipa_bits", value=52)),
    ("sve-7.2", same, put("page_size", value=65536)),
    ("sve-7.2", put("caches", "CLIDR_EL1", value="0x9200003"), same),
]  # fmt: skip
