# SPDX-License-Identifier: Apache-2.0
"""What guests see of a KVM of arm64, and what they leave, section by section."""

from __future__ import annotations

import ctypes
import os
import struct

from tests.kernels.plain.arm64 import (
    CODE,
    CPACR,
    DATA,
    ELR,
    ESR,
    FAR,
    FPCR,
    FPSR,
    IO,
    PC,
    PSTATE,
    SP,
    SP_EL1,
    SPSR,
    Guest,
    Vcpu,
    Vm,
    X,
    all_sysregs,
    core,
    mrs,
    msr,
    sysreg,
)
from tests.kernels.plain.arm64_state import KINDS, MOVING, See, dump, structure
from tests.kernels.plain.kvm import call

__all__ = ["SECTIONS"]


_ARM64 = 0x6000000000000000
_ALL = (1 << 64) - 1
_SVE = _ARM64 | 0x15 << 16


def _fresh(vcpu: Vcpu) -> None:
    for number in range(32):
        if vcpu.features & 16:
            vcpu.set(
                _SVE | 8 << 52 | number << 5,
                int.from_bytes(bytes((number * 7 + at) & 0xFF for at in range(256)), "little"),
            )
        else:
            vcpu.set(core(84 + 4 * number, 4), 0x0102030405060708090A0B0C0D0E0F10 * (number + 1))
    for number in range(17 if vcpu.features & 16 else 0):
        vcpu.set(_SVE | 5 << 52 | 0x400 | number << 5, 0x0123456789ABCDEF0011223344556677 >> number)
    vcpu.set(FPSR, 0x8000001)
    vcpu.set(FPCR, 0x400000)

    #: instructions on vectors: moves and sums, RDVL, SVE's own, MRS of FPSR and FPCR
    """Instructions on vectors, with and without the right to them."""


_VECTOR_CODE = (
    *((0x4EA11C20,), (0x6EA18C40,), (0x04210000,), (0x04BF5020,), (0x2519F000,), (0x25D8E3E0,), (0x2538C3E5,)),
    *((0xD53B4420,), (0xD53B4400,), (0xD51B4420, 0xD53B4420), (0x1E622820,), (0xE5804020,), (0x85804020,)),
)


def vectors(see: See) -> None:
    for kind in ("plain", "sve"):
        guest = Guest(KINDS[kind], vcpus=2)
        for open_ in (0, 0x300000, 0x330000):
            for zcr in (0, 3, 15):
                for number, code in enumerate(_VECTOR_CODE):
                    for one in guest.vcpus:
                        _fresh(one)
                        one.set(CPACR, open_)
                        one.set(sysreg(3, 0, 1, 2, 0), zcr)
                    where = f"{kind}.{open_:x}.{zcr}.{number}"
                    see(where, guest.run(*code, x0=0x3000000))
                    guest.enter(guest.vcpus[1], x0=5)
                    see(f"{where}.other", guest.resume(guest.vcpus[1]))
                    if zcr in (0, 3) and open_ in (0x300000, 0x330000):
                        for index, one in enumerate(guest.vcpus):
                            _vector_state(see, f"{where}.{index}", one)


def _vector_state(see: See, where: str, vcpu: Vcpu) -> None:
    text = []
    for number in range(32):
        text.append(vcpu.get(_SVE | 8 << 52 | number << 5 if vcpu.features & 16 else core(84 + 4 * number, 4)))
    for number in range(17 if vcpu.features & 16 else 0):
        text.append(vcpu.get(_SVE | 5 << 52 | 0x400 | number << 5))
    text += [vcpu.get(FPSR), vcpu.get(FPCR), vcpu.get(sysreg(3, 0, 1, 2, 0))]
    for number, value in enumerate(text):
        see(f"{where}.{number}", value)


def guest_sysregs(see: See) -> None:
    """Each system register, read and written by a guest."""
    for kind, gic in (("full", True),):
        guest = Guest(KINDS[kind], gic=gic)
        kept = {*(sysreg(3, 0, *rest) for rest in ((1, 0, 0), (12, 0, 0), (2, 0, 0), (2, 0, 1), (2, 0, 2)))}
        for register in all_sysregs():
            op1, crn = register >> 11 & 7, register >> 7 & 15
            if op1 not in (0, 1, 3) or crn in (7, 8) or crn in (11, 15):
                continue
            found = guest.run(mrs(register))
            see(f"{kind}.{register:x}", found if register not in MOVING else found[:3])
            if found[2] != f"{CODE + 4:x}":
                continue
            for value in () if register in kept or register in MOVING else (0x5A5A5A5A, 1):
                wrote = guest.run(msr(register), mrs(register), x0=value)
                see(f"{kind}.{register:x}.{value:x}", (wrote, guest.vcpu.get(register)))
            if register not in kept and register not in MOVING:
                guest.run(msr(register), x0=int(str(found[3]), 16))
        dump(see, f"{kind}.end", guest.vcpu)


