# SPDX-License-Identifier: Apache-2.0
"""How two hosts' feature MSRs compare.

Source: arch/x86/kvm/x86.c, msrs_to_save_base, msrs_to_save_pmu, emulated_msrs_all, kvm_probe_msr_to_save;
arch/x86/kvm/vmx/nested.c, vmx_set_vmx_msr; arch/x86/include/asm/msr-index.h; Intel SDM volume 4, appendix A of
volume 3 for the VMX capabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["FEATURE_MSRS", "FeatureMsr", "Polarity"]


_LOW, _EVERY = 0xFFFFFFFF, (1 << 64) - 1


class Polarity(Enum):
    """How a guest's bit may relate to the destination's."""

    SUBSET = "the guest has no bit that the destination lacks"
    SUPERSET = "the guest has every bit that the destination has"
    EXACT = "they are equal"


@dataclass(frozen=True, slots=True)
class FeatureMsr:
    """How the bits of a feature MSR compare: SUBSET for those in neither mask.

    ``feature`` is the CPUID feature that shows the MSR to the guest: masking it is the way out where the
    value itself cannot be lowered. ``bits`` names single bits. ``ignored`` bits never matter.
    """

    feature: str | None = None
    superset: int = 0
    exact: int = 0
    ignored: int = 0
    bits: tuple[tuple[int, str], ...] = ()

    @property
    def silent(self) -> bool:
        """Does nothing of it matter?"""
        return self.ignored == _EVERY

    def polarity(self, bit: int) -> Polarity | None:
        """Return how one bit compares, None if it does not matter."""
        if self.ignored >> bit & 1:
            return None
        if self.exact >> bit & 1:
            return Polarity.EXACT
        return Polarity.SUPERSET if self.superset >> bit & 1 else Polarity.SUBSET


# RSBA and RRSBA say that the CPU does something that others do not: a guest has to know, wherever it may come to.
_ARCH_CAPABILITIES = (
    (0, "RDCL_NO"), (1, "IBRS_ALL"), (2, "RSBA"), (3, "SKIP_VMENTRY_L1DFLUSH"), (4, "SSB_NO"), (5, "MDS_NO"),
    (6, "PSCHANGE_MC_NO"), (7, "TSX_CTRL"), (8, "TAA_NO"), (13, "SBDR_SSDP_NO"), (14, "FBSDP_NO"), (15, "PSDP_NO"),
    (17, "FB_CLEAR"), (18, "FB_CLEAR_CTRL"), (19, "RRSBA"), (20, "BHI_NO"), (21, "XAPIC_DISABLE"),
    (24, "PBRSB_NO"), (25, "GDS_CTRL"), (26, "GDS_NO"), (27, "RFDS_NO"), (28, "RFDS_CLEAR"), (62, "ITS_NO"),
)  # fmt: skip
_CONTROLS = FeatureMsr("VMX", superset=_LOW)  # low half: controls that must be 1; high half: that may be 1
_FIXED_0 = FeatureMsr("VMX", superset=_EVERY)
_DERIVED = FeatureMsr("VMX", ignored=_EVERY)  # KVM makes it of the others, or of the guest's CPUID
FEATURE_MSRS: dict[int, FeatureMsr] = {
    0x8B: FeatureMsr(ignored=_EVERY),
    0xCE: FeatureMsr(bits=((31, "CPUID_FAULT"),)),
    0x10A: FeatureMsr("ARCH_CAPABILITIES", superset=1 << 2 | 1 << 19, bits=_ARCH_CAPABILITIES),
    0x345: FeatureMsr("PDCM", exact=0xF3F),  # the formats of LBR and PEBS records are numbers
    # Revision, size of a VMCS, memory type are numbers; bit 48 is a limit and not a feature.
    0x480: FeatureMsr("VMX", exact=0x7FFFFFFF | 0x1FFF << 32 | 0xF << 50, superset=1 << 48),
    **dict.fromkeys(range(0x481, 0x485), _DERIVED),
    # Timer rate, CR3 targets, size of MSR lists, MSEG revision are numbers.
    0x485: FeatureMsr("VMX", exact=0x1F | 0x1FF << 16 | 7 << 25 | _LOW << 32),
    0x486: _FIXED_0,
    0x487: _DERIVED,
    0x488: _FIXED_0,
    0x489: _DERIVED,
    0x48A: _DERIVED,
    0x48B: _CONTROLS,
    0x48C: FeatureMsr("VMX"),
    **dict.fromkeys(range(0x48D, 0x491), _CONTROLS),
    0x491: FeatureMsr("VMX"),
    0xC0011029: FeatureMsr(bits=((1, "LFENCE_SERIALIZE"),)),
}
