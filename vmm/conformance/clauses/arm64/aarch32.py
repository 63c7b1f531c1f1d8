# SPDX-License-Identifier: Apache-2.0
"""vCPUs whose EL1 is AArch32: which there may be, and that their registers are those of the AArch64 numbers."""

from __future__ import annotations

import errno
import random
import struct

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import PC, PSTATE, SYSTEM, sysreg, v, x
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.common import GUEST_RUNS, enter
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, refused_indicative, succeeds
from vmm.conformance.needs import Need, capability
from vmm.conformance.registry import clause
from vmm.kvm.exits import Exit, MmioWrite
from vmm.kvm.vcpu import Vcpu
from vmm.probe.host import Host

_AARCH32 = capability("KVM_CAP_ARM_EL1_32BIT")
_EVENT, _CODE, _MEMORY = 0x40000000, 0x1000, 0x10000
_MODES = {"USR": 0x10, "FIQ": 0x11, "IRQ": 0x12, "SVC": 0x13, "ABT": 0x17, "UND": 0x1B, "SYS": 0x1F}
_AARCH64_MODES = {"EL0t": 0, "EL1t": 4, "EL1h": 5, "EL2t": 8, "EL2h": 9}
_SVC_MASKED = 0x1D3
_FPEXC = sysreg(3, 4, 5, 3, 0)
# In supervisor mode R13 and R14 are banked: X19 and X18. Arm ARM, D1.20.
_PLACES = {number: x(number) for number in range(1, 13)} | {13: x(19), 14: x(18)}
_ENABLED = 1 << 30  # FPEXC.EN
_FULL_ACCESS = 3 << 20  # CPACR.cp10, which CPACR_EL1.FPEN is
_VMRS_FPEXC = 0xEEF81A10  # to R1
# VMOV R1, R2, D0 and D31; VMOV D1 and D30, R3, R4.
_FROM_D0, _FROM_D31, _TO_D1, _TO_D30 = 0xEC521B10, 0xEC521B3F, 0xEC443B11, 0xEC443B3E


def _no_aarch32(host: Host) -> tuple[bool, str]:
    value = host.facts.capabilities["KVM_CAP_ARM_EL1_32BIT"]
    return value == 0, f"KVM_CAP_ARM_EL1_32BIT is {value}"


def _store(number: int) -> int:
    """STR Rn, [R0]."""
    return 0xE5800000 | number << 12


def _move(number: int) -> int:
    """MOV R1, Rn."""
    return 0xE1A01000 | number


def _invert(number: int) -> int:
    """MVN Rn, Rn."""
    return 0xE1E00000 | number << 12 | number


def _vcpu(context: Context, *code: int) -> Vcpu:
    """A vCPU in supervisor mode, its MMU off, that is about to execute ``code``, R0 the address of events."""
    vm = context.vm()
    vm.add_memory(_MEMORY).write(_CODE, struct.pack(f"<{len(code)}I", *code))
    vcpu = vm.create_vcpu()
    vcpus.init(vcpu, Feature.PSCI_0_2, Feature.EL1_32BIT)
    write(vcpu, PC, _CODE)
    write(vcpu, x(0), _EVENT)
    return vcpu


def _event(context: Context, vcpu: Vcpu, what: str, value: int) -> None:
    exit: Exit = succeeds("KVM_RUN", vcpu.run, context.timeout)
    equal(what, exit, MmioWrite(_EVENT, 4, value))


@clause("aarch32.refused-without", arch="arm64", needs=(Need("a host without AArch32 at EL1", _no_aarch32),))
def refused_without(context: Context) -> None:
    """VCPU_INIT with EL1_32BIT fails with EINVAL where KVM_CAP_ARM_EL1_32BIT is 0, and the vCPU can be a 64-bit one.

    Source: arch/arm64/kvm/arm.c, system_supported_vcpu_features; Documentation/virt/kvm/api.rst, 4.82.
    """
    vcpu = context.vcpu()
    refused("VCPU_INIT with EL1_32BIT", errno.EINVAL, vcpus.init, vcpu, Feature.EL1_32BIT)
    succeeds("VCPU_INIT without it", vcpus.init, vcpu)


@clause("aarch32.one-width", arch="arm64", needs=(_AARCH32,))
def one_width(context: Context) -> None:
    """All vCPUs of a VM have one width: VCPU_INIT of the other one fails with EINVAL, in either order.

    Source: arch/arm64/kvm/arm.c, kvm_vcpu_init_changed (before 6.5 arch/arm64/kvm/reset.c, kvm_set_vm_width).
    """
    for first, second in (((Feature.EL1_32BIT,), ()), ((), (Feature.EL1_32BIT,))):
        vm = context.vm()
        one = vm.create_vcpu(0)
        what = "32 bits after 64" if second else "64 bits after 32"
        succeeds(f"the first VCPU_INIT, then one of {what}", vcpus.init, one, *first)
        other = vm.create_vcpu(1)
        refused(f"a vCPU of {what}", errno.EINVAL, vcpus.init, other, *second)
        succeeds("the width of the first", vcpus.init, other, *first)
        for vcpu in (one, other):
            succeeds("KVM_RUN", enter, vcpu)


