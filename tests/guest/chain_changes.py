# SPDX-License-Identifier: Apache-2.0
"""Changes of a guest's registers and memory at a tick of its chain: each has to change the digest.

Where the state is that only an emulated machine has, this file runs there by itself: ``python3 -c SOURCE LEVEL ...``
prints one JSON line a level.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vmm.arch import ARCHITECTURE, module
from vmm.guest.base import GuestError
from vmm.kvm.system import Kvm

chain = module("chain")

# Returns False if the guest's state has nothing of this name just now, such as a row of a smaller tile.
Change = Callable[[Any], bool | None]
_STEPS, _AT, _TIMEOUT = 5, 3, 30
_LONG = 200
_PAGE = 4096


def _flip(value: int, legal: int, source: random.Random) -> int:
    """Change one of the bits that a register has."""
    return value ^ 1 << source.choice([bit for bit in range(legal.bit_length()) if legal >> bit & 1])


if ARCHITECTURE == "x86":
    from vmm._kvm import lib
    from vmm.x86.msr import get_msr, set_msr
    from vmm.x86.msr_names import Msr
    from vmm.x86.registers import get_regs, set_regs
    from vmm.x86.xfeature import XFeature
    from vmm.x86.xsave import get_xsave, host_layout, set_xsave

    _SSP = int(lib.KVM_REG_X86 | lib.KVM_REG_SIZE_U64 | lib.KVM_X86_REG_TYPE_KVM << 32 | lib.KVM_REG_GUEST_SSP)
    _GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
    _MSRS = {
        "U_CET": 2, "S_CET": 2, "XSS": 0x1800,
        **dict.fromkeys(("PL0_SSP", "PL1_SSP", "PL2_SSP", "PL3_SSP", "INT_SSP_TAB"), 0x7FFFFFFFFFF8),
    }  # fmt: skip

    def _register(name: str, legal: int, source: random.Random) -> Change:
        def change(guest: Any) -> None:
            regs = get_regs(guest.vcpu)
            setattr(regs, name, _flip(getattr(regs, name), legal, source))
            set_regs(guest.vcpu, regs)

        return change

    def _area(component: int, start: int, legal: int, source: random.Random) -> Change:
        """Change one bit at byte ``start`` of the XSAVE area; ``legal`` may be longer than 64 bits."""
        size = (legal.bit_length() + 7) // 8

        def change(guest: Any) -> None:
            area = get_xsave(guest.vcpu)
            value = int.from_bytes(area.data[start : start + size], "little")
            area.data[start : start + size] = _flip(value, legal, source).to_bytes(size, "little")
            area.xstate_bv |= 1 << component
            set_xsave(guest.vcpu, area)

        return change

    def _component(component: int) -> Change:
        def change(guest: Any) -> None:
            area = get_xsave(guest.vcpu)
            area.xstate_bv &= ~(1 << component)
            set_xsave(guest.vcpu, area)

        return change

    def _swap(component: int, first: int, second: int, size: int) -> Change:
        def change(guest: Any) -> None:
            area = get_xsave(guest.vcpu)
            ours, theirs = area.data[first : first + size], area.data[second : second + size]
            area.data[first : first + size], area.data[second : second + size] = theirs, ours
            set_xsave(guest.vcpu, area)

        return change

    def _tile_row(tile: int, row: int, source: random.Random) -> Change:
        def change(guest: Any) -> bool:
            area = get_xsave(guest.vcpu)
            # Intel SDM volume 1, 18.2: bytes per row as 16-bit numbers from byte 16 on, rows from byte 48 on.
            config = area.component(XFeature.XTILECFG)
            columns = int.from_bytes(config[16 + 2 * tile : 18 + 2 * tile], "little")
            if row >= config[48 + tile]:
                return False
            start = area.layout[XFeature.XTILEDATA].ranges[0][0] + 1024 * tile + 64 * row
            area.data[start + source.randrange(columns)] ^= 1 << source.randrange(8)
            set_xsave(guest.vcpu, area)
            return True

        return change

    def _tile_shape(tile: int) -> Change:
        def change(guest: Any) -> bool:
            area = get_xsave(guest.vcpu)
            start = area.layout[XFeature.XTILECFG].ranges[0][0] + 48 + tile
            if area.data[start] == 1:
                return False
            area.data[start] -= 1
            set_xsave(guest.vcpu, area)
            return True

        return change

    def _msr(index: int, legal: int, source: random.Random) -> Change:
        def change(guest: Any) -> None:
            assert set_msr(guest.vcpu, index, _flip(get_msr(guest.vcpu, index), legal, source))

        return change

    def _shadow_stack_pointer(guest: Any) -> None:
        value = int.from_bytes(guest.vcpu.get_one_reg(_SSP), "little")
        guest.vcpu.set_one_reg(_SSP, (value ^ 8).to_bytes(8, "little"))

    def _vectors(level: Any, source: random.Random) -> Iterator[tuple[str, Change]]:
        """All vector registers, a bit in each part that a component holds, and neighbours that change places."""
        places = [(XFeature.SSE, 160, 16, 16, "XMM")]
        layout = host_layout()
        for number, size, count, name in (
            (XFeature.YMM, 16, 16, "YMM"), (XFeature.OPMASK, 8, 8, "k"), (XFeature.ZMM_HI256, 32, 16, "ZMM_Hi256 "),
            (XFeature.HI16_ZMM, 64, 16, "Hi16_ZMM "),
        ):  # fmt: skip
            if level.xcr0 >> number & 1:
                places.append((number, layout[number].ranges[0][0], size, count, name))
        for number, start, size, count, name in places:
            for n in range(count):
                yield f"{name}{n}", _area(number, start + size * n, (1 << 8 * size) - 1, source)
                other = (n + 1) % count
                yield f"{name}{n} and {other}", _swap(number, start + size * n, start + size * other, size)
            yield f"all of {XFeature(number).name}", _component(number)

    def _tiles(source: random.Random) -> Iterator[tuple[str, Change]]:
        for tile in range(8):
            for row in range(16):
                yield f"TMM{tile} row {row}", _tile_row(tile, row, source)
            yield f"rows of TMM{tile}", _tile_shape(tile)
        start = host_layout()[XFeature.XTILEDATA].ranges[0][0]
        yield "TMM2 and TMM3", _swap(XFeature.XTILEDATA, start + 2048, start + 3072, 1024)
        yield "rows 4 and 5 of TMM6", _swap(XFeature.XTILEDATA, start + 6144 + 256, start + 6144 + 320, 64)
        yield "all of XTILEDATA", _component(XFeature.XTILEDATA)
        yield "all of XTILECFG", _component(XFeature.XTILECFG)

    def _x86(level: Any, source: random.Random) -> Iterator[tuple[str, Change]]:
        for name in _GPRS:
            # The number of ticks so far: not so many more that the test takes long.
            yield name, _register(name, 3 if name == "rcx" else 8 if name == "rsp" else (1 << 64) - 1, source)
        for bit in (0x001, 0x004, 0x010, 0x040, 0x080, 0x800):
            yield f"RFLAGS bit {bit:#x}", _register("rflags", bit, source)
        for name, start, legal in (("FCW", 0, 0x1D00), ("FSW", 2, 0x7F7F), ("FTW", 4, 0xFF)):
            for bit in (bit for bit in range(16) if legal >> bit & 1):
                yield f"{name} bit {bit}", _area(0, start, 1 << bit, source)
        for bit in range(16):
            yield f"MXCSR bit {bit}", _area(1, 24, 1 << bit, source)
        for n in range(8):
            yield f"ST{n}", _area(0, 32 + 16 * n, (1 << 64) - 1, source)
            yield f"ST{n} exponent", _area(0, 40 + 16 * n, 0xFFFF, source)
            yield f"ST{n} and ST{(n + 1) % 8}", _swap(0, 32 + 16 * n, 32 + 16 * ((n + 1) % 8), 16)
        yield "all of FP", _component(0)
        yield from _vectors(level, source)
        if level.vectors == "amx":
            yield from _tiles(source)
        if "pku" in level.extras:
            start = host_layout()[XFeature.PKRU].ranges[0][0]
            for bit in range(2, 32):
                yield f"PKRU bit {bit}", _area(XFeature.PKRU, start, 1 << bit, source)
        if level.u_cet:
            for name, legal in _MSRS.items():
                yield name, _msr(Msr[name], legal, source)
            yield "SSP", _shadow_stack_pointer
        if "xfd" in level.extras:
            yield "XFD_ERR", _msr(Msr.XFD_ERR, 1 << 18, source)

    def _rewrite(guest: Any) -> None:
        set_regs(guest.vcpu, get_regs(guest.vcpu))
        set_xsave(guest.vcpu, get_xsave(guest.vcpu))

    _changes = _x86
else:
    from vmm.arm64 import registers
    from vmm.arm64.registers import SYSTEM, Register, core, ffr, p, v, x, z
    from vmm.arm64.vcpu import Feature, read, write
    from vmm.arm64.vector import FPCR_BITS, FPSR_BITS

    def _bit(register: Register, legal: int, source: random.Random) -> Change:
        def change(guest: Any) -> None:
            write(guest.vcpu, register, _flip(read(guest.vcpu, register), legal, source))

        return change

    def _exchange(first: Register, second: Register) -> Change:
        def change(guest: Any) -> None:
            ours, theirs = guest.vcpu.get_one_reg(first), guest.vcpu.get_one_reg(second)
            guest.vcpu.set_one_reg(first, theirs)
            guest.vcpu.set_one_reg(second, ours)

        return change

    def _zero(register: Register) -> Change:
        return lambda guest: write(guest.vcpu, register, 0)

    def _length(guest: Any) -> int:
        """Bytes of a vector at this tick."""
        return 16 * (read(guest.vcpu, SYSTEM["ZCR_EL1"]) + 1)

    def _scalable(register: Register, divisor: int, source: random.Random) -> Change:
        """Change a bit that this tick's vector length reaches."""

        def change(guest: Any) -> None:
            _bit(register, (1 << 8 * _length(guest) // divisor) - 1, source)(guest)

        return change

    def _first_fault(guest: Any) -> None:
        """FFR is a run of ones: one more of them, or one less."""
        value = read(guest.vcpu, ffr())
        write(guest.vcpu, ffr(), value >> 1 if value else 1)

    def _zcr(level: Any) -> Change:
        def change(guest: Any) -> bool:
            now = read(guest.vcpu, SYSTEM["ZCR_EL1"])
            others = [vq - 1 for vq in level.lengths if vq - 1 != now]
            if others:
                write(guest.vcpu, SYSTEM["ZCR_EL1"], others[0])
            return bool(others)

        return change

    def _arm64(level: Any, source: random.Random) -> Iterator[tuple[str, Change]]:
        every = (1 << 64) - 1
        for n in range(31):
            legal = 3 if n == 21 else every  # X21: the ticks so far
            yield f"X{n}", _bit(x(n), legal, source)
        yield "SP_EL1", _bit(core("SP_EL1"), 16, source)
        yield "SP_EL0", _bit(registers.SP, every, source)
        for name in ("TPIDR_EL0", "TPIDRRO_EL0", "TPIDR_EL1"):
            yield name, _bit(SYSTEM[name], every, source)
        for register, legal in (
            (registers.PSTATE, 0xF0000000), (registers.FPSR, FPSR_BITS), (registers.FPCR, FPCR_BITS)
        ):  # fmt: skip
            for bit in (bit for bit in range(32) if legal >> bit & 1):
                yield f"{register} bit {bit}", _bit(register, 1 << bit, source)
        vector = z if level.largest else v
        for n in range(32):
            yield (
                f"{vector(n)}",
                (_scalable(z(n), 1, source) if level.largest else _bit(v(n), (1 << 128) - 1, source)),
            )
            yield f"{vector(n)} zero", _zero(vector(n))
            yield f"{vector(n)} and {vector((n + 1) % 32)}", _exchange(vector(n), vector((n + 1) % 32))
        if level.largest:
            for n in range(16):
                yield f"P{n}", _scalable(p(n), 8, source)
                yield f"P{n} zero", _zero(p(n))
                yield f"P{n} and P{(n + 1) % 16}", _exchange(p(n), p((n + 1) % 16))
            yield "FFR", _first_fault
            yield "ZCR_EL1", _zcr(level)

    def _rewrite(guest: Any) -> None:
        vectors = (
            [*map(z, range(32)), *map(p, range(16)), ffr()] if Feature.SVE in guest.features else [*map(v, range(32))]
        )
        for register in (*map(x, range(31)), *vectors, registers.FPSR, registers.FPCR, registers.PSTATE):
            guest.vcpu.set_one_reg(register, guest.vcpu.get_one_reg(register))

    _changes = _arm64


def _byte(address: int) -> Change:
    def change(guest: Any) -> None:
        guest.memory.write(address, bytes([guest.memory.read(address, 1)[0] ^ 1]))

    return change


def _memory(guest: Any, source: random.Random) -> Iterator[tuple[str, Change]]:
    start = guest.payload.symbol("window")
    for page in range(guest.payload.symbol("WINDOW_SIZE") // _PAGE):
        yield f"page {page} of the memory", _byte(start + _PAGE * page + source.randrange(_PAGE))


def outcome(guest: Any) -> bytes | str:
    """Run a guest to its end: the digest, or why there is none."""
    try:
        guest.finish(guest.resume(_TIMEOUT))
    except GuestError as error:
        return str(error)
    return bytes(chain.digest(guest))


@contextmanager
def stopped(kvm: Kvm, level: str, seed: int) -> Iterator[Any]:
    """A guest at a tick in the middle of its chain, its registers those after it."""
    with chain.make_guest(kvm, level, _STEPS, seed) as guest:
        guest.resume(_TIMEOUT, ticks=_AT)
        guest.complete()
        yield guest


def check(kvm: Kvm, level: str, seed: int) -> dict[str, Any]:
    """Make every change to a guest of its own; return how many were made and which of them went unnoticed.

    ``long`` tells whether a long chain came to the right end, ``rewritten`` whether one all of whose registers were
    written back as they were.
    """
    source = random.Random(seed)
    right = chain.reference(level, _STEPS, seed)
    result: dict[str, Any] = {"level": level, "made": 0, "unnoticed": []}
    with chain.make_guest(kvm, level, _LONG, seed) as guest:
        result["long"] = outcome(guest) == chain.reference(level, _LONG, seed)
    with stopped(kvm, level, seed) as guest:
        changes = dict(_changes(chain.parse(level), source)) | dict(_memory(guest, source))
        _rewrite(guest)
        result["rewritten"] = outcome(guest) == right
    for name, change in changes.items():
        with stopped(kvm, level, seed) as guest:
            if change(guest) is not False:
                result["made"] += 1
                if outcome(guest) == right:
                    result["unnoticed"].append(name)
    return result


def main() -> None:
    """Check the levels named by the arguments, by default the one with the most state."""
    with Kvm() as kvm:
        chain.permit(kvm)
        for level in sys.argv[1:] or [chain.best(kvm)]:
            print(json.dumps(check(kvm, level, 11)), flush=True)


if __name__ == "__main__":
    main()
