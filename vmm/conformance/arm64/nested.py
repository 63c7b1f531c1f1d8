# SPDX-License-Identifier: Apache-2.0
"""Guests with EL2 (nested virtualization): a hypervisor of their own, L1, and what it runs, L2.

Source: Documentation/virt/kvm/arm/vcpu-features.rst; Arm ARM, D23 "HCR_EL2", "CPTR_EL2" under HCR_EL2.E2H.
"""

from __future__ import annotations

from vmm.arm64.guest import Guest
from vmm.arm64.registers import PSTATE, SYSTEM, Register, sysreg
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.common import GUEST_RUNS, features, finish
from vmm.conformance.arm64.vgic import V3, has, vgic
from vmm.conformance.context import Context
from vmm.conformance.needs import Need, capability
from vmm.probe.host import Host

__all__ = ["EL2", "EL2_REGISTERS", "NO_EL2", "OPEN", "RUNS", "hypervisor", "run"]

EL2 = capability("KVM_CAP_ARM_EL2")
# What L1 needs to run: KVM_RUN wants its virtual interrupt controller.
RUNS = (EL2, has(V3), GUEST_RUNS)


def _without(host: Host) -> tuple[bool, str]:
    value = host.facts.capabilities["KVM_CAP_ARM_EL2"]
    return value == 0, f"KVM_CAP_ARM_EL2 is {value}"


NO_EL2 = Need("a KVM without nested virtualization", _without)

# Registers that every vCPU with EL2 has, and values that each of them keeps.
EL2_REGISTERS: dict[str, tuple[Register, int]] = {
    "VBAR_EL2": (sysreg(3, 4, 12, 0, 0), 0x1234_5000_0800),
    "ELR_EL2": (sysreg(3, 4, 4, 0, 1), 0x1234_5678_9ABC),
    "SPSR_EL2": (sysreg(3, 4, 4, 0, 0), 0x3C5),
    "ESR_EL2": (sysreg(3, 4, 5, 2, 0), 0x5A00_0000),
    "FAR_EL2": (sysreg(3, 4, 6, 0, 0), 0x7654_3210_FEDC),
    "TTBR0_EL2": (sysreg(3, 4, 2, 0, 0), 0x4_2000),
    "MAIR_EL2": (sysreg(3, 4, 10, 2, 0), 0xFF04),
    "SP_EL2": (sysreg(3, 6, 4, 1, 0), 0x1234_5678_0000),
}
_HCR, _CPTR, _SCTLR, _TCR = (sysreg(3, 4, *rest) for rest in ((1, 1, 0), (1, 1, 2), (1, 0, 0), (2, 0, 2)))
_E2H, _RW, _EL2H = 1 << 34, 1 << 31, 0x3C9
# CPTR_EL2 as under E2H: neither AdvSIMD nor SVE traps.
OPEN = 3 << 20 | 3 << 16


def hypervisor(context: Context) -> Guest:
    """A guest of the payload ``nested`` with EL2, and SVE where KVM has it.

    It has a vGIC: without one KVM_RUN of a vCPU with EL2 is EAGAIN in Linux 7.2.
    """
    chosen = (Feature.PSCI_0_2, Feature.HAS_EL2, *features(context))
    guest = context.own(Guest(context.kvm, "nested", features=chosen))
    vgic(guest.vm)
    return guest


def run(context: Context, guest: Guest, what: str, entry: str, *parameters: int) -> list[int]:
    """L1 runs an entry point at EL2, with its MMU on and nothing trapped; returns the mailbox's values."""
    guest.prepare(entry, *parameters)
    vcpu = guest.vcpu
    for at_el2, at_el1 in (
        (_SCTLR, "SCTLR_EL1"),
        (_TCR, "TCR_EL1"),
        (EL2_REGISTERS["MAIR_EL2"][0], "MAIR_EL1"),
        (EL2_REGISTERS["TTBR0_EL2"][0], "TTBR0_EL1"),
        (EL2_REGISTERS["VBAR_EL2"][0], "VBAR_EL1"),
    ):
        write(vcpu, at_el2, read(vcpu, SYSTEM[at_el1]))  # fmt: skip
    write(vcpu, _HCR, _E2H | _RW)
    write(vcpu, _CPTR, OPEN)
    write(vcpu, EL2_REGISTERS["SP_EL2"][0], guest.payload.symbol("stack_top"))
    write(vcpu, PSTATE, _EL2H)
    finish(context, guest, what)
    return list(guest.mailbox.values)
