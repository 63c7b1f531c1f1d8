# SPDX-License-Identifier: Apache-2.0
"""The chain payload on arm64: which registers a level has, a guest that runs it, and the digest it has to reach.

Levels: ``fpsimd`` is a vCPU without SVE; ``sve128`` to ``sve2048`` one whose largest vector has that many bits
(its set of lengths is the host's up to there), and which changes its length at most ticks. The lengths it uses
are the powers of two and the largest, so the digest does not depend on what other lengths a host has.

>>> with Kvm() as kvm, make_guest(kvm, "sve256", steps=100, seed=1) as guest:
...     while isinstance(exit := guest.resume(ticks=10), Budget):
...         ...  # save and restore the guest: at a tick only its registers hold the chain
...     guest.finish(exit)
...     assert digest(guest) == reference("sve256", 100, 1)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from vmm._kvm import lib
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.guest import Guest
from vmm.arm64.vcpu import Feature
from vmm.arm64.vector import FPCR_BITS, FPSR_BITS
from vmm.arm64.vls import ARCHITECTURAL_MAX, VectorLengths
from vmm.guest.base import MEMORY_SIZE
from vmm.guest.chain import WORD, Chain, digest, digests, progress, seeds
from vmm.guest.layout import Regions
from vmm.kvm.system import Kvm

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
_BITS = 128


@dataclass(frozen=True, slots=True)
class Level:
    """What a level's name says: the largest vector length in quadwords, 0 for a vCPU without SVE."""

    largest: int = 0

    def __str__(self) -> str:
        return f"sve{_BITS * self.largest}" if self.largest else "fpsimd"

    @property
    def lengths(self) -> tuple[int, ...]:
        """The vector lengths that the chain chooses from: 1, 2, 4, ... below the largest, and the largest."""
        count = (self.largest - 1).bit_length() + 1 if self.largest else 0
        return tuple(min(1 << shift, self.largest) for shift in range(count))

    @property
    def lines(self) -> int:
        """Lines of 64 bytes of the payload's image: X0 to SP, control, vectors, then P and FFR."""
        return 5 + (8 * self.largest + (34 * self.largest + 63) // 64 if self.largest else 8)


_BY_NAME = {str(level): level for level in (Level(vq) for vq in range(ARCHITECTURAL_MAX + 1))}
# All names, the level with the most state last.
LEVELS = tuple(_BY_NAME)


def parse(level: str) -> Level:
    """Return what a name stands for; ValueError if it is none of LEVELS."""
    try:
        return _BY_NAME[level]
    except KeyError:
        raise ValueError(f"{level!r} is not a level of the chain payload: take one of {', '.join(LEVELS)}") from None


def available(kvm: Kvm) -> list[str]:
    """Return those of LEVELS that this KVM's guests can run; a vCPU is made and closed to ask for its lengths."""
    lengths = _lengths(kvm)
    return [name for name, level in _BY_NAME.items() if not level.largest or level.largest in lengths]


def best(kvm: Kvm) -> str:
    """Return the last of :func:`available`: the level that covers most of the state."""
    return available(kvm)[-1]


def permit(kvm: Kvm) -> None:
    """Do what has to be done before the process makes its first vCPU: on arm64 nothing."""


def _lengths(kvm: Kvm) -> VectorLengths:
    """Return the lengths that a vCPU with SVE starts with: all that this host has."""
    if not kvm.check_extension(lib.KVM_CAP_ARM_SVE):
        return VectorLengths()
    with kvm.create_vm() as vm:
        vcpu = vm.create_vcpu()
        vcpus.init(vcpu, Feature.SVE)
        return vcpus.get_vls(vcpu)


def configured(
    kvm: Kvm, level: str, payload: str = PAYLOAD, *, memory_size: int = MEMORY_SIZE, regions: Regions | None = None,
    vcpus: int = 1,
) -> Guest:  # fmt: skip
    """Return a guest with the features and vector lengths of the level, its payload not prepared.

    ValueError for a level that is none, or whose largest length the host does not have.
    """
    largest = parse(level).largest
    features: tuple[Feature, ...] = (Feature.PSCI_0_2,)
    chosen: VectorLengths | None = None
    if largest:
        lengths = _lengths(kvm)
        if largest not in lengths:
            raise ValueError(
                f"level {level} needs vectors of {_BITS * largest} bits, this host has {lengths or 'no SVE'}"
            )
        features, chosen = (*features, Feature.SVE), lengths.up_to(largest)
    return Guest(
        kvm, payload, features=features, lengths=chosen, memory_size=memory_size, regions=regions, vcpus=vcpus
    )


def make_guest(
    kvm: Kvm, level: str, steps: int, seed: int, *, memory_size: int = MEMORY_SIZE, regions: Regions | None = None,
    vcpus: int = 1,
) -> Guest:  # fmt: skip
    """Return a guest that is about to run the chain of ``steps`` ticks, each vCPU from a seed of its own (``seeds``).

    Errors as for :func:`configured`, and ValueError for a number that is not one of 64 bits.
    """
    if not 0 <= steps <= WORD or not 0 <= seed <= WORD:
        raise ValueError(f"a chain of {steps} steps with seed {seed}: both are numbers of 64 bits")
    largest = parse(level).largest
    guest = configured(kvm, level, memory_size=memory_size, regions=regions, vcpus=vcpus)
    try:
        for index, own_seed in enumerate(seeds(seed, vcpus)):
            guest.prepare_vcpu(index, "chain_sve" if largest else "chain_fpsimd", steps, own_seed, largest)
    except BaseException:
        guest.close()
        raise
    return guest


# Where things lie in the image, in words.
_X17, _FIRST, _SECOND, _TICKS, _SP, _CONTROL, _ZCR, _VECTORS = 17, 19, 20, 21, 31, 32, 35, 40
_TICK_ADDRESS = 0x4000_1000
_NZCV_BITS = 0xF000_0000


class _Arm64Chain(Chain):
    """The chain of a level, with the image of guest_payloads/arm64/chain.S."""

    def __init__(self, level: Level, seed: int) -> None:
        self._level = level
        super().__init__(seed, level.largest, level.lines)

    def _registers(self, words: list[int]) -> list[int]:
        first, second = self.words
        words[_X17], words[_FIRST], words[_SECOND], words[_TICKS] = _TICK_ADDRESS, first, second, self.ticks
        words[_SP] = 16 * ((second & 7) + 1)
        for index, bits in enumerate((_NZCV_BITS, FPSR_BITS, FPCR_BITS)):
            words[_CONTROL + index] &= bits
        if self._level.largest:
            self._vectors(words)
        else:
            words[_ZCR] = 0
        return words

    def _vectors(self, words: list[int]) -> None:
        """Choose a length; what lies beyond vectors and predicates of this length is not stored."""
        lengths = self._level.lengths
        vq = lengths[words[_ZCR] % len(lengths)]
        words[_ZCR] = vq - 1
        predicates = _VECTORS + 64 * self._level.largest
        words[_VECTORS + 64 * vq : predicates] = [0] * (predicates - _VECTORS - 64 * vq)
        ffr = predicates + 4 * vq
        ones = (1 << words[ffr] % (16 * vq + 1)) - 1
        words[ffr:] = [ones >> 64 * index & WORD for index in range(len(words) - ffr)]


def running(level: str, seed: int) -> Iterator[bytes]:
    """Yield without end the digests that the mailbox holds at the first tick, the second, ..."""
    chain = _Arm64Chain(parse(level), seed)
    while True:
        yield chain.running
        chain.tick()


@cache
def reference(level: str, steps: int, seed: int) -> bytes:
    """Return the digest that the guest has to reach, computed in Python: about 0.1 s for 1,000 steps of sve512."""
    chain = _Arm64Chain(parse(level), seed)
    for _ in range(steps):
        chain.tick()
    return chain.final()
