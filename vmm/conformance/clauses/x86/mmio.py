# SPDX-License-Identifier: Apache-2.0
"""Loads and stores where the guest has no memory: what KVM emulates for them, and the exits that they make."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, no_difference
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import AREA, AVX, pattern, plain_features
from vmm.kvm.exits import Exit, InternalError, MmioRead, MmioWrite, decode
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.x86.boot import CR4_OSXSAVE
from vmm.x86.guest import EXCEPTION, Guest
from vmm.x86.registers import get_regs, set_regs, set_xcr0
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea, get_xsave, set_xsave

# The payload's PARAM(0), in the addresses that guests leave out.
_ADDRESS = 0xD000_0000
_VALUE = 0x8899_AABB_CCDD_EEFF
_ALL = (1 << 64) - 1
_KEPT = ("rbp", "rsi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
# Offset and size of each exit of the payload's entry points, in their order.
_LOADS = [(0x00, 1), (0x10, 2), (0x20, 4), (0x30, 8), (0x40, 1), (0x50, 2), (0x60, 1), (0x70, 2), (0x80, 4)]
_STORES = _LOADS[:4]
# A vector goes in pieces of 8 bytes, those of one page before those of the next.
_SSE = [(at, 8) for at in range(0, 0x40, 8)] + [(0xFFC, 4), (0x1000, 8), (0x1008, 4)]
_VEX = [(0x00, 8), (0x08, 8), *((at, 8) for at in range(0x20, 0x80, 8)), *((at, 8) for at in range(0xFF0, 0x1010, 8))]
# Where each register that a VEX instruction names is loaded from, and how many bytes.
_VEX_PLACES = {1: (0x00, 16), 2: (0x20, 32), 3: (0x40, 32), 4: (0x60, 32), 5: (0xFF0, 32)}
_SSE_PLACES = {1: 0x00, 2: 0x10, 3: 0x20, 4: 0x30, 5: 0xFFC}
_NON_TEMPORAL = [(0x40, 8), (0x48, 8)]
_XMM_AT = 8  # behind MXCSR in the component


class _Device:
    """What is where the guest has no memory: bytes that it reads, and what it wrote."""

    def __init__(self, context: Context, *, vectors: bool = False) -> None:
        self._timeout = context.timeout
        self.data = random.Random(context.options.seed).randbytes(0x2000)
        self.written: list[tuple[int, int, int]] = []
        self.read: list[tuple[int, int]] = []
        table = context.host.facts.cpuid
        self.guest = context.own(Guest(context.kvm, "mmio", cpuid=table, cr4=CR4_OSXSAVE if vectors else 0))
        if vectors:
            set_xcr0(self.guest.vcpu, plain_features(context))

    def start(self, entry: str, address: int = _ADDRESS) -> None:
        """Point the guest at an entry point, with general registers that it does not name filled."""
        guest = self.guest
        guest.prepare(entry, address, _VALUE, privilege=guest.USER)
        regs = get_regs(guest.vcpu)
        for number, name in enumerate(_KEPT, start=1):
            setattr(regs, name, number * 0x0123_4567_89AB_CDEF & _ALL)
        set_regs(guest.vcpu, regs)
        self.read, self.written = [], []

    def serve(self, exit: Exit) -> bool:
        """Do what an exit asks for; False if it is none of a load or a store."""
        if isinstance(exit, MmioRead):
            self.read.append((exit.address - _ADDRESS, exit.size))
            self.guest.vcpu.reply(self.word(exit.address - _ADDRESS, exit.size))
        elif isinstance(exit, MmioWrite):
            self.written.append((exit.address - _ADDRESS, exit.size, exit.value))
        else:
            return False
        return True

    def run(self, entry: str) -> Exit:
        """Run an entry point, answering its loads; return the exit that is none of a load or a store."""
        self.start(entry)
        while self.serve(exit := self.guest.resume(self._timeout)):
            pass
        return exit

    def finish(self, entry: str) -> None:
        """Run an entry point to its end, with nothing but what it names changed among the general registers."""
        exit = self.run(entry)
        equal(f"how {entry} ends", (exit, self.guest.event(exit)), (exit, self.guest.DONE))
        self.guest.complete()
        regs = get_regs(self.guest.vcpu)
        changed = [
            name
            for number, name in enumerate(_KEPT, start=1)
            if getattr(regs, name) != number * 0x0123_4567_89AB_CDEF & _ALL
        ]
        equal("general registers that changed", changed, [])

    def word(self, at: int, size: int) -> int:
        """The bytes at an offset as a number."""
        return int.from_bytes(self.data[at : at + size], "little")

    def resume(self) -> Exit:
        """Run on to the next exit."""
        return self.guest.resume(self._timeout)


def _signed(value: int, size: int) -> int:
    bits = 8 * size
    return (value | -(value >> bits - 1) << bits) & _ALL


@clause("mmio.scalar-load", arch="x86")
def scalar_load(context: Context) -> None:
    """A load of 1, 2, 4 or 8 bytes is an exit of that size, whose data is extended as the instruction says.

    Loads of 1 and 2 bytes leave the rest of the register, those of 4 clear it. One that is in two pages makes an exit
    for each.

    Source: Documentation/virt/kvm/api.rst 5 (KVM_EXIT_MMIO); arch/x86/kvm/x86.c, emulator_read_write,
    complete_emulated_mmio; Intel SDM volume 1, 3.4.1.1 (register operands in 64-bit mode).
    """
    device = _Device(context)
    # Once with the highest bit of each load set and once without, for those that extend it.
    for flip in (0x00, 0xFF):
        device.data = bytes(byte ^ flip for byte in device.data)
        device.finish("loads")
        equal("loads, as offset and size", device.read, [*_LOADS, (0xFFD, 3), (0x1000, 5)])
        equal("stores", device.written, [])
        low = [device.word(at, size) for at, size in _LOADS]
        expected = [
            _VALUE & ~0xFF | low[0],
            _VALUE & ~0xFFFF | low[1],
            *low[2:6],
            _signed(low[6], 1),
            _signed(low[7], 2),
            _signed(low[8], 4),
            device.word(0xFFD, 8),
        ]
        equal("what the registers held", device.guest.mailbox.values[:10], expected)


@clause("mmio.scalar-store", arch="x86")
def scalar_store(context: Context) -> None:
    """A store of 1, 2, 4 or 8 bytes is an exit of that size with its data; one in two pages makes one for each.

    An instruction that loads and stores makes an exit for either.

    Source: Documentation/virt/kvm/api.rst 5 (KVM_EXIT_MMIO); arch/x86/kvm/x86.c, emulator_read_write,
    complete_emulated_mmio.
    """
    device = _Device(context)
    device.finish("stores")
    parts = [(0xFFD, 3, _VALUE & 0xFFFFFF), (0x1000, 5, _VALUE >> 24)]
    added = (0x40, 8, device.word(0x40, 8) + _VALUE & _ALL)
    stores = [(at, size, _VALUE & (1 << 8 * size) - 1) for at, size in _STORES]
    equal("stores, as offset, size and data", device.written, [*stores, *parts, added])
    equal("loads, as offset and size", device.read, [(0x40, 8)])


@clause("mmio.half-memory", arch="x86")
def half_memory(context: Context) -> None:
    """A load or store of which a part is in memory makes one exit, for the other part; memory has or gets its own.

    Source: arch/x86/kvm/x86.c, emulator_read_write, emulator_read_write_onepage.
    """
    device = _Device(context)
    guest, end = device.guest, device.guest.memory.size
    before = b"\x11\x22\x33"
    guest.memory.write(end - 3, before)
    device.start("load", end - 3)
    equal("how the load leaves", device.resume(), MmioRead(end, 5))
    guest.vcpu.reply(_VALUE >> 24)
    equal("how the guest goes on behind it", guest.event(device.resume()), guest.DONE)
    loaded = int.from_bytes(before, "little") | _VALUE >> 24 << 24
    equal("what it loaded", guest.mailbox.read("values"), loaded)
    device.start("store", end - 3)
    equal("how the store leaves", device.resume(), MmioWrite(end, 5, _VALUE >> 24))
    equal("how the guest goes on behind it", guest.event(device.resume()), guest.DONE)
    equal("what it stored in memory", guest.memory.read(end - 3, 3), (_VALUE & 0xFFFFFF).to_bytes(3, "little"))


def _filled(context: Context, device: _Device) -> XsaveArea:
    """Fill the guest's vector registers and return what they are to hold."""
    area = pattern(plain_features(context), seed=7)
    set_xsave(device.guest.vcpu, area)
    return area


