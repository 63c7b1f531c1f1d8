# SPDX-License-Identifier: Apache-2.0
"""Nested virtualization: vCPUs with EL2, their registers, and SVE between a hypervisor and what it runs."""

from __future__ import annotations

import errno
import random

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.guest import Guest
from vmm.arm64.registers import SYSTEM, Register, sysreg
from vmm.arm64.system_registers import field
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.common import SVE, lengths
from vmm.conformance.arm64.nested import EL2, EL2_REGISTERS, NO_EL2, OPEN, RUNS, hypervisor, run
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, no_difference, refused, refused_indicative, succeeds, true
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.kvm.vcpu import Vcpu

_ZCR_EL2 = SYSTEM["ZCR_EL2"]
# ESR_EL2.EC: HVC from AArch64; traps of SVE; traps of AdvSIMD.
_HVC, _SVE_TRAP, _FP_TRAP = 0x16, 0x19, 0x07
_STRIDE, _TICKS = 256, 5
# CPTR_EL2 under E2H: ZEN and FPEN.
_ZEN, _FPEN = 3 << 16, 3 << 20


def _vcpu(context: Context, *features: Feature) -> Vcpu:
    vcpu = context.vcpu()
    vcpus.init(vcpu, *features)
    if Feature.SVE in features:
        vcpus.finalize(vcpu)
    return vcpu


@clause("nv.absent", arch="arm64", needs=(NO_EL2,))
def absent(context: Context) -> None:
    """Where KVM_CAP_ARM_EL2 is 0 a vCPU with EL2 is refused, with ENOENT by a KVM that does not know of it.

    Source: arch/arm64/kvm/arm.c, kvm_vcpu_init_check_features; Documentation/virt/kvm/arm/vcpu-features.rst.
    """
    vcpu = context.vcpu()
    for features in ((Feature.HAS_EL2,), (Feature.HAS_EL2, Feature.HAS_EL2_E2H0)):
        refused("a vCPU with EL2", (errno.EINVAL, errno.ENOENT), vcpus.init, vcpu, *features)
    succeeds("the vCPU without", vcpus.init, vcpu)
    true("registers of EL2", not _of_el2(vcpu), _of_el2(vcpu), "none")


def _of_el2(vcpu: Vcpu) -> list[str]:
    """The registers of EL2, by their encoding, that are listed."""
    listed = map(Register, vcpu.reg_list())
    return [str(register) for register in listed if register in _EVERY_EL2]


_EVERY_EL2 = frozenset(register for register, _ in EL2_REGISTERS.values()) | {_ZCR_EL2, sysreg(3, 4, 1, 1, 0)}


@clause("nv.features", arch="arm64", needs=(EL2, capability("KVM_CAP_ARM_EL1_32BIT")))
def features(context: Context) -> None:
    """A vCPU with EL2 is one of AArch64: with EL1_32BIT it is EINVAL; ID_AA64PFR0_EL1 has no AArch32 but at EL0.

    Source: arch/arm64/kvm/arm.c, kvm_vcpu_init_check_features; arch/arm64/kvm/nested.c.
    """
    vcpu = context.vcpu()
    refused("EL2 of AArch32", errno.EINVAL, vcpus.init, vcpu, Feature.HAS_EL2, Feature.EL1_32BIT)
    succeeds("EL2", vcpus.init, vcpu, Feature.HAS_EL2)
    value = read(vcpu, SYSTEM["ID_AA64PFR0_EL1"])
    for level in ("EL1", "EL2"):
        equal(f"ID_AA64PFR0_EL1.{level}", field("ID_AA64PFR0_EL1", level, value), 1)


@clause("nv.registers", arch="arm64", needs=(EL2,))
def registers(context: Context) -> None:
    """A vCPU with EL2 lists its registers, and keeps what is written; one without has none of them (ENOENT).

    Source: arch/arm64/kvm/sys_regs.c, EL2_REG, el2_visibility; Documentation/virt/kvm/arm/vcpu-features.rst.
    """
    vcpu, plain = _vcpu(context, Feature.HAS_EL2), _vcpu(context)
    listed, unlisted = set(vcpu.reg_list()), set(plain.reg_list())
    missing = [name for name, (register, _) in EL2_REGISTERS.items() if register not in listed]
    equal("registers of EL2 that are not listed", missing, [])
    surplus = [name for name, (register, _) in EL2_REGISTERS.items() if register in unlisted]
    equal("registers of EL2 that are listed without", surplus, [])
    for name, (register, value) in EL2_REGISTERS.items():
        succeeds(f"writing {name}", write, vcpu, register, value)
        refused_indicative(context, f"{name} without EL2", errno.ENOENT, read, plain, register)
    for name, (register, value) in EL2_REGISTERS.items():
        equal(name, read(vcpu, register), value)


