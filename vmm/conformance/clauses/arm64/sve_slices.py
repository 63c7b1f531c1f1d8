# SPDX-License-Identifier: Apache-2.0
"""Z, P and FFR by KVM_GET_ONE_REG and KVM_SET_ONE_REG."""

from __future__ import annotations

import errno
import random

from vmm._kvm import lib
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import FFR, SLICES, SYSTEM, VLS, Register, ffr, p, z
from vmm.arm64.registers import SVE as SVE_REGISTERS
from vmm.arm64.vcpu import write
from vmm.arm64.vector import VectorState
from vmm.conformance.arm64.common import (
    GUEST_RUNS,
    SVE,
    call,
    get_bad,
    lengths,
    lengths_to_try,
    observed,
    plain_vcpu,
    poisoned_get,
    same_bytes,
    set_bad,
    set_image,
    sve_guest,
    sve_vcpu,
)
from vmm.conformance.context import Context
from vmm.conformance.expect import refused_indicative, succeeds
from vmm.conformance.registry import clause
from vmm.kvm.memory import PAGE_SIZE
from vmm.kvm.vcpu import Vcpu

_GROUP = 0x6000_0000_0015_0000


def _used(register: Register, size: int) -> int:
    """How many bytes of a register a vCPU has whose vectors have ``size`` bytes."""
    return size if register.size == 256 else size // 8


def _values(seed: int) -> dict[Register, bytes]:
    """Random bytes for every register, as long as its slice."""
    source = random.Random(seed)
    return {register: source.randbytes(register.size) for register in SVE_REGISTERS}


def _round_trip(vcpu: Vcpu, registers: list[Register], size: int, seed: int) -> None:
    values = _values(seed)
    for register in registers:
        succeeds(f"writing {register}", vcpu.set_one_reg, register, values[register])
    for register in registers:
        used = _used(register, size)
        found = succeeds(f"reading {register}", vcpu.get_one_reg, register)
        same_bytes(f"{register} with vectors of {size} bytes", found[:used], values[register][:used])


@clause("sve.reg.zreg-roundtrip", arch="arm64", needs=(SVE,))
def z_round_trip(context: Context) -> None:
    """What is written to Z0 to Z31 is read back, all registers at once and different, at every vector length.

    Source: arch/arm64/kvm/guest.c, get_sve_reg, set_sve_reg; Documentation/virt/kvm/api.rst, 4.68.
    """
    for wanted in lengths_to_try(context):
        vcpu = sve_vcpu(context, wanted)
        _round_trip(vcpu, [z(n) for n in range(32)], wanted.size, context.options.seed)
        _round_trip(vcpu, [z(n) for n in reversed(range(32))], wanted.size, context.options.seed + 1)


@clause("sve.reg.pffr-roundtrip", arch="arm64", needs=(SVE,))
def p_round_trip(context: Context) -> None:
    """What is written to P0 to P15 and FFR is read back, together with all Z registers, at every vector length.

    An FFR that no load could have left is kept as it is until a guest runs.

    Source: arch/arm64/kvm/guest.c, get_sve_reg, set_sve_reg; Documentation/virt/kvm/api.rst, 4.68.
    """
    for wanted in lengths_to_try(context):
        _round_trip(sve_vcpu(context, wanted), list(SVE_REGISTERS), wanted.size, context.options.seed)


@clause("sve.reg.get-full-slice-zero-pad", arch="arm64", needs=(SVE,))
def full_slice(context: Context) -> None:
    """Reading writes the whole slice, 256 or 32 bytes: 0 beyond the vector length, and nothing beyond the slice.

    Source: arch/arm64/kvm/guest.c, get_sve_reg (clear_user); Documentation/virt/kvm/api.rst, 4.68.
    """
    for wanted in (lengths_to_try(context)[0], lengths(context)):
        vcpu = sve_vcpu(context, wanted)
        for register, value in _values(context.options.seed).items():
            vcpu.set_one_reg(register, value)
            data = succeeds(f"reading {register}", poisoned_get, vcpu, register, register.size + 64)
            used = _used(register, wanted.size)
            same_bytes(
                f"{register} beyond the vector length", data[used : register.size], bytes(register.size - used)
            )
            same_bytes(f"what lies beyond {register}", data[register.size :], b"\xaa" * 64)
            same_bytes(f"{register}", data[:used], value[:used])


