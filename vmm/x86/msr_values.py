# SPDX-License-Identifier: Apache-2.0
"""Values that MSRs of every guest keep to the bit, for who wants to see whether they do."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vmm.x86.msr_names import Msr

__all__ = ["KEPT", "UNUSED"]

# What every CPU in 64-bit mode has, each with a legal value unlike the one at reset. Of SYSENTER's addresses AMD has
# 32 bits. Source: Intel SDM volume 4; AMD APM volume 2, 6.1; arch/x86/kvm/svm/svm.c, svm_set_msr.
KEPT: Mapping[Msr, int] = MappingProxyType(
    {
        Msr.SYSENTER_CS: 0x1230,
        Msr.SYSENTER_ESP: 0x12345678,
        Msr.SYSENTER_EIP: 0xFEDCBA98,
        Msr.STAR: 0x0023001000000000,
        Msr.LSTAR: 0xFFFFFFFF81234560,
        Msr.CSTAR: 0xFFFFFFFF81234570,
        Msr.SYSCALL_MASK: 0x47700,
        Msr.KERNEL_GS_BASE: 0xFFFF888012345000,
        Msr.PAT: 0x0006040600070406,
    }
)
# Those of them that mean nothing to a guest without SYSCALL, SYSENTER and SWAPGS.
UNUSED: Mapping[Msr, int] = MappingProxyType({index: value for index, value in KEPT.items() if index != Msr.PAT})
