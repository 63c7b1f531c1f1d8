# SPDX-License-Identifier: Apache-2.0
"""The rows of LAPIC: each register of the APIC's page, in xAPIC mode and, as a table of its own, in x2APIC mode.

KVM keeps the page as it is given but for what it makes of other registers. Source: arch/x86/kvm/lapic.c,
kvm_apic_set_state, kvm_apic_state_fixup, kvm_lapic_reset; Intel SDM volume 3, table 11-1 (offsets), 11.4.7.1 (RESET),
11.4.7.3 (INIT, which keeps the ID); AMD APM volume 2, 16.3.2.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from functools import cached_property

from vmm.kvm.vcpu import Vcpu
from vmm.state.architecture import pieces
from vmm.state.world.fields import Leaf, StructCodec
from vmm.state.world.row import After, Free, Made, Of, OneOf, Refusal, Row, Untold, Values
from vmm.state.world.table import Table
from vmm.x86.cpuid import given

__all__ = ["LAPIC", "LAPIC_X2", "LOADED", "X2_ICR", "X2_IDENTIFIER", "X2_READ", "X2_WRITTEN", "LapicCodec"]

_SLOT, _SLOTS = 16, 64
_NAMES: Mapping[int, str] = {
    0x20: "ID", 0x30: "VERSION", 0x80: "TPR", 0x90: "APR", 0xA0: "PPR", 0xB0: "EOI", 0xC0: "RRR", 0xD0: "LDR",
    0xE0: "DFR", 0xF0: "SVR",
    **{0x100 + _SLOT * number: f"ISR{number}" for number in range(8)},
    **{0x180 + _SLOT * number: f"TMR{number}" for number in range(8)},
    **{0x200 + _SLOT * number: f"IRR{number}" for number in range(8)},
    0x280: "ESR", 0x2F0: "LVT_CMCI", 0x300: "ICR", 0x310: "ICR2", 0x320: "LVT_TIMER", 0x330: "LVT_THERMAL",
    0x340: "LVT_PMC", 0x350: "LVT_LINT0", 0x360: "LVT_LINT1", 0x370: "LVT_ERROR", 0x380: "TMICT", 0x390: "TMCCT",
    0x3E0: "TDCR", 0x3F0: "SELF_IPI",
}  # fmt: skip


def _leaves() -> tuple[Leaf, ...]:
    named = [(_NAMES.get(at, f"reserved{at:#x}"), at, 4) for at in range(0, _SLOT * _SLOTS, _SLOT)]
    return (*named, *((f"{name}.rest", at + 4, _SLOT - 4) for name, at, _ in named))


class LapicCodec(StructCodec):
    """The APIC's page: a register in the first four bytes of every sixteen."""

    def __init__(self) -> None:
        super().__init__("LAPIC", "kvm_lapic_state")

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """The registers, and what is between them."""
        return _leaves()


_STATE = "arch/x86/kvm/lapic.c, kvm_apic_get_state, kvm_apic_set_state"
_RESET = "arch/x86/kvm/lapic.c, kvm_lapic_reset; Intel SDM volume 3, 11.4.7.1"
_LINES = "arch/x86/kvm/lapic.c, kvm_lapic_reset; Intel SDM volume 3, 11.5.1 (masked by RESET and INIT)"
_NO_INTERRUPT = 0xFFFF_0000  # vectors below 16 are none
_MASKED = 1 << 16
_EXTINT = 7 << 8
# The last round has no interrupt in service, so that PPR is TPR: kvm_apic_set_state counts those in service only
# after it has made PPR.
_TPR, _TOP_ISR = Of(0x25, 0xEA, 0x10), Of(0x8000_0001, 1, 0)


def _version(vcpu: Vcpu) -> int:
    """An integrated APIC with six LVT entries, which can withhold EOIs if it can be an x2APIC."""
    directed = given(vcpu).has("X2APIC")
    return 0x14 | 5 << 16 | directed << 24