def given(see: See) -> None:
    """Each listed system register as its VMM writes it, and what the guest reads there."""
    for kind in ("plain", "full"):
        guest = Guest(KINDS[kind])
        listed = guest.vcpu.list()[1]
        before = {register: guest.vcpu.get(register)[1] for register in listed}
        for register in listed:
            if register >> 16 & 0xFF != 0x13 or register & 0xFFFF in (0xDF1A, 0xDF02) or register in MOVING:
                continue
            if register & 0xFFFF in (sysreg(3, 0, 1, 0, 0) & 0xFFFF, sysreg(3, 0, 12, 0, 0) & 0xFFFF):
                continue
            for value in (0x5A5A5A5A5A5A5A50, 1):
                done = guest.vcpu.set(register, value)
                see(f"{kind}.{register:x}.{value:x}", (done, guest.run(mrs(register)), guest.vcpu.get(register)[1]))
            guest.vcpu.set(register, int(before[register], 16))
        for number in range(30):
            guest.start(**{f"x{number}": 0x1111111111111111 * (number % 15 + 1)})
            guest.vm.memory[CODE : CODE + 4] = struct.pack("<I", 0xF90003C0 | number)
            see(f"{kind}.x.{number}", (guest.resume(), guest.vcpu.get(X[number])))
        for pstate in range(64):
            guest.start(
                0xD53B4200, 0xD53B4220, pstate=pstate << 4 & 0x3C0 | (5, 4, 0, 0x10, 0x13, 9, 8, 0xF)[pstate & 7]
            )
            see(f"{kind}.pstate.{pstate}", (guest.vcpu.get(PSTATE), guest.resume(), guest.vcpu.get(PSTATE)))
        for register in (SP, SP_EL1, ELR, SPSR):
            for value in (0x123456789ABCDEF0, 0x3C5):
                done = guest.vcpu.set(register, value)
                see(f"{kind}.{register:x}.{value:x}", (done, guest.run(0x910003E0), guest.run(0xD5384100)))
                see(f"{kind}.{register:x}.{value:x}.elr", (guest.run(0xD5384020), guest.run(0xD5384000)))
        dump(see, f"{kind}.end", guest.vcpu)


def after_run(see: See) -> None:
    """What may be written after the first run."""
    for kind in ("plain", "full"):
        guest = Guest(KINDS[kind])
        see(f"{kind}.run", guest.run())
        other = Vcpu(guest.vm, 5, KINDS[kind])
        for register in guest.vcpu.list()[1]:
            if register >> 16 & 0xFF not in (0x13, 0x14, 0x16):
                continue
            value = guest.vcpu.value(register)
            done = [guest.vcpu.set(register, value ^ 1 << bit) for bit in (0, 4, 12, 20, 31, 33, 60)]
            see(f"{kind}.{register:x}", (done, guest.vcpu.set(register, value)))
        dump(see, f"{kind}.end", guest.vcpu)
        dump(see, f"{kind}.other", other)
        see(f"{kind}.init", guest.vcpu.init(KINDS[kind]))
        dump(see, f"{kind}.init", guest.vcpu)


def lowered(see: See) -> None:
    """ID registers, each bit lowered before a run: what the guest then reads."""
    for register in [sysreg(3, 0, 0, crm, op2) for crm in range(1, 8) for op2 in range(8)]:
        value = Vcpu(Vm(), 0, KINDS["full"]).value(register)
        for bit in range(0, 64, 4):
            if value >> bit & 15 in (0, 15):
                continue
            guest = Guest(KINDS["full"])
            done = guest.vcpu.set(register, value - (1 << bit))
            if done == 0:
                see(
                    f"{register:x}.{bit}",
                    (guest.run(mrs(register)), guest.vcpu.get(register), len(guest.vcpu.list()[1])),
                )
            os.close(guest.vcpu.fd)
            os.close(guest.vm.fd)


_CALLS = (
    *range(0x84000000, 0x84000022),
    *range(0xC4000000, 0xC4000022),
    *range(0x95C1BA5E, 0x95C1BA62),
    *(0x80000000, 0x80000001, 0x80000002, 0x80008000, 0x80007FFF, 0x80003FFF, 0x84000050, 0x84000051, 0x84000052),
    *(0x84000053, 0xC4000053, 0xC5000020, 0xC5000021, 0x8600FF01, 0x86000000, 0x86000001, 0xC6000040, 0, 1, _ALL),
)