@clause("aarch32.pstate", arch="arm64", needs=(_AARCH32,))
def pstate(context: Context) -> None:
    """A 32-bit vCPU begins in supervisor mode, all masked; its PSTATE takes AArch32's modes and none of AArch64's.

    Source: arch/arm64/kvm/guest.c, set_core_reg; arch/arm64/kvm/reset.c, VCPU_RESET_PSTATE_SVC.
    """
    vcpu = context.vcpu()
    vcpus.init(vcpu, Feature.EL1_32BIT)
    equal("PSTATE after VCPU_INIT", read(vcpu, PSTATE), _SVC_MASKED)
    for name, mode in _AARCH64_MODES.items():
        refused_indicative(context, f"PSTATE of {name}", errno.EINVAL, write, vcpu, PSTATE, 0x3C0 | mode)
        equal(f"PSTATE after {name}", read(vcpu, PSTATE), _SVC_MASKED)
    for name, mode in _MODES.items():
        succeeds(f"PSTATE of {name}", write, vcpu, PSTATE, 0x1C0 | mode)
        equal(f"PSTATE after {name}", read(vcpu, PSTATE), 0x1C0 | mode)


@clause("aarch32.registers", arch="arm64", needs=(_AARCH32, GUEST_RUNS))
def registers(context: Context) -> None:
    """R1 to R14 of supervisor mode are X1 to X12, X19 and X18, for a guest and its VMM.

    Source: Arm ARM, D1.20 (the mapping of registers between execution states); arch/arm64/kvm/guest.c, set_core_reg.
    """
    # R13 and R14 by R1: which number the syndrome of a banked register's store has is not this clause's subject.
    shown = [instruction for number in _PLACES for instruction in (_move(number), _store(1))]
    vcpu = _vcpu(context, *shown, *map(_invert, _PLACES), _store(2))
    source = random.Random(context.options.seed)
    values = {number: source.getrandbits(32) for number in _PLACES}
    for number, register in _PLACES.items():
        succeeds(f"writing R{number}", write, vcpu, register, values[number])
    for number, value in values.items():
        _event(context, vcpu, f"R{number} in the guest", value)
    _event(context, vcpu, "R2 inverted", values[2] ^ 0xFFFFFFFF)
    values[1] = values[14]  # it showed all others
    for number, register in _PLACES.items():
        equal(f"R{number} as the guest left it", read(vcpu, register), values[number] ^ 0xFFFFFFFF)


@clause("aarch32.vectors", arch="arm64", needs=(_AARCH32, GUEST_RUNS))
def vectors(context: Context) -> None:
    """V0 to V15 hold D0 to D31 of a 32-bit guest, and FPEXC32_EL2 its FPEXC, as the VMM writes and the guest changes.

    V16 to V31 stay as they are: AArch32 does not have them.

    Source: arch/arm64/kvm/hyp/include/hyp/switch.h, __fpsimd_save_fpexc32; Arm ARM, E1.3 (the SIMD registers).
    """
    code = [_VMRS_FPEXC, _store(1), _FROM_D0, _store(1), _store(2), _FROM_D31, _store(1), _store(2)]
    vcpu, source = _vcpu(context, *code, _TO_D1, _TO_D30, _store(3)), random.Random(context.options.seed)
    values = [source.getrandbits(128) for _ in range(32)]
    new = source.getrandbits(64)
    for number, value in enumerate(values):
        succeeds(f"writing V{number}", write, vcpu, v(number), value)
    settings = {_FPEXC: _ENABLED, SYSTEM["CPACR_EL1"]: _FULL_ACCESS, x(3): new & 0xFFFFFFFF, x(4): new >> 32}
    for register, value in settings.items():
        succeeds(f"writing {register}", write, vcpu, register, value)
    _event(context, vcpu, "FPEXC in the guest", _ENABLED)
    for name, value in (("D0", values[0] & (1 << 64) - 1), ("D31", values[15] >> 64)):
        _event(context, vcpu, f"the low half of {name} in the guest", value & 0xFFFFFFFF)
        _event(context, vcpu, f"the high half of {name} in the guest", value >> 32)
    _event(context, vcpu, "what the guest wrote", new & 0xFFFFFFFF)
    values[0] = values[0] & (1 << 64) - 1 | new << 64  # D1
    values[15] = values[15] >> 64 << 64 | new  # D30
    for number, value in enumerate(values):
        equal(f"V{number} as the guest left it", read(vcpu, v(number)), value)
    equal("FPEXC32_EL2 as the guest left it", read(vcpu, _FPEXC), _ENABLED)