@clause("sve.reg.set-ignores-tail", arch="arm64", needs=(SVE,))
def tail_ignored(context: Context) -> None:
    """Writing ignores the slice's bytes beyond the vector length, even where their memory does not exist.

    That the memory is not touched is a note: nothing promises it.

    Source: arch/arm64/kvm/guest.c, set_sve_reg.
    """
    size = lengths(context).size
    vcpu = sve_vcpu(context)
    for register in (z(0), z(31), p(0), p(15), FFR):
        used = _used(register, size)
        value = b"\x11" * used + b"\xff" * (register.size - used)
        succeeds(f"writing {register}", vcpu.set_one_reg, register, value)
        expected = (b"\x11" * used).ljust(register.size, b"\0")
        same_bytes(register.name, vcpu.get_one_reg(register), expected)
    memory = context.own(context.vm().add_memory(PAGE_SIZE))
    edge = memory.address + PAGE_SIZE - size
    try:
        vcpus.one_reg(vcpu, lib.KVM_SET_ONE_REG, z(1), edge)
        context.note(f"Z1 was written from the last {size} bytes of a page")
    except OSError as error:
        context.note(f"Z1 from the last {size} bytes of a page: {error}")


@clause("sve.reg.surplus-slice-enoent", arch="arm64", needs=(SVE,))
def surplus(context: Context) -> None:
    """Slices other than the first do not exist: reading and writing them is ENOENT.

    2048 bits are one slice, and no vector is longer.

    Source: arch/arm64/kvm/guest.c, sve_reg_to_region; Documentation/virt/kvm/api.rst, 4.68.
    """
    vcpu = sve_vcpu(context)
    for number in range(1, SLICES):
        for register in (z(0, number), z(31, number), p(0, number), p(15, number), ffr(number)):
            value = bytes(register.size)
            refused_indicative(context, f"reading {register}", errno.ENOENT, vcpu.get_one_reg, register)
            refused_indicative(context, f"writing {register}", errno.ENOENT, vcpu.set_one_reg, register, value)


@clause("sve.reg.slice-precedence", arch="arm64", needs=(SVE,))
def precedence(context: Context) -> None:
    """Before FINALIZE a slice that does not exist is ENOENT, and one that does is EPERM.

    Source: arch/arm64/kvm/guest.c, get_sve_reg (the id comes first).
    """
    vcpu = sve_vcpu(context, finalized=False)
    for make in (lambda slice: z(5, slice), lambda slice: p(5, slice), ffr):
        refused_indicative(context, f"reading {make(1)}", errno.ENOENT, vcpu.get_one_reg, make(1))
        refused_indicative(context, f"reading {make(0)}", errno.EPERM, vcpu.get_one_reg, make(0))


@clause("sve.reg.nonsve-enoent", arch="arm64")
def without_sve(context: Context) -> None:
    """A vCPU without SVE has none of Z, P and FFR: ENOENT.

    Source: arch/arm64/kvm/guest.c, sve_reg_to_region.
    """
    vcpu = plain_vcpu(context)
    for register in SVE_REGISTERS:
        refused_indicative(context, f"reading {register}", errno.ENOENT, vcpu.get_one_reg, register)
        value = bytes(register.size)
        refused_indicative(context, f"writing {register}", errno.ENOENT, vcpu.set_one_reg, register, value)


def _bad_ids(context: Context) -> list[Register]:
    """Numbers of the SVE group that name no register: other ranges, and right numbers of another size."""
    lows = [0x620, 0x7FF, 0x800, 0x1000, 0x8000, 0xFFFE]
    if context.options.exhaustive:
        lows = list(range(0x620, 0xFFFF))
    wrong_range = [Register(_GROUP | size << 52 | low) for low in lows for size in (5, 6, 8)]
    wrong_size = [Register(_GROUP | size << 52 | 0) for size in (0, 3, 4, 5, 6, 7)]
    wrong_size += [Register(_GROUP | size << 52 | 0x400) for size in (0, 3, 4, 6, 7, 8)]
    wrong_size += [Register(_GROUP | size << 52 | 0x600) for size in (0, 3, 4, 6, 7, 8)]
    return wrong_range + wrong_size