def _upper(priority: int) -> OneOf:
    """What a run leaves of a priority."""
    return OneOf((priority, priority & 0xF0), "a VMCB has four bits of it: svm/svm.c, sync_cr8_to_lapic")


def _line(vcpu: Vcpu) -> int:
    """LINT0 after INIT: the first processor takes the PIC's interrupts."""
    return _MASKED if vcpu.identifier else _EXTINT


def _rows(fresh_line: int) -> list[Row]:
    """What either mode has; ``fresh_line`` is LINT0 after RESET."""
    return [
        Row("VERSION", "arch/x86/kvm/lapic.c, kvm_apic_set_version; the IOAPIC is not KVM's here", fresh=_version,
            values=None, masked=[(0xFF, _version)]),
        Row("TPR", f"{_STATE}; {_RESET}", fresh=0, values=_TPR, kept=Made(_upper)),
        Row("PPR", "arch/x86/kvm/lapic.c, __apic_update_ppr; Intel SDM volume 3, 11.8.3.1: made of TPR and ISR",
            fresh=0, values=None, masked=[(0x33, 0x10)], kept=Made(_upper)),
        Row("SVR", f"{_STATE}, apic_set_spiv; {_RESET}", fresh=0xFF, values=Of(0x1AA, 0x3FF, 0x1A5)),
        Row("ISR0", f"{_STATE}; {_RESET}", fresh=0, values=_set(_NO_INTERRUPT), runs=False),
        Row("ISR7", f"{_STATE}; {_RESET}", fresh=0, values=_TOP_ISR, runs=False),
        Row("ISR?", f"{_STATE}; {_RESET}", fresh=0, values=_set(0xFFFF_FFFF), runs=False),
        Row("IRR0", f"{_STATE}; {_RESET}", fresh=0, values=Free(_NO_INTERRUPT, rounds=3), runs=False),
        Row("IRR?", f"{_STATE}; {_RESET}", fresh=0, values=Free(0xFFFF_FFFF, rounds=3), runs=False),
        Row("TMR0", f"{_STATE}; {_RESET}", fresh=0, values=Free(_NO_INTERRUPT, rounds=3)),
        Row("TMR?", f"{_STATE}; {_RESET}", fresh=0, values=Free(0xFFFF_FFFF, rounds=3)),
        Row("ESR", f"{_STATE}; {_RESET}", fresh=0, values=Of(0x80, 0x60, 0)),
        Row("LVT_CMCI", f"{_STATE}; without KVM_X86_SETUP_MCE a vCPU has no such entry", fresh=0,
            values=Of(0x1_0033, 0x1_0444), init=Untold("it is an entry with KVM_X86_SETUP_MCE only")),
        Row("ICR", f"{_STATE}; {_RESET}", fresh=0, values=Of(0x4_0000 | 0x44E5, 0xC_0331, 0x31)),
        Row("ICR2", f"{_STATE}; {_RESET}", fresh=0, values=Of(0x7700_0000, 0x8100_0000, 0)),
        Row("LVT_TIMER", f"{_STATE}; {_LINES}", fresh=_MASKED, values=Of(0x1_0030, 0x3_00E1, 0x1_0055)),
        Row("LVT_THERMAL LVT_PMC", f"{_STATE}; {_LINES}", fresh=_MASKED, values=Of(0x1_0431, 0x1_00FE, 0x1_0231)),
        Row("LVT_ERROR", f"{_STATE}; {_LINES}", fresh=_MASKED, values=Of(0x1_0032, 0x1_00FD, 0x1_00CD)),
        Row("LVT_LINT0", f"{_STATE}; {_LINES}; KVM_X86_QUIRK_LINT0_REENABLED", fresh=fresh_line, init=_line,
            values=Of(0x1_0700, 0x1_8044, 0x1_2431)),
        Row("LVT_LINT1", f"{_STATE}; {_LINES}", fresh=_MASKED, values=Of(0x1_0400, 0x1_A077, 0x1_0031)),
        Row("TMICT", f"{_STATE}; {_RESET}", fresh=0, values=Of(0xFFFF_FFFF, 0x8765_4321, 0)),
        Row("TMCCT", f"{_STATE}: made of TMICT and time, 0 while the timer is off", fresh=0, values=Untold(
            "it counts"), masked=[(0x1234, 0)], kept=Untold("it counts")),
        Row("TDCR", f"{_STATE}; {_RESET}", fresh=0, values=Of(0xA, 0x9, 0x3)),
        Row("APR EOI RRR SELF_IPI reserved*", f"{_STATE}: no register of KVM's", fresh=0, values=None, init=None),
        Row("*.rest", f"{_STATE}: between two registers", fresh=0, values=None, init=None),
    ]  # fmt: skip


