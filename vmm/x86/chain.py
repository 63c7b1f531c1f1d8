# SPDX-License-Identifier: Apache-2.0
"""The chain payload on x86: which registers a level has, a guest that runs it, and the digest it has to reach.

A level is a vector level (sse, avx, avx512, amx; x87, MXCSR and general registers are in all of them) and what a
guest may have besides:

    +pku    PKRU
    +shstk  shadow stacks: IA32_U_CET, S_CET, PL0_SSP to PL3_SSP, INT_SSP_TAB, XSS, and SSP with a live stack
    +cet    the same with the bits of indirect branch tracking
    +xfd    IA32_XFD_ERR (amx only)

>>> with Kvm() as kvm, make_guest(kvm, "avx512", steps=100, seed=1) as guest:
...     while isinstance(exit := guest.resume(ticks=10), Budget):
...         ...  # save and restore the guest: at a tick only its registers hold the chain
...     guest.finish(exit)
...     assert digest(guest) == reference("avx512", 100, 1)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from vmm.guest.base import MEMORY_SIZE
from vmm.guest.chain import LINE, WORD, Chain, digest, digests, progress, seeds
from vmm.guest.layout import Regions
from vmm.kvm.ioctl import KvmError
from vmm.kvm.system import Kvm
from vmm.x86 import boot, cpuid, permission, xfeature
from vmm.x86.cpuid import Cpuid
from vmm.x86.guest import Guest
from vmm.x86.registers import set_xcr0
from vmm.x86.xfeature import XFeature

__all__ = [
    "LEVELS",
    "PAYLOAD",
    "Level",
    "available",
    "best",
    "configured",
    "digest",
    "digests",
    "make_guest",
    "parse",
    "permit",
    "progress",
    "reference",
    "running",
    "seeds",
]

PAYLOAD = "chain"
_BASE = xfeature.mask(XFeature.FP, XFeature.SSE)
_AVX = _BASE | xfeature.mask(XFeature.YMM)
_AVX512 = _AVX | xfeature.AVX512
_AMX = _AVX512 | xfeature.XTILE
# Components of each vector level, and the bytes and number of its vectors.
_VECTORS = {"sse": (_BASE, 16, 16), "avx": (_AVX, 32, 16), "avx512": (_AVX512, 64, 32), "amx": (_AMX, 64, 32)}
_PKRU, _XTILEDATA = 1 << XFeature.PKRU, 1 << XFeature.XTILEDATA
_CET = xfeature.mask(XFeature.CET_U, XFeature.CET_S)
# IA32_U_CET: SH_STK_EN, WR_SHSTK_EN; and ENDBR_EN, NO_TRACK_EN, SUPPRESS_DIS.
_SHSTK_BITS, _CET_BITS = 0x03, 0x37
_TILE_ROW = 8  # words


@dataclass(frozen=True, slots=True)
class Level:
    """What a level's name says: the vector level and the rest of its parts."""

    vectors: str
    extras: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "+".join((self.vectors, *self.extras))

    @property
    def xcr0(self) -> int:
        """The components that XCR0 has to enable."""
        return _VECTORS[self.vectors][0] | (_PKRU if "pku" in self.extras else 0)

    @property
    def u_cet(self) -> int:
        """The bits of IA32_U_CET that take part."""
        return _CET_BITS if "cet" in self.extras else _SHSTK_BITS if "shstk" in self.extras else 0

    @property
    def components(self) -> int:
        """The payload's PARAM(2): what takes part besides the vectors, by component number."""
        errors = _XTILEDATA if "xfd" in self.extras else 0
        return self.xcr0 & _PKRU | (_CET if self.u_cet else 0) | errors

    @property
    def privilege(self) -> int:
        """Where it runs: CPL3, so that a back end which interprets CPL0 has it run natively; MSRs need CPL0."""
        return 0 if self.components & (_CET | _XTILEDATA) else 3

    @property
    def cr4(self) -> int:
        """The bits of CR4 beyond what every guest has."""
        needed = boot.CR4_PKE if "pku" in self.extras else 0
        return needed | (boot.CR4_CET if self.u_cet else 0) | (boot.CR4_OSXSAVE if self.xcr0 != _BASE else 0)

    @property
    def lines(self) -> int:
        """Lines of the payload's image."""
        _, size, count = _VECTORS[self.vectors]
        return 8 + size * count // 64 + (128 if self.vectors == "amx" else 0)


def _levels() -> Iterator[Level]:
    for vectors in _VECTORS:
        for pku in ("", "pku"):
            for cet in ("", "shstk", "cet"):
                for xfd in ("", "xfd") if vectors == "amx" else ("",):
                    yield Level(vectors, tuple(extra for extra in (pku, cet, xfd) if extra))