@clause("sve.reg.bad-id-einval", arch="arm64", needs=(SVE,), timeout=60)
def bad_id(context: Context) -> None:
    """Numbers of the SVE group outside its ranges, or with another size, are refused with EINVAL.

    Source: arch/arm64/kvm/guest.c, sve_reg_to_region.
    """
    vcpu = sve_vcpu(context)
    for register in _bad_ids(context):
        refused_indicative(context, f"reading {register:#x}", errno.EINVAL, vcpu.get_one_reg, register)
        value = bytes(register.size)
        refused_indicative(context, f"writing {register:#x}", errno.EINVAL, vcpu.set_one_reg, register, value)


@clause("sve.reg.efault", arch="arm64", needs=(SVE,))
def bad_address(context: Context) -> None:
    """A bad address is EFAULT when reading and when writing.

    Source: arch/arm64/kvm/guest.c, get_sve_reg, set_sve_reg.
    """
    vcpu = sve_vcpu(context)
    for register in (z(0), z(31), p(0), FFR, VLS):
        refused_indicative(context, f"reading {register}", errno.EFAULT, get_bad, vcpu, register)
        if register != VLS:
            refused_indicative(context, f"writing {register}", errno.EFAULT, set_bad, vcpu, register)


@clause("sve.reg.endianness", arch="arm64", needs=(SVE, GUEST_RUNS))
def byte_order(context: Context) -> None:
    """Byte i of the buffer is byte element i of the register: INDEX Z0.B, #0, #1 reads as 0, 1, 2, ...

    Source: arch/arm64/include/uapi/asm/kvm.h (the comment on KVM_REG_ARM64_SVE_ZREG).
    """
    guest = sve_guest(context)
    call(context, guest, "INDEX Z0.B, #0, #1", "index")
    size = lengths(context).size
    same_bytes("Z0", guest.vcpu.get_one_reg(z(0))[:size], bytes(range(size)))


@clause("sve.reg.low128-is-v", arch="arm64", needs=(SVE, GUEST_RUNS))
def low_bits(context: Context) -> None:
    """A guest's AdvSIMD write of V0 is the low 128 bits of Z0 and zeroes the rest; the other registers stay.

    Source: Arm ARM, C1 "SVE vector registers" (the Z registers extend the V registers).
    """
    size = lengths(context).size
    state = VectorState.random(size, context.options.seed)
    guest = sve_guest(context)
    set_image(guest, state)
    call(context, guest, "a guest that loads its registers", "load")
    call(context, guest, "an AdvSIMD write of V0", "neon")
    expected = (b"\x55" * 16).ljust(size, b"\0")
    same_bytes("Z0", guest.vcpu.get_one_reg(z(0))[:size], expected)
    same_bytes("Z1", guest.vcpu.get_one_reg(z(1))[:size], state.z[1])
    call(context, guest, "a guest that stores its registers", "store")
    same_bytes("the guest's own Z0", observed(guest)[:size], expected)


@clause("sve.zcr.order-free", arch="arm64", needs=(SVE,))
def order_free(context: Context) -> None:
    """Z is read and written at the vCPU's largest length, whatever ZCR_EL1 says and whenever it is written.

    Source: arch/arm64/kvm/guest.c, sve_reg_to_region (vcpu_sve_max_vq).
    """
    size = lengths(context).size
    value = bytes(range(256))
    for order in ("before", "after"):
        vcpu = sve_vcpu(context)
        if order == "before":
            write(vcpu, SYSTEM["ZCR_EL1"], 0)
        succeeds("writing Z7", vcpu.set_one_reg, z(7), value)
        if order == "after":
            write(vcpu, SYSTEM["ZCR_EL1"], 0)
        same_bytes(f"Z7 with ZCR_EL1 = 0 written {order} it", vcpu.get_one_reg(z(7))[:size], value[:size])