def _set(mask: int) -> Values:
    """Interrupts in service beside those of ISR7, and none where that has none."""
    return Of(0x5A5A_5A5A & mask, 0xA5A5_A5A5 & mask, 0)


LAPIC = Table(
    "lapic",
    pieces("x86")["LAPIC"],
    LapicCodec(),
    [
        Row("ID", f"{_STATE}; {_RESET}: the guest may choose another", fresh=0, init=After.KEPT,
            values=Of(0, 0x5500_0000, 0x8100_0000), runs=False),
        Row("LDR", f"{_STATE}; {_RESET}", fresh=0, values=Of(0x5A00_0000, 0x0100_0000, 0xFF00_0000)),
        Row("DFR", f"{_STATE}; {_RESET}", fresh=0xFFFF_FFFF, values=Of(0x0FFF_FFFF, 0xFFFF_FFFF)),
        *_rows(_EXTINT),
    ],
)  # fmt: skip

# Of the vCPU in x2APIC mode: LDR and ID are not 0. It is not the first, so its LINT0 is masked.
X2_IDENTIFIER = 0x25
_LDR = X2_IDENTIFIER >> 4 << 16 | 1 << (X2_IDENTIFIER & 0xF)
_FIXUP = "arch/x86/kvm/lapic.c, kvm_apic_state_fixup; Documentation/virt/kvm/api.rst, 7.7 KVM_CAP_X2APIC_API"

LAPIC_X2 = Table(
    "lapic-x2",
    pieces("x86")["LAPIC"],
    LapicCodec(),
    [
        Row("ID", f"{_FIXUP} (KVM_X2APIC_API_USE_32BIT_IDS)", fresh=X2_IDENTIFIER, init=After.KEPT, values=None,
            refused=[Refusal(X2_IDENTIFIER ^ 1, errno.EINVAL), Refusal(X2_IDENTIFIER << 24, errno.EINVAL)]),
        Row("LDR", f"{_FIXUP}; Intel SDM volume 3, 11.12.10.2", fresh=_LDR, init=After.KEPT, values=None,
            masked=[(0x1234_5678, _LDR), (0, _LDR)]),
        Row("DFR", f"{_STATE}; {_RESET}: x2APIC mode does not use it", fresh=0xFFFF_FFFF, values=None),
        *_rows(_MASKED),
    ],
)  # fmt: skip


def _msrs(*names: str) -> dict[str, int]:
    """The MSRs that registers are in x2APIC mode: Intel SDM volume 3, table 11-6."""
    return {name: 0x800 + at // _SLOT for at, name in _NAMES.items() if name.rstrip("0123456789") in names}


# What the guest, and KVM_SET_MSRS, may write there and sends nothing; what can only be read; ICR has 64 bits.
X2_WRITTEN = _msrs(
    "TPR", "SVR", "LVT_TIMER", "LVT_THERMAL", "LVT_PMC", "LVT_LINT", "LVT_ERROR", "TMICT", "TDCR"
)  # fmt: skip
X2_READ = X2_WRITTEN | _msrs("ISR", "TMR", "IRR", "ESR")
X2_ICR = 0x830

# What a guest loads from its page in xAPIC mode, by offset.
LOADED = {
    name: at
    for at, name in _NAMES.items()
    if name not in ("APR", "EOI", "RRR", "PPR", "LVT_CMCI", "TMCCT", "SELF_IPI", "VERSION")
}