_BY_NAME = {str(level): level for level in _levels()}
# All names, the level that covers most of the state last.
LEVELS = tuple(_BY_NAME)


def parse(level: str) -> Level:
    """Return what a name stands for; ValueError if it is none of LEVELS."""
    try:
        return _BY_NAME[level]
    except KeyError:
        raise ValueError(f"{level!r} is not a level of the chain payload: take one of {', '.join(LEVELS)}") from None


def available(kvm: Kvm) -> list[str]:
    """Return those of LEVELS that this KVM's guests can run; creates no vCPU and requests no permission.

    For the amx levels that means that KVM supports them; see :func:`permit`.
    """
    table = cpuid.supported(kvm)
    can = {name for name, needed in _requirements(table, _tiles(kvm)).items() if needed}
    return [name for name, level in _BY_NAME.items() if {level.vectors, *level.extras} <= can]


def best(kvm: Kvm) -> str:
    """Return the last of :func:`available`: the level that covers most of the state."""
    return available(kvm)[-1]


def _tiles(kvm: Kvm) -> bool:
    try:
        return permission.guest_supported(kvm) & xfeature.XTILE == xfeature.XTILE
    except KvmError:  # before Linux 5.17
        return False


def _requirements(table: Cpuid, tiles: bool) -> dict[str, bool]:
    # A back end that runs CPL3 natively may leave out of its CPUID what works there, so the CPU is asked too.
    words = table.get(7).ebx | cpuid.host(7).ebx
    avx512 = table.xcr0 & _AVX512 == _AVX512 and all(words >> bit & 1 for bit in (16, 17, 30))  # F, DQ, BW
    shadow = table.has("SHSTK") and table.has("XSAVES") and table.xss & _CET == _CET
    return {
        "sse": True,
        "avx": table.xcr0 & _AVX == _AVX,
        "avx512": avx512,
        "amx": avx512 and tiles,
        "pku": table.has("PKU") and bool(table.xcr0 & _PKRU),
        "shstk": shadow,
        "cet": shadow and table.has("IBT"),
        "xfd": tiles,
    }


def permit(kvm: Kvm) -> None:
    """Do what has to be done before the process makes its first vCPU: request the permission for tile data.

    A process that goes through several levels calls this first; where KVM has no tiles it does nothing.
    """
    if _tiles(kvm) and not permission.guest_permitted() & _XTILEDATA:
        permission.request_guest(XFeature.XTILEDATA)


def configured(
    kvm: Kvm, level: str, payload: str = PAYLOAD, *, memory_size: int = MEMORY_SIZE, regions: Regions | None = None,
    vcpus: int = 1,
) -> Guest:  # fmt: skip
    """Return a guest with XCR0, CPUID leaf 0xD and CR4 as the level needs them, its payload not prepared.

    A level with tiles requests the permission (:func:`permit`). ValueError for a level that is none; KvmError
    EBUSY if the process had a vCPU before without that permission.
    """
    chosen = parse(level)
    if chosen.xcr0 & _XTILEDATA:
        permit(kvm)
    table = cpuid.supported(kvm).with_apic_id(0)
    offered = table.with_xcr0(table.xcr0 & chosen.xcr0)
    guest = Guest(kvm, payload, cpuid=offered, cr4=chosen.cr4, memory_size=memory_size, regions=regions, vcpus=vcpus)
    try:
        for processor in guest.processors if chosen.cr4 & boot.CR4_OSXSAVE else ():
            set_xcr0(processor.vcpu, chosen.xcr0)
        for own in (None, *guest.own) if chosen.u_cet else ():
            boot.write_shadow_stacks(guest.memory, own)
    except BaseException:
        guest.close()
        raise
    return guest


def make_guest(
    kvm: Kvm, level: str, steps: int, seed: int, *, memory_size: int = MEMORY_SIZE, regions: Regions | None = None,
    vcpus: int = 1,
) -> Guest:  # fmt: skip
    """Return a guest that is about to run the chain of ``steps`` ticks, each vCPU from a seed of its own (``seeds``).

    Errors as for :func:`configured`, and ValueError for a number that is not one of 64 bits.
    """
    if not 0 <= steps <= WORD or not 0 <= seed <= WORD:
        raise ValueError(f"a chain of {steps} steps with seed {seed}: both are numbers of 64 bits")
    chosen = parse(level)
    guest = configured(kvm, level, memory_size=memory_size, regions=regions, vcpus=vcpus)
    try:
        for index, own_seed in enumerate(seeds(seed, vcpus)):
            parameters = (steps, own_seed, chosen.components, chosen.u_cet, boot.KERNEL_SHADOW_STACK_TOKEN)
            guest.prepare_vcpu(index, f"chain_{chosen.vectors}", *parameters, privilege=chosen.privilege)
    except BaseException:
        guest.close()
        raise
    return guest


