# SPDX-License-Identifier: Apache-2.0
"""What calls alone show of a KVM of arm64, section by section."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable

from tests.kernels.plain.arm64 import Guest, Vcpu, Vm, all_sysregs, attribute, core, mrs, size_of, sysreg
from tests.kernels.plain.kvm import call

__all__ = ["KINDS", "MOVING", "SECTIONS", "See", "dump", "structure"]


See = Callable[[str, object], None]
_ARM64 = 0x6000000000000000
_ALL = (1 << 64) - 1
_SVE = _ARM64 | 0x15 << 16
KINDS = {"plain": 4, "sve": 20, "pmu": 12, "pauth": 0x64, "aarch32": 6, "old": 0, "full": 0x7C}
#: what goes on by itself: counters of time and of events
MOVING = {
    *(sysreg(3, 3, 14, 0, 1), sysreg(3, 3, 14, 3, 2), sysreg(3, 3, 14, 0, 2), sysreg(3, 3, 9, 13, 0)),
    *(sysreg(3, 3, 14, crm, 0) for crm in (2, 3)),
}


def system(see: See) -> None:
    """What KVM says of itself, and what a VM takes."""
    kvm = os.open("/dev/kvm", os.O_RDWR)
    vm = Vm()
    for number in range(1, 270):
        see(f"extension.{number}", (call(kvm, "CHECK_EXTENSION", number), call(vm.fd, "CHECK_EXTENSION", number)))
        for flags in (0, 1):
            fresh = Vm()
            data = bytearray(struct.pack("<II4Q64x", number, flags, 1, 0, 0, 0))
            see(f"enable.{number}.{flags}", call(fresh.fd, "ENABLE_CAP", data))
            os.close(fresh.fd)
    for kind in (*range(70), 0x100, 1 << 31):
        made = call(kvm, "CREATE_VM", kind)
        see(f"vm.{kind}", made if isinstance(made, str) else "made")
        if isinstance(made, int):
            os.close(made)
    data = bytearray(b"\xa5" * 32)
    see("target", (call(vm.fd, "PREFERRED_TARGET", data), data.hex()))
    for reserved in (0, 1):
        for index in (0, 1):
            masks = bytearray(8 * 3 * 8 * 8)
            address = ctypes.addressof(ctypes.c_char.from_buffer(masks))
            words = bytearray(struct.pack("<QI13I", address, index, reserved, *[0] * 12))
            see(f"masks.{reserved}.{index}", call(vm.fd, "REG_WRITABLE_MASKS", words))
            for offset in range(0, len(masks), 8):
                see(f"masks.{reserved}.{index}.{offset}", masks[offset : offset + 8].hex())
    for kind in range(20):
        for flags in (1, 0, 2):
            see(
                f"device.{kind}.{flags}",
                call(Vm().fd, "CREATE_DEVICE", bytearray(struct.pack("<III", kind, 0, flags))),
            )
    for name in ("HAS", "SET"):
        for group in range(3):
            for number in range(4):
                see(f"vm.{name}.{group}.{number}", attribute(vm.fd, name, group, number))


def inits(see: See) -> None:
    """VCPU_INIT with every feature and some sets of them."""
    for number in range(32):
        for more in (4, 0):
            vcpu = Vcpu(Vm(), 0, init=False)
            see(f"init.{number}.{more}", (vcpu.init(more | 1 << number), vcpu.init(more | 1 << number), vcpu.init(4)))
    for word in range(7):
        see(f"init.word.{word}", Vcpu(Vm(), 0, init=False).init(*[4 * (word == 0)] * word, 5))
    for target in (*range(8), _ALL & 0xFFFFFFFF):
        see(f"init.target.{target}", Vcpu(Vm(), 0, init=False).init(4, target=target))
    for features in range(0, 512, 2):
        vcpu = Vcpu(Vm(), 0, init=False)
        see(f"init.features.{features:#x}", (vcpu.init(features), vcpu.init(features | 1), vcpu.init(features ^ 4)))
        see(f"init.features.{features:#x}.mp", structure(vcpu, "MP_STATE"))
    for first, second in ((4, 20), (20, 4), (4, 0), (0, 4), (4, 12), (4, 5), (5, 4), (0x64, 4), (4, 0x64), (4, 6)):
        vm = Vm()
        one, two = Vcpu(vm, 0, init=False), Vcpu(vm, 1, init=False)
        see(f"init.two.{first}.{second}", (one.init(first), two.init(second), one.init(first), two.init(first)))
    bare = Vcpu(Vm(), 0, init=False)
    for name in (
        "GET_VCPU_EVENTS",
        "SET_VCPU_EVENTS",
        "GET_MP_STATE",
        "SET_MP_STATE",
        "RUN",
        "FINALIZE",
        "GET_REG_LIST",
    ):
        see(f"before.{name}", bare.call(name, bytearray(64) if name != "RUN" else 0))
    for register in (core(0), _SVE | 8 << 52, sysreg(3, 0, 0, 4, 0), _ARM64):
        see(f"before.{register:#x}", (bare.get(register), bare.set(register, 0)))
    for name in (
        "GET_REGS",
        "SET_REGS",
        "GET_SREGS",
        "SET_SREGS",
        "GET_FPU",
        "SET_FPU",
        "TRANSLATE",
        "INTERRUPT",
        "NMI",
    ):
        see(f"none.{name}", Vcpu(Vm()).call(name, bytearray(1024)))
    for number in (0, 1, 511, 512, 1 << 20):
        made = call(Vm().fd, "CREATE_VCPU", number)
        see(f"vcpu.{number}", made if isinstance(made, str) else "made")


def structure(vcpu: Vcpu, name: str) -> tuple[int | str, str]:
    data = bytearray(b"\xa5" * (4 if name == "MP_STATE" else 64))
    return vcpu.call(f"GET_{name}", data), data.hex()


def dump(see: See, where: str, vcpu: Vcpu) -> None:
    """Write down everything that a vCPU says about itself."""
    done, listed = vcpu.list()
    see(f"{where}.list", (done, len(listed)))
    for register in listed:
        done, value = vcpu.get(register)
        see(f"{where}.{register:x}", (done, "moves" if register in MOVING or register & 0xFFFF == 0xDF1A else value))
    for name in ("MP_STATE", "VCPU_EVENTS"):
        see(f"{where}.{name}", structure(vcpu, name))


def listed(see: See) -> None:
    """What the list has, and every bit of every register of it."""
    for kind in ("plain", "full", "aarch32"):
        features = KINDS[kind]
        vm = Vm()
        vcpu = Vcpu(vm, 0, features)
        other = Vcpu(vm, 17, features)
        dump(see, f"{kind}.new", vcpu)
        dump(see, f"{kind}.second", other)
        done, listed = vcpu.list(3)
        see(f"{kind}.short", (done, listed))
        done, listed = vcpu.list()
        for register in listed:
            _bits(see, f"{kind}.{register:x}", vcpu, other, register)
        dump(see, f"{kind}.end", vcpu)
        see(f"{kind}.again", vcpu.init(features))
        dump(see, f"{kind}.again", vcpu)


def _bits(see: See, where: str, vcpu: Vcpu, other: Vcpu, register: int) -> None:
    value = vcpu.value(register)
    moving = register in MOVING or register & 0xFFFF == 0xDF1A
    width = 8 * size_of(register)
    for bit in (bit for bit in (*range(0, 64, 3), 127, 128, 255, 2047) if bit < width):
        wanted = value ^ 1 << bit
        done = vcpu.set(register, wanted)
        now = vcpu.value(register)
        see(f"{where}.{bit}", (done, "moves" if moving else f"{now ^ value:x}"))
    for wanted in (0, (1 << width) - 1, int("a5" * (width // 8), 16)):
        see(f"{where}.{wanted & 0xFF:x}", (vcpu.set(register, wanted), "" if moving else vcpu.get(register)[1]))
        if not moving:
            see(f"{where}.{wanted & 0xFF:x}.other", other.get(register)[1])
    see(f"{where}.back", (vcpu.set(register, value), "" if moving else vcpu.get(register)[1]))


def ids(see: See) -> None:
    """Numbers of every kind, listed or not."""
    for kind in ("plain", "full"):
        vcpu = Vcpu(Vm(), 0, KINDS[kind])
        for register in all_sysregs():
            done, value = vcpu.get(register)
            if done != "ENOENT":
                see(f"{kind}.{register:x}", (done, "" if register in MOVING else value, vcpu.set(register, 0)))
        for size in range(9):
            for offset in range(0, 0x160):
                see(f"{kind}.core.{size}.{offset}", vcpu.get(core(offset, size))[0])
            for group in (0x11, 0x12, 0x14, 0x15, 0x16, 0x17, 0x1F):
                for number in (*range(40), 0x7F, 0x400, 0x5FF, 0x620, 0xFFFF):
                    register = _ARM64 | size << 52 | group << 16 | number
                    see(f"{kind}.{register:x}", (vcpu.get(register)[0], vcpu.set(register, 0)))
            see(f"{kind}.size.{size}", vcpu.get(sysreg(3, 0, 5, 2, 0) & ~(15 << 52) | size << 52)[0])
        for bit in range(64):
            for register in (core(0), sysreg(3, 0, 5, 2, 0), _SVE | 8 << 52):
                see(
                    f"{kind}.bit.{register:x}.{bit}",
                    (vcpu.get(register ^ 1 << bit)[0] if bit < 52 or bit > 55 else ""),
                )
        for register in (core(0), sysreg(3, 0, 5, 2, 0), _SVE | 8 << 52, core(84, 4), _ARM64 | 3 << 52 | 0x14 << 16):
            for name in ("GET_ONE_REG", "SET_ONE_REG"):
                see(f"{kind}.{name}.{register:x}.null", vcpu.call(name, bytearray(struct.pack("<QQ", register, 8))))


def lengths(see: See) -> None:
    """Sets of vector lengths, and FINALIZE."""
    sets = _SVE | 6 << 52 | 0xFFFF
    for mask in (*range(64), *(1 << bit for bit in range(6, 512)), 0xFF, 0xFFFF, 0x8B, _ALL):
        vcpu = Vcpu(Vm(), 0, 20, init=False)
        vcpu.init(20)
        see(f"set.{mask:x}", (vcpu.get(sets), vcpu.set(sets, mask), vcpu.get(sets)))
        see(f"set.{mask:x}.final", vcpu.call("FINALIZE", bytearray(struct.pack("<I", 4))))
        see(f"set.{mask:x}.after", (vcpu.get(sets), vcpu.set(sets, mask), vcpu.set(sets, 1), vcpu.get(sets)))
        if mask < 64:
            for register in (_SVE | 8 << 52 | 5 << 5, _SVE | 5 << 52 | 0x400, _SVE | 5 << 52 | 0x600):
                see(f"set.{mask:x}.{register:x}", (vcpu.set(register, int("5a" * 256, 16)), vcpu.get(register)))
    for what in range(12):
        for features in (4, 20):
            vcpu = Vcpu(Vm(), 0, features, init=False)
            before = (
                vcpu.init(features),
                vcpu.call("RUN"),
                vcpu.list()[0],
                vcpu.get(_SVE | 8 << 52),
                vcpu.get(core(0)),
            )
            final = bytearray(struct.pack("<I", what))
            see(f"final.{what}.{features}", (*before, vcpu.call("FINALIZE", final), vcpu.call("FINALIZE", final)))
            see(f"final.{what}.{features}.again", (vcpu.init(features), vcpu.call("FINALIZE", final), vcpu.list()[0]))


def timers(see: See) -> None:
    """Attributes of a vCPU, and its counters."""
    for kind in ("plain", "full"):
        guest = Guest(KINDS[kind], vcpus=2)
        for group in (0, 1, 2):
            for number in range(6):
                for name in ("HAS", "GET", "SET"):
                    for value in (0, 20, 27, 30, 33):
                        found = attribute(guest.vcpu.fd, name, group, number, value, 4)
                        see(f"{kind}.{name}.{group}.{number}.{value}", found)
        for register in (sysreg(3, 3, 14, 3, 2), _ARM64 | 0x0030000000130000 | 0xDF1A, sysreg(3, 3, 14, 0, 1)):
            for value in (1 << 40, 1 << 50):
                done = guest.vcpu.set(register, value)
                near = [(one.value(register) - value) >> 36 for one in guest.vcpus]
                read = [int(str(guest.run(mrs(sysreg(3, 3, 14, 0, op2)))[3]), 16) >> 36 for op2 in (1, 2)]
                see(f"{kind}.{register:x}.{value:x}", (done, near, read))
        for reserved in (0, 1):
            for value in (0, 1 << 45):
                vm = Vm()
                vcpu = Vcpu(vm)
                done = call(vm.fd, "SET_COUNTER_OFFSET", bytearray(struct.pack("<QQ", value, reserved)))
                counters = [
                    vcpu.value(register) >> 40
                    for register in (_ARM64 | 0x0030000000130000 | 0xDF1A, sysreg(3, 3, 14, 0, 1))
                ]
                see(
                    f"{kind}.offset.{reserved}.{value:x}",
                    (done, counters, vcpu.set(sysreg(3, 3, 14, 0, 1), 7), vcpu.value(sysreg(3, 3, 14, 0, 1)) >> 40),
                )


def gic(see: See) -> None:
    """A GICv3's attributes and registers."""
    for before in (0, 64, 96, 128, 1024, 1056, 65):
        vm = Vm()
        made = bytearray(struct.pack("<III", 7, 0, 0))
        call(vm.fd, "CREATE_DEVICE", made)
        fd = int(struct.unpack_from("<I", made, 4)[0])
        see(
            f"irqs.{before}",
            (
                attribute(fd, "SET", 3, 0, before, 4),
                attribute(fd, "GET", 3, 0, 0, 4),
                attribute(fd, "SET", 3, 0, 64, 4),
            ),
        )
    for number in range(6):
        for value in (0, 0x1000, 0x8000000, 0x8010000, 1 << 39, 1 << 40, 0x8000001):
            vm = Vm()
            made = bytearray(struct.pack("<III", 7, 0, 0))
            call(vm.fd, "CREATE_DEVICE", made)
            fd = int(struct.unpack_from("<I", made, 4)[0])
            see(
                f"place.{number}.{value:x}",
                (
                    attribute(fd, "SET", 0, number, value),
                    attribute(fd, "GET", 0, number),
                    attribute(fd, "SET", 0, number, value + 0x10000),
                ),
            )
    guest = Guest(gic=True, vcpus=2)
    for group in range(12):
        for number in range(6):
            for name in ("HAS", "GET"):
                see(f"{name}.{group}.{number}", attribute(guest.gic, name, group, number))
    for group, ranges in (
        (1, ((0, 0x1000), (0x6000, 0x6400), (0xFFD0, 0x10000))),
        (5, ((0, 0x120), (0xFFD0, 0x10120), (0x10180, 0x10200), (0x10280, 0x10D10))),
    ):
        for first, last in ranges:
            for offset in range(first, last, 4):
                for vcpu in (0, 1):
                    number = vcpu << 32 | offset
                    base = attribute(guest.gic, "GET", group, number, 0, 4)
                    see(f"gic.{group}.{number:x}", (attribute(guest.gic, "HAS", group, number), base))
                    for value in (_ALL, 0x5A5A5A5A, 0):
                        see(
                            f"gic.{group}.{number:x}.{value:x}",
                            (
                                attribute(guest.gic, "SET", group, number, value, 4),
                                attribute(guest.gic, "GET", group, number, 0, 4),
                            ),
                        )
                    attribute(guest.gic, "SET", group, number, int.from_bytes(bytes.fromhex(base[1]), "little"), 4)
    for crn in (4, 12):
        for crm in range(16):
            for op2 in range(8):
                number = sysreg(3, 0, crn, crm, op2) & 0xFFFF
                base = attribute(guest.gic, "GET", 6, number)
                if base[0] != 0:
                    see(f"cpu.{number:x}", base)
                    continue
                see(
                    f"cpu.{number:x}",
                    (
                        base,
                        [
                            (attribute(guest.gic, "SET", 6, number, value), attribute(guest.gic, "GET", 6, number))
                            for value in (_ALL, 0x5A, 0, 7, 0xF0)
                        ],
                    ),
                )
                attribute(guest.gic, "SET", 6, number, int.from_bytes(bytes.fromhex(base[1]), "little"))
    for place in (
        0x8000000,
        0x8000004,
        0x8000008,
        0x8000080,
        0x8000100,
        0x8000400,
        0x80A0000,
        0x80A0008,
        0x80B0080,
        0x80B0100,
        0x80B0400,
    ):
        see(f"mmio.{place:x}", guest.run(0xB9400040, x2=place))
        see(f"mmio.{place:x}.set", (guest.run(0xB9000040, 0xB9400040, x0=0xA5A5A5A5, x2=place)))


SECTIONS = (
    system,
    inits,
    listed,
    ids,
    lengths,
    timers,
    gic,
)
