# SPDX-License-Identifier: Apache-2.0
"""Values other than a fresh vCPU's for as much of an arm64 vCPU's state as KVM lets be changed.

What a restore leaves out shows only where the value is not that of a fresh vCPU anyway.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from vmm.arm64.registers import FFR, FPCR, FPSR, PC, SP, SYSTEM, Group, Register, core, x
from vmm.arm64.vcpu import Feature, features, get_vls
from vmm.arm64.vector import FPCR_BITS, FPSR_BITS
from vmm.guest.base import BaseGuest
from vmm.kvm.ioctl import KvmError
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.state.arm64.registers import group_of
from vmm.state.meant import Meant, joined

__all__ = ["ARGUMENTS", "before", "mark", "unsettle"]

# For Guest: its defaults have all it may have.
ARGUMENTS: Mapping[str, Any] = {}
# What is the guest's own to the bit, and what of it the chain payload does not use.
_KEPT = frozenset(
    {*map(x, range(31)), SP, PC, core("SP_EL1"), core("ELR_EL1")}
    | {SYSTEM[f"TPIDR_{level}"] for level in ("EL0", "EL1")}
    | {SYSTEM[name] for name in ("TPIDRRO_EL0", "FAR_EL1", "TTBR0_EL1", "TTBR1_EL1", "MAIR_EL1", "VBAR_EL1")}
)
_MARKS = {SYSTEM["FAR_EL1"]: 0xFFFF_8765_4321_0123, SYSTEM["CONTEXTIDR_EL1"]: 0x1234_5678}
# Z, P and FFR in struct bytes, of which the vector length decides how many count.
_Z_BYTES = 256


def before(kvm: Kvm) -> None:
    """Nothing: arm64 has no permissions to request."""


def unsettle(guest: BaseGuest, seed: int) -> Meant:
    """Change every register that can be changed but the counters; the vCPU must not run afterwards.

    Returns what was meant of those that keep whatever they are given.
    """
    vcpu = guest.vcpu
    source = random.Random(seed)
    size = get_vls(vcpu).size if Feature.SVE in features(vcpu) else 16
    meant: dict[str, dict[int, bytes]] = {}
    for identifier in vcpu.reg_list():
        register = Register(identifier)
        group = group_of(identifier)
        if group == "VECTORS":
            value = _vector(register, size, source)
        elif register in _KEPT:
            value = source.randbytes(register.size)
        else:
            if group in ("CORE", "SYSREGS", "IDREGS", "FIRMWARE"):
                _change(vcpu, register, source)
            continue
        vcpu.set_one_reg(identifier, value)
        meant.setdefault(group, {})[identifier] = value
    return joined(meant)


def mark(vcpu: Vcpu) -> Meant:
    """Give values to what no guest of the chain payload uses: they have to be there whenever its state is read."""
    values = {int(register): value.to_bytes(8, "little") for register, value in _MARKS.items()}
    for identifier, value in values.items():
        vcpu.set_one_reg(identifier, value)
    return joined({"SYSREGS": values})


def _vector(register: Register, size: int, source: random.Random) -> bytes:
    if register in (FPSR, FPCR):
        mask = FPSR_BITS if register == FPSR else FPCR_BITS
        return (source.getrandbits(32) & mask | 1 << 27 & mask).to_bytes(register.size, "little")
    if register == FFR:
        ones = source.randrange(1, size)  # a run of ones from bit 0
        return ((1 << ones) - 1).to_bytes(register.size, "little")
    used = size * register.size // _Z_BYTES if register.size != 16 else 16
    return source.randbytes(used).ljust(register.size, b"\0")


def _change(vcpu: Vcpu, register: Register, source: random.Random) -> None:
    """Give a register the first of some values that KVM takes and keeps; leave it as it is if there is none."""
    old = int.from_bytes(vcpu.get_one_reg(register), "little")
    for value in _candidates(register, old, source):
        try:
            vcpu.set_one_reg(register, value.to_bytes(register.size, "little"))
        except KvmError:
            continue
        if int.from_bytes(vcpu.get_one_reg(register), "little") == value:
            return
        vcpu.set_one_reg(register, old.to_bytes(register.size, "little"))


def _candidates(register: Register, old: int, source: random.Random) -> list[int]:
    name = register.name
    if name == "PSTATE":
        return [old ^ 0xF000_0000]
    firmware = register.group in (Group.FIRMWARE, Group.BITMAP)
    if firmware or name.startswith(("ID_", "CTR", "CLIDR", "MIDR", "REVIDR", "AIDR")):
        # A field of a feature register may be lowered, if at all: one that is not 0, to one less.
        return [old - (1 << shift) for shift in range(0, 64, 4) if old >> shift & 0xF] or [old ^ 1]
    random_value = source.getrandbits(8 * register.size)
    return [random_value, old ^ 0x10, old ^ 1, old ^ 0x100, old ^ 0x10000]