# Where things lie in the image, in words.
_RCX, _RBX, _RSP, _RBP = 1, 3, 4, 5
_MXCSR, _FCW, _FSW, _FTW, _RFLAGS, _PKRU_AT, _XFD_ERR, _SSP = range(16, 24)
_U_CET, _S_CET, _PL0_SSP, _PL1_SSP, _PL2_SSP, _PL3_SSP, _INT_SSP_TAB, _XSS = range(24, 32)
_EXPONENTS, _MASKS, _TILECFG, _TILES = 32, 48, 56, 64 + 256
_POINTER = 0x0000_7FFF_FFFF_FFF8  # canonical, a multiple of 8
# Words that registers do not take as they are: (the bits that may be set, those that always are).
_LEGAL = {
    _MXCSR: (0xFFFF, 0),
    _FCW: (0x1D00, 0x027F),  # rounding, one of the two high precisions, no exception
    _FSW: (0x7F7F, 0),  # without ES and B
    _FTW: (0xFF, 0),  # one bit per register
    _RFLAGS: (0x8D5, 0),  # CF PF AF ZF SF OF
    _PKRU_AT: (0xFFFFFFFC, 0),  # key 0 stays accessible
    _XFD_ERR: (_XTILEDATA, 0),
    **dict.fromkeys((_PL0_SSP, _PL1_SSP, _PL2_SSP, _PL3_SSP, _INT_SSP_TAB), (_POINTER, 0)),
    _XSS: (_CET, 0),
    **dict.fromkeys(range(_EXPONENTS, _EXPONENTS + LINE), (0xFFFF, 0)),
}
_FULL_TILES = (1, 0, 0x40004000400040, 0x40004000400040, 0, 0, 0x1010101010101010, 0)


class _X86Chain(Chain):
    """The chain of a level, with the image of guest_payloads/x86/chain.S."""

    def __init__(self, level: Level, seed: int) -> None:
        self._level = level
        super().__init__(seed, level.components, level.lines)

    def _registers(self, words: list[int]) -> list[int]:
        first, second = self.words
        depth = (second & 7) + 1
        for word, (legal, fixed) in _LEGAL.items():
            words[word] = words[word] & legal | fixed
        words[_RBX], words[_RBP], words[_RCX], words[_RSP] = first, second, self.ticks, 8 * depth
        self._control(words, depth)
        if self._level.vectors not in ("avx512", "amx"):
            words[_MASKS : _MASKS + LINE] = [0] * LINE
        if self._level.vectors == "amx":
            self._tiles(words)
        else:
            words[_TILECFG : _TILECFG + LINE] = [0] * LINE
        return words

    def _control(self, words: list[int], depth: int) -> None:
        """What the level leaves out is not stored."""
        components, user = self._level.components, self._level.u_cet
        if not components & _PKRU:
            words[_PKRU_AT] = 0
        if not components & _XTILEDATA:
            words[_XFD_ERR] = 0
        words[_SSP] = 8 * depth if user else 0
        words[_U_CET] &= user
        words[_S_CET] = words[_S_CET] & user & 0x32 | 1  # SH_STK_EN always, ENDBR_EN never
        if not user:
            words[_U_CET : _U_CET + LINE] = [0] * LINE

    @staticmethod
    def _tiles(words: list[int]) -> None:
        """All tiles have 16 rows of 64 bytes but one; what it leaves out is 0."""
        word = words[_TILECFG]
        tile, rows, columns = word & 7, (word >> 8 & 15) + 1, (word >> 16 & 0x3C) + 4
        config = bytearray(b"".join(quad.to_bytes(8, "little") for quad in _FULL_TILES))
        config[16 + 2 * tile], config[48 + tile] = columns, rows
        for index in range(LINE):
            words[_TILECFG + index] = int.from_bytes(config[8 * index : 8 * index + 8], "little")
        start = _TILES + 128 * tile
        for row in range(16):
            for index in range(_TILE_ROW):
                kept = min(max(columns - 8 * index, 0), 8) if row < rows else 0
                words[start + _TILE_ROW * row + index] &= (1 << 8 * kept) - 1


def running(level: str, seed: int) -> Iterator[bytes]:
    """Yield without end the digests that the mailbox holds at the first tick, the second, ..."""
    chain = _X86Chain(parse(level), seed)
    while True:
        yield chain.running
        chain.tick()


@cache
def reference(level: str, steps: int, seed: int) -> bytes:
    """Return the digest that the guest has to reach, computed in Python: about a second for 1,000 steps of amx."""
    chain = _X86Chain(parse(level), seed)
    for _ in range(steps):
        chain.tick()
    return chain.final()