def _vector(area: XsaveArea, number: int) -> bytes:
    """Return the lower 32 bytes of a vector register."""
    xmm = area.component(XFeature.SSE)[_XMM_AT + 16 * number :][:16]
    return xmm + (area.component(XFeature.YMM)[16 * number :][:16] if XFeature.YMM in area.layout else b"")


def _put(area: XsaveArea, number: int, data: bytes, *, clears: bool) -> None:
    """Give a vector register another value from its lowest byte on; ``clears`` makes zeros of what is above."""
    image, at = b"", 0
    for component, size in ((XFeature.SSE, 16), (XFeature.YMM, 16), (XFeature.ZMM_HI256, 32)):
        if not area.xstate_bv >> component & 1:
            continue
        image = area.component(component)
        place = size * number + (_XMM_AT if component is XFeature.SSE else 0)
        part = data[at : at + size] or (bytes(size) if clears else image[place : place + size])
        area.set_component(component, image[:place] + part + image[place + size :])
        at += size


def _pieces(data: bytes, exits: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Return the stores that ``data`` makes in these pieces, one after the other."""
    stores, at = [], 0
    for offset, size in exits:
        stores.append((offset, size, int.from_bytes(data[at : at + size], "little")))
        at += size
    return stores


@clause("mmio.sse-load", arch="x86", needs=AREA)
def sse_load(context: Context) -> None:
    """MOVDQU, MOVDQA, MOVUPS and MOVAPS load in ascending pieces of 8 bytes and change 16 bytes of one register.

    The upper part of the register and every other register stay. A load that is in two pages is split between them.

    Source: arch/x86/kvm/emulate.c, pfx_0f_6f_0f_7f, pfx_0f_10_0f_11, pfx_0f_28_0f_29; arch/x86/kvm/x86.c,
    complete_emulated_mmio; Intel SDM volume 2, MOVDQU.
    """
    device = _Device(context, vectors=bool(plain_features(context) & 1 << XFeature.YMM))
    expected = _filled(context, device)
    device.finish("sse_loads")
    equal("loads, as offset and size", device.read, _SSE)
    equal("stores", device.written, [])
    for number, at in _SSE_PLACES.items():
        _put(expected, number, device.data[at : at + 16], clears=False)
    no_difference("the state after the loads", expected.same_state(get_xsave(device.guest.vcpu)))


@clause("mmio.sse-store", arch="x86", needs=AREA)
def sse_store(context: Context) -> None:
    """MOVDQU, MOVDQA, MOVUPS, MOVAPS and MOVNTDQ store in ascending pieces of 8 bytes and change no register.

    Source: arch/x86/kvm/emulate.c, pfx_0f_6f_0f_7f, pfx_0f_10_0f_11, pfx_0f_28_0f_29, pfx_0f_e7_0f_38_2a;
    arch/x86/kvm/x86.c, complete_emulated_mmio.
    """
    device = _Device(context, vectors=bool(plain_features(context) & 1 << XFeature.YMM))
    expected = _filled(context, device)
    device.finish("sse_stores")
    data = b"".join(_vector(expected, number)[:16] for number in range(1, 7))
    equal("stores, as offset, size and data", device.written, _pieces(data, [*_SSE, *_NON_TEMPORAL]))
    equal("loads", device.read, [])
    no_difference("the state after the stores", expected.same_state(get_xsave(device.guest.vcpu)))


def _emulated(context: Context, device: _Device, entry: str) -> None:
    """Run an entry point with VEX instructions, on a kernel that emulates them.

    One that does not gives up with KVM_EXIT_INTERNAL_ERROR at CPL0 and raises #UD at CPL3.
    Source: arch/x86/kvm/x86.c, handle_emulation_failure.
    """
    guest = device.guest
    exit = device.run(entry)
    if not device.read and not device.written:
        if isinstance(exit, InternalError) and exit.suberror == lib.KVM_INTERNAL_ERROR_EMULATION:
            context.skip(f"this KVM emulates no VEX moves: {exit}")
        if guest.event(exit) == EXCEPTION and guest.fault().name == "#UD":
            context.skip(f"this KVM emulates no VEX moves: {guest.fault()}")
    equal(f"how {entry} ends", (exit, guest.event(exit)), (exit, guest.DONE))
    guest.complete()


@clause("mmio.vex-load", arch="x86", needs=(*AREA, AVX))
def vex_load(context: Context) -> None:
    """VEX-encoded moves of 16 and 32 bytes load in ascending pieces of 8 and make zeros of the rest of the register.

    Kernels that emulate no VEX moves (6.18 is one; 7.2 does) give up or raise #UD.

    Source: arch/x86/kvm/emulate.c, x86_decode_avx, writeback (OP_XMM, OP_YMM); Intel SDM volume 1, 14.1.1.
    """
    device = _Device(context, vectors=True)
    expected = _filled(context, device)
    _emulated(context, device, "vex_loads")
    equal("loads, as offset and size", device.read, _VEX)
    equal("stores", device.written, [])
    for number, (at, size) in _VEX_PLACES.items():
        _put(expected, number, device.data[at : at + size], clears=True)
    no_difference("the state after the loads", expected.same_state(get_xsave(device.guest.vcpu)))


@clause("mmio.vex-store", arch="x86", needs=(*AREA, AVX))
def vex_store(context: Context) -> None:
    """VEX-encoded moves of 16 and 32 bytes store in ascending pieces of 8 and change no register.

    Kernels that emulate no VEX moves (6.18 is one; 7.2 does) give up or raise #UD.

    Source: arch/x86/kvm/emulate.c, x86_decode_avx, writeback (OP_MEM); arch/x86/kvm/x86.c, complete_emulated_mmio.
    """
    device = _Device(context, vectors=True)
    expected = _filled(context, device)
    _emulated(context, device, "vex_stores")
    data = b"".join(_vector(expected, number)[:size] for number, (_, size) in _VEX_PLACES.items())
    equal("stores, as offset, size and data", device.written, _pieces(data, _VEX))
    equal("loads", device.read, [])
    no_difference("the state after the stores", expected.same_state(get_xsave(device.guest.vcpu)))


def _complete(vcpu: Vcpu) -> bool:
    """Finish a pending exit without running the guest; tell whether that made another exit."""
    vcpu.kvm_run.immediate_exit = 1
    try:
        vcpu.ioctl_value(lib.KVM_RUN)
    except KvmError as error:
        if error.errno != errno.EINTR:
            raise
        return False
    finally:
        vcpu.kvm_run.immediate_exit = 0
    return True


@clause("mmio.completion", arch="x86", needs=AREA)
def completion(context: Context) -> None:
    """KVM_RUN with immediate_exit ends a load or store without running on: its data is in the registers then, once.

    So a save between the exit and the next run loses nothing. A vector's next piece is another exit instead.

    Source: Documentation/virt/kvm/api.rst 5 (KVM_EXIT_MMIO: "the corresponding operations are complete only after
    userspace has re-entered the kernel"); arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_run.
    """
    device = _Device(context)
    guest, vcpu = device.guest, device.guest.vcpu
    device.start("load")
    equal("how a load leaves", device.resume(), MmioRead(_ADDRESS, 8))
    vcpu.reply(_VALUE)
    equal("another exit when it is completed", _complete(vcpu), False)
    regs = get_regs(vcpu)
    equal("RAX behind a load", regs.rax, _VALUE)
    equal("RIP behind a load", regs.rip, guest.payload.symbol("behind_load"))
    equal("how the guest goes on", guest.event(device.resume()), guest.DONE)
    equal("what it loaded", guest.mailbox.read("values"), _VALUE)

    device.start("store")
    equal("how a store leaves", device.resume(), MmioWrite(_ADDRESS, 8, _VALUE))
    equal("another exit when it is completed", _complete(vcpu), False)
    equal("RIP behind a store", get_regs(vcpu).rip, guest.payload.symbol("behind_store"))
    equal("how the guest goes on", guest.event(device.resume()), guest.DONE)
    equal("how often it went on", guest.mailbox.read("values"), 1)

    device.start("load_vector")
    expected = _filled(context, device)
    equal("how a load of a vector leaves", device.serve(device.resume()), True)
    equal("another exit when its first piece is completed", _complete(vcpu), True)
    no_difference("the state between the pieces", expected.same_state(get_xsave(vcpu)))
    equal("the second piece", device.serve(decode(vcpu.page)), True)
    equal("another exit when its second piece is completed", _complete(vcpu), False)
    equal("both pieces", device.read, _SSE[:2])
    _put(expected, 1, device.data[:16], clears=False)
    no_difference("the state behind a load of a vector", expected.same_state(get_xsave(vcpu)))