def hypercalls(see: See) -> None:
    """Calls of the firmware."""
    bitmaps = [_ARM64 | 3 << 52 | 0x16 << 16 | number for number in range(4)]
    for version, mask in ((None, None), (None, 0), (2, None), (0x10000, None), (0x10001, None)):
        for call_ in _CALLS:
            if call_ in (0x84000053, 0xC4000053) and mask is None:
                continue
            guest = Guest(vcpus=2)
            guest.vcpus[1].init(5)
            if version is not None:
                guest.vcpu.set(_ARM64 | 3 << 52 | 0x14 << 16, version)
            for register in () if mask is None else bitmaps:
                guest.vcpu.set(register, mask or 0)
            for arguments in ((0, 0), (1, CODE), (0x80000000, CODE), (0x80000001, 0), (call_, 0)):
                where = f"{version}.{mask}.{call_:x}.{arguments[0]:x}.{arguments[1]:x}"
                found = guest.run(0xD4000002, x0=call_, x2=arguments[1], x3=0x77, x1=arguments[0])
                text = [guest.vcpu.get(X[number])[1] for number in range(5)]
                see(where, (found[:3], text if call_ not in (0x84000053, 0xC4000053) else ""))
                see(f"{where}.other", [structure(one, "MP_STATE") for one in guest.vcpus])
                if version is None and call_ in (0x84000003, 0xC4000003, 0x84000002):
                    guest.vcpu.call("SET_MP_STATE", bytearray(4))
                    dump(see, f"{where}.target", guest.vcpus[1])
                for one in guest.vcpus:
                    one.call("SET_MP_STATE", bytearray(4))
            for one in guest.vcpus:
                os.close(one.fd)
            os.close(guest.vm.fd)


def events(see: See) -> None:
    """SErrors, aborts, run states."""
    for pending in (0, 1, 2):
        for has in (0, 1):
            for abort in (0, 1):
                for esr in (0, 1, 0x1FFFFFF, 0x2000000, _ALL):
                    guest = Guest()
                    data = struct.pack("<8BQ48x", pending, has, abort, 0, 0, 0, 0, 0, esr)
                    where = f"{pending}.{has}.{abort}.{esr:x}"
                    see(
                        where,
                        (guest.vcpu.call("SET_VCPU_EVENTS", bytearray(data)), structure(guest.vcpu, "VCPU_EVENTS")),
                    )
                    see(
                        f"{where}.pc",
                        (guest.vcpu.get(PC), guest.vcpu.get(ESR), guest.vcpu.get(FAR), guest.vcpu.get(ELR)),
                    )
                    for pstate in (0x3C5, 0x2C5):
                        guest.start(0xD503201F, pstate=pstate)
                        see(f"{where}.{pstate:x}", (guest.resume(), structure(guest.vcpu, "VCPU_EVENTS")))
    for at in range(64):
        one = bytearray(64)
        one[at] = 1
        guest = Guest()
        see(f"byte.{at}", (guest.vcpu.call("SET_VCPU_EVENTS", one), structure(guest.vcpu, "VCPU_EVENTS")))
    for state in range(12):
        guest = Guest()
        number = bytearray(struct.pack("<I", state))
        see(f"mp.{state}", (guest.vcpu.call("SET_MP_STATE", number), structure(guest.vcpu, "MP_STATE")))
        if state != 3:
            see(f"mp.{state}.run", guest.run() if state == 0 else "")


def memory(see: See) -> None:
    """Loads and stores where memory is and where none is."""
    guest = Guest(20)
    guest.vcpu.set(CPACR, 0x330000)
    codes = [
        size << 30 | 0x38000020 | op << 22 | how
        for size in range(4)
        for op in range(4)
        for how in (0, 0x400, 0x1000400)
    ]
    codes += [
        0xA9000820,
        0xA9400820,
        0x3D800020,
        0x3DC00020,
        0xD5087620,
        0xC85F7C20,
        0xC8007C22,
        0xF8200042,
        0xD50B7A21,
    ]
    for code in codes:
        for target in (IO, IO + 3, DATA, 0x40000000000):
            guest.start(code, x0=0x8877665544332211, x1=target, x2=IO)
            found = guest.resume()
            struct.pack_into("<Q", guest.vcpu.run_area, 40, 0x8182838485868788)
            see(f"{code:x}.{target:x}", found)
            see(
                f"{code:x}.{target:x}.on",
                (guest.resume(), guest.vcpu.get(X[0]), guest.vcpu.get(ESR), guest.vcpu.get(FAR)),
            )
            see(f"{code:x}.{target:x}.data", bytes(guest.vm.memory[DATA : DATA + 64]).hex())
            guest.vm.memory[DATA : DATA + 64] = bytes(64)
    for flags in (0, 1, 2, 3, 4, 8):
        vm = Vm(flags=flags)
        guest = Guest(vm=vm)
        see(f"slot.{flags}", guest.run(0xF9000040, x0=1, x2=DATA + 0x3000))
        log = bytearray(64)
        address = ctypes.addressof(ctypes.c_char.from_buffer(log))
        for _ in range(2):
            see(
                f"slot.{flags}.log",
                (call(vm.fd, "GET_DIRTY_LOG", bytearray(struct.pack("<IIQ", 0, 0, address))), log.hex()),
            )


SECTIONS = (
    vectors,
    guest_sysregs,
    given,
    after_run,
    lowered,
    hypercalls,
    events,
    memory,
)
