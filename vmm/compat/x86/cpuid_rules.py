# SPDX-License-Identifier: Apache-2.0
"""How two hosts' CPUID leaves compare: which registers are feature bits, which are numbers, which say nothing.

Source: Intel SDM volume 2, instruction CPUID; AMD APM volume 3, appendix E; arch/x86/kvm/cpuid.c,
kvm_set_cpu_caps and __do_cpuid_func, for what KVM offers; arch/x86/include/uapi/asm/kvm_para.h.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmm.x86.cpuid_names import PLACES, Place
from vmm.x86.xfeature import AVX512, MPX, XTILE, XFeature, mask

__all__ = ["AS_A_WHOLE", "BY_CAPABILITY", "BY_XFEATURE", "GROUPS", "NUMBERS", "REQUIRED", "SILENT", "Number"]


# Not KVM's to give: a VMM sets the first by what a capability says (Documentation/virt/kvm/api.rst, 4.46), and the
# others, about its own topology and itself, as it likes.
BY_CAPABILITY: dict[str, str | None] = {
    "TSC_DEADLINE": "KVM_CAP_TSC_DEADLINE_TIMER", "HYPERVISOR": None, "HTT": None, "CMP_LEGACY": None,
}  # fmt: skip
# What every 64-bit guest needs: no mask can take it away.
REQUIRED = frozenset({
    "FPU", "TSC", "MSR", "PAE", "CX8", "CMOV", "FXSR", "SSE", "SSE2", "SYSCALL", "LM",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Number:
    """Bits of a register that are a number of which the guest may have no more than the destination.

    ``inverted`` bits say that something is missing: the guest must have all that the destination has. With
    ``optional`` a 0 on the destination says nothing.
    """

    name: str
    high: int
    low: int
    inverted: bool = False
    optional: bool = False

    @property
    def mask(self) -> int:
        """The bits of the number."""
        return (1 << self.high + 1) - (1 << self.low)

    def of(self, register: int) -> int:
        """Return the number that a register holds."""
        return (register & self.mask) >> self.low


NUMBERS: dict[Place, tuple[Number, ...]] = {
    (1, 0, "ebx"): (Number("CLFLUSH_SIZE", 15, 8),),
    (0xA, 0, "eax"): (
        Number("PMU_VERSION", 7, 0), Number("PMU_COUNTERS", 15, 8), Number("PMU_COUNTER_WIDTH", 23, 16),
        Number("PMU_EVENTS", 31, 24),
    ),
    (0xA, 0, "ebx"): (Number("PMU_EVENTS_MISSING", 31, 0, inverted=True),),
    (0xA, 0, "edx"): (Number("PMU_FIXED_COUNTERS", 4, 0), Number("PMU_FIXED_COUNTER_WIDTH", 12, 5)),
    (0x24, 0, "ebx"): (Number("AVX10_VERSION", 7, 0),),
    (0x80000008, 0, "eax"): (
        Number("MAXPHYADDR", 7, 0), Number("LINEAR_ADDRESS_BITS", 15, 8),
        Number("GUEST_MAXPHYADDR", 23, 16, optional=True),
    ),
    (0x8000000A, 0, "eax"): (Number("SVM_REVISION", 7, 0),),
    (0x8000000A, 0, "ebx"): (Number("SVM_ASIDS", 31, 0),),
    (0x80000021, 0, "ebx"): (Number("RAP_SIZE", 23, 16),),
    (0x80000022, 0, "ebx"): (Number("PMU_CORE_COUNTERS", 3, 0),),
}  # fmt: skip
# Leaves whose registers belong together: they are equal, or the feature that shows them is masked.
AS_A_WHOLE = {0x12: "SGX", 0x14: "INTEL_PT", 0x1B: "PCONFIG"}
# Leaves and registers that a VMM sets as it likes, or that only describe: (leaf, None) is the whole leaf.
SILENT: frozenset[tuple[int, str | None]] = frozenset({
    (0, None),  # highest leaf, vendor
    (1, "eax"), (1, "ebx"),  # model; APIC id, threads (CLFLUSH_SIZE is compared)
    (2, None), (3, None), (4, None), (5, None),  # caches, serial number, MONITOR
    (6, "ebx"), (6, "ecx"), (6, "edx"),  # power management, of which KVM offers only ARAT
    (7, "eax"),  # highest subleaf, of subleaf 0
    (0xA, "ecx"), (0xA, "edx"),  # fixed counters as a bitmap; flags above the numbers compared
    (0xB, None), (0x1F, None),  # topology
    (0xD, None),  # compared as xfeatures
    (0x15, None), (0x16, None), (0x18, None), (0x1A, None),  # frequencies, TLBs, kind of core
    (0x1D, None), (0x1E, None),  # compared as AMX
    (0x24, "eax"),  # highest subleaf
    (0x40000000, None), (0x40000001, "edx"), (0x40000010, None),  # signature, hints, frequencies
    (0x80000000, None), (0x80000001, "eax"), (0x80000001, "ebx"),  # highest leaf, model
    (0x80000002, None), (0x80000003, None), (0x80000004, None),  # the model's name
    (0x80000005, None), (0x80000006, None), (0x80000019, None), (0x8000001A, None), (0x8000001D, None),
    (0x80000007, "eax"), (0x80000007, "ebx"), (0x80000007, "ecx"),
    (0x80000008, "eax"), (0x80000008, "ecx"), (0x80000008, "edx"),  # numbers compared; cores
    (0x8000000A, "ecx"),
    (0x8000001E, None), (0x80000026, None),  # topology
    (0x8000001F, "ebx"), (0x8000001F, "ecx"), (0x8000001F, "edx"),  # for VMs that cannot be saved this way
    (0x80000021, "ebx"), (0x80000022, "ebx"),
    (0xC0000000, None), (0xC0000002, None), (0xC0000003, None), (0xC0000004, None),
})  # fmt: skip

# Components that come together or not at all: Intel SDM volume 1, 13.3; arch/x86/kvm/x86.c, __kvm_set_xcr.
GROUPS = (MPX, AVX512, XTILE, mask(XFeature.CET_U, XFeature.CET_S))
_AVX = (
    "AVX", "F16C", "FMA", "FMA4", "XOP", "AVX2", "VAES", "VPCLMULQDQ", "AVX_VNNI", "AVX_IFMA", "AVX_VNNI_INT8",
    "AVX_VNNI_INT16", "AVX_NE_CONVERT", "SHA512", "SM3", "SM4",
)  # fmt: skip
_AVX512 = (*(name for name in PLACES if name.startswith("AVX512")), "AVX10", "AVX10_512", "AMX_AVX512")
_AMX = tuple(name for name in PLACES if name.startswith("AMX_"))
# The features that are of no use without a component.
BY_XFEATURE: dict[int, tuple[str, ...]] = {
    XFeature.YMM: (*_AVX, *_AVX512, "AVX10_128", "AVX10_256", "AVX10_VNNI_INT"),
    XFeature.BNDREGS: ("MPX",),
    XFeature.BNDCSR: ("MPX",),
    **dict.fromkeys((XFeature.OPMASK, XFeature.ZMM_HI256, XFeature.HI16_ZMM), _AVX512),
    XFeature.PKRU: ("PKU",),
    **dict.fromkeys((XFeature.CET_U, XFeature.CET_S), ("SHSTK", "IBT")),
    **dict.fromkeys((XFeature.XTILECFG, XFeature.XTILEDATA), (*_AMX, "XFD")),
    XFeature.APX: ("APX_F",),
}