@clause("nv.zcr_el2-visibility", arch="arm64", needs=(EL2, SVE))
def zcr_visibility(context: Context) -> None:
    """ZCR_EL2 is there with EL2 and SVE together, not with one of them; of its bits only LEN, 3 to 0, can be set.

    Source: arch/arm64/kvm/sys_regs.c, sve_el2_visibility; arch/arm64/kvm/nested.c, kvm_init_nv_sysregs.
    """
    both = _vcpu(context, Feature.HAS_EL2, Feature.SVE)
    true("ZCR_EL2 with EL2 and SVE", _ZCR_EL2 in both.reg_list(), "missing", "in the list")
    for length in (0, 1, 15):
        succeeds(f"ZCR_EL2 = {length}", write, both, _ZCR_EL2, length)
        equal("ZCR_EL2", read(both, _ZCR_EL2), length)
    for other in (_vcpu(context, Feature.HAS_EL2), _vcpu(context, Feature.SVE)):
        true("ZCR_EL2 with only one of them", _ZCR_EL2 not in other.reg_list(), "listed", "not in the list")
        refused_indicative(context, "reading it", errno.ENOENT, read, other, _ZCR_EL2)
        refused_indicative(context, "writing it", errno.ENOENT, write, other, _ZCR_EL2, 0)


def _rdvl(context: Context, guest: Guest, first: int, second: int) -> int:
    """RDVL of L2 where L1 has ZCR_EL2.LEN = first - 1, and L2 ZCR_EL1.LEN = second - 1; in quadwords."""
    what = f"RDVL of L2, ZCR_EL2.LEN {first - 1} and ZCR_EL1.LEN {second - 1}"
    value, syndrome, *_ = run(context, guest, what, "rdvl", first - 1, second - 1, OPEN)
    equal(f"what brings L1 back after {what}", syndrome >> 26 & 0x3F, _HVC)
    return value // 16


@clause("nv.l1-caps-l2-vl", arch="arm64", needs=(*RUNS, SVE))
def caps_lengths(context: Context) -> None:
    """L2's vectors are as long as its ZCR_EL1 asks for, L1's ZCR_EL2 allows and the vCPU has.

    Source: arch/arm64/kvm/hyp/include/hyp/switch.h, __hyp_sve_restore_guest; Arm ARM, D23 "ZCR_EL2".
    """
    guest, available = hypervisor(context), lengths(context)
    for first in sorted(available):
        for second in sorted({1, first, 16}):
            expected = available.granted(min(first, second))
            equal(
                f"L2's quadwords, {first} by L1 and {second} by itself",
                _rdvl(context, guest, first, second),
                expected,
            )
    if len(available) < 2:
        context.note(f"a guest's vector lengths are {available}: there is nothing to cap")


@clause("nv.l1-traps-vectors", arch="arm64", needs=(*RUNS, SVE))
def traps(context: Context) -> None:
    """What L1's CPTR_EL2 traps of L2's SVE and AdvSIMD comes to L1, at the instruction; what it does not is executed.

    Source: arch/arm64/kvm/hyp/include/hyp/switch.h, kvm_hyp_handle_fpsimd; arch/arm64/kvm/emulate-nested.c,
    kvm_inject_nested_sync; Arm ARM, D23 "CPTR_EL2".
    """
    guest = hypervisor(context)
    for entry, trap, cptr in (("sve", _SVE_TRAP, OPEN & ~_ZEN), ("neon", _FP_TRAP, OPEN & ~_FPEN)):
        for _ in range(2):
            _, syndrome, where, *_ = run(context, guest, f"{entry} of L2, trapped", entry, 15, 15, cptr)
            equal(f"what brings L1 back from {entry}", syndrome >> 26 & 0x3F, trap)
            equal("where", where, guest.payload.symbol(f"l2_{entry}"))
            _, syndrome, where, *_ = run(context, guest, f"{entry} of L2, not trapped", entry, 15, 15, OPEN)
            equal(f"what brings L1 back after {entry}", syndrome >> 26 & 0x3F, _HVC)
            equal("where it was", where, guest.payload.symbol(f"l2_{entry}") + 8)


@clause("nv.l1l2-fp-kept", arch="arm64", needs=RUNS)
def kept(context: Context) -> None:
    """L1's vectors are L2's when it runs, over exits to the VMM, and L2's are L1's when it comes back.

    Source: arch/arm64/kvm/nested.c; arch/arm64/kvm/fpsimd.c, kvm_arch_vcpu_load_fp (IN_NESTED_ERET).
    """
    guest = hypervisor(context)
    kinds = {"neon": 16, **({"sve": lengths(context).size} if lengths(context) else {})}
    for seed, (kind, size) in enumerate(kinds.items()):
        source = random.Random(seed)
        image = b"".join(source.randbytes(size).ljust(_STRIDE, b"\0") for _ in range(32))
        inverted = b"".join(bytes(~byte & 0xFF for byte in image[at : at + size]).ljust(_STRIDE, b"\0")
                            for at in range(0, len(image), _STRIDE))  # fmt: skip
        guest.memory.write(guest.payload.symbol("image"), image)
        for place in ("second", "first"):
            guest.memory.write(guest.payload.symbol(place), bytes(len(image)))
        run(context, guest, f"keep_{kind}", f"keep_{kind}", 15, 15, OPEN, _TICKS)
        for place, whose, expected in (("second", "L1's vectors in L2", image), ("first", "L2's in L1", inverted)):
            found = guest.memory.read(guest.payload.symbol(place), len(image))
            wrong = [f"{kind} {at // _STRIDE} byte {at % _STRIDE}: {new:#04x} and not {old:#04x}"
                     for at, (old, new) in enumerate(zip(expected, found, strict=True)) if old != new]  # fmt: skip
            no_difference(whose, wrong)
