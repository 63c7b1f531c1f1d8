# SPDX-License-Identifier: Apache-2.0
"""How a guest's memory is cached, told from how long its loads and stores take.

One guest has a page of each memory type. In a round the same loads, each of which needs the one before, go to
every page, and the same stores; only ratios between pages of one round are judged, so the machine's speed, its
load and the TSC's unit do not matter. Two controls belong to each round: a page whose lines are flushed before each
batch shows what a load costs when it has to come from memory, and the base is measured a second time. Where the
first is not slower, or the second differs from the first, the platform shows no caches or the machine does something
else meanwhile: nothing is judged then.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.expect import Skipped, succeeds, true
from vmm.conformance.needs import Need
from vmm.probe.host import Host
from vmm.x86 import msr
from vmm.x86.boot import TYPED_PAGES, write_pat_entries
from vmm.x86.guest import Guest
from vmm.x86.memory_types import GuestPat, MemoryType, pat
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_sregs, set_sregs

__all__ = [
    "CACHED",
    "MEMORY",
    "PAT_HONOURED",
    "PAT_IGNORED",
    "PAT_QUIRK",
    "ROUNDS",
    "STORES",
    "TYPES",
    "UNCACHED",
    "CachingGuest",
    "Ratio",
    "expect_cached",
    "expect_control",
    "expect_slower",
    "expect_uncached",
    "page",
]

# The types in the order of the pages, which is that of the entries of IA32_PAT too.
TYPES = (MemoryType.WB, MemoryType.WT, MemoryType.WC, MemoryType.UC_MINUS, MemoryType.UC)
ROUNDS = 9
# A load from the first cache takes 3 to 5 cycles, one from memory some hundreds. Between the two limits nothing is
# sure; MEMORY is how much slower a flushed load has to be for caches to be visible at all.
CACHED, UNCACHED, MEMORY = 3.0, 8.0, 10.0
# Uncached stores go to memory one by one, write-combining ones 64 bytes at a time.
STORES = 2.0
# In a round one value may be spoilt by whatever else the machine does.
_SPOILT = 1
# What takes fewer ticks of the TSC than this is not measured well enough for a ratio.
_TICKS = 32
_LINES, _PAGE = 64, 0x1000
_LOADS, _BATCHES = 512, 8


def _pat_is(name: str, *wanted: GuestPat) -> Need:
    def measure(host: Host) -> tuple[bool, str]:
        types = host.facts.memory_types
        return types.guest_pat in wanted, f"PAT is {types.guest_pat}; page tables of {host.backend}: {types.tables()}"

    return Need(name, measure)


PAT_IGNORED = _pat_is("a KVM that ignores the guest's PAT by default", GuestPat.IGNORED, GuestPat.QUIRK)
PAT_QUIRK = _pat_is("KVM_X86_QUIRK_IGNORE_GUEST_PAT on Intel", GuestPat.QUIRK)
PAT_HONOURED = _pat_is("a KVM that always honours the guest's PAT", GuestPat.HONOURED)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as long as its base something took, in each round; ``what`` says what.

    ``again`` is the base's second measurement to its first, ``flushed`` that of flushed loads to cached ones, each
    in the same rounds; empty where it was not measured.
    """

    what: str
    values: tuple[float, ...]
    again: tuple[float, ...] = ()
    flushed: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """The middle one of the values."""
        return sorted(self.values)[len(self.values) // 2]

    def below(self, limit: float) -> bool:
        """Tell whether all rounds, or all but one of many, are below a limit."""
        return _mostly(self.values, lambda value: value < limit)

    def above(self, limit: float) -> bool:
        """Tell whether all rounds, or all but one of many, are above a limit."""
        return _mostly(self.values, lambda value: value > limit)

    def distrusted(self) -> str:
        """Return why the controls say that nothing follows from these values, or nothing."""
        if not _mostly(self.again, lambda value: 1 / CACHED < value < CACHED):
            return f"the same took {_range(self.again)} times as long when it was measured again"
        if not _mostly(self.flushed, lambda value: value > MEMORY):
            return f"caches are no longer visible: flushed loads take {_range(self.flushed)} times as long as others"
        return ""

    def __str__(self) -> str:
        return f"{self.what}: {self.median:.1f} times ({_range(self.values)} in {len(self.values)} rounds)"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}"


def _mostly(values: Sequence[float], holds: Callable[[float], bool]) -> bool:
    """Tell whether all values, or all but one of many, are as wanted."""
    return sum(not holds(value) for value in values) <= (_SPOILT if len(values) > 4 else 0)


class CachingGuest:
    """A guest with the memtype payload and one page a memory type; ``quirks`` are disabled before it runs.

    Raises Skipped where no caches are visible. ``cr0`` is added to CR0 while an entry point runs.
    """

    def __init__(self, context: Context, quirks: int = 0) -> None:
        self.timeout = context.timeout
        self.guest = context.own(Guest(context.kvm, "memtype", cpuid=context.host.facts.cpuid))
        self.cr0 = 0
        self._rings: set[MemoryType] = set()
        if quirks:
            disable = self.guest.vm.enable_cap
            succeeds(f"disabling quirks {quirks:#x}", disable, lib.KVM_CAP_DISABLE_QUIRKS2, quirks)
        order = list(range(_LINES))
        random.Random(context.options.seed).shuffle(order)
        self.guest.memory.write(self.guest.payload.symbol("order"), bytes(order))
        write_pat_entries(self.guest.memory, range(len(TYPES)))
        accepted = msr.set_msr(self.guest.vcpu, Msr.PAT, pat(TYPES))
        true("IA32_PAT with an entry of each type", accepted, "refused", "accepted")
        visible = Ratio("loads of flushed lines to cached ones", tuple(self.flushed() for _ in range(5)))
        if not visible.above(MEMORY):
            raise Skipped(f"no cache is visible here: {visible}; more than {MEMORY:.0f} times are needed")
        context.note(f"caches are visible: {visible}")

    def call(self, entry: str, *parameters: int, privilege: int = 3) -> int:
        """Run an entry point and return its VALUE(0)."""
        self.guest.prepare(entry, *parameters, privilege=privilege)
        if self.cr0:
            sregs = get_sregs(self.guest.vcpu)
            sregs.cr0 |= self.cr0
            set_sregs(self.guest.vcpu, sregs)
        self.guest.finish(self.guest.resume(self.timeout), f"memtype.{entry}")
        return self.guest.mailbox.read("values")

    def loads(self, kind: MemoryType) -> int:
        """Return the cycles of 512 dependent loads from the page of a type, once they had time to be cached."""
        if kind not in self._rings:
            self.call("chain", page(kind))
            self._rings.add(kind)
        return self._timed("loads", page(kind), _LOADS, _BATCHES)

    def stores(self, kind: MemoryType) -> int:
        """Return the cycles of 512 stores of 8 bytes to the page of a type."""
        self._rings.discard(kind)
        return self._timed("stores", page(kind), 1, _BATCHES)

    def after(self, entry: str, *, privilege: int = 0, tries: int = 5) -> int:
        """Return the cycles of 64 dependent loads whose lines were cached before the entry point ran."""
        times = []
        for _ in range(tries):
            self.loads(MemoryType.WB)
            self.call(entry, page(MemoryType.WB), privilege=privilege)
            times.append(self._timed("once", page(MemoryType.WB)))
        return min(times)

    def load_ratios(self, rounds: int = ROUNDS) -> dict[MemoryType, Ratio]:
        """Return for each type but write-back how many times as long as write-back loads its loads take."""
        return self._ratios("loads", self.loads, TYPES[1:], MemoryType.WB, rounds)

    def store_ratio(self, kind: MemoryType, base: MemoryType, rounds: int = ROUNDS) -> Ratio:
        """Return how many times as long as those of type ``base`` the stores of type ``kind`` take."""
        return self._ratios("stores", self.stores, [kind], base, rounds)[kind]

    def switched(self, what: str, switch: Callable[[bool], object], rounds: int = ROUNDS) -> Ratio:
        """Return how many times as long write-back loads take with something on; ``switch`` turns it on and off."""
        found, again, flushed = [], [], []
        for _ in range(rounds):
            switch(False)
            flushed.append(self.flushed())
            base = self.loads(MemoryType.WB)
            switch(True)
            # What is in a cache may still be found there by a CPU that fills it no more.
            self.call("flush", page(MemoryType.WB))
            found.append(self.loads(MemoryType.WB) / base)
            switch(False)
            again.append(self.loads(MemoryType.WB) / base)
        return Ratio(f"loads with {what} to loads without", tuple(found), tuple(again), tuple(flushed))

    def flushed(self) -> float:
        """Return how many times as long as cached loads those of flushed lines take."""
        cached = self.loads(MemoryType.WB) / _LOADS
        return self._timed("flushed", page(MemoryType.WB), _LINES, _BATCHES) / _LINES / cached

    def _timed(self, entry: str, *parameters: int) -> int:
        """Run an entry point that returns a time; Skipped where this TSC does not measure it."""
        ticks = self.call(entry, *parameters)
        if ticks < _TICKS:
            raise Skipped(f"the time stamp counter is too coarse: memtype.{entry} took {ticks} ticks of it")
        return ticks

    def _ratios(
        self,
        name: str,
        measure: Callable[[MemoryType], int],
        kinds: Sequence[MemoryType],
        base: MemoryType,
        rounds: int,
    ) -> dict[MemoryType, Ratio]:
        found: dict[MemoryType, list[float]] = {kind: [] for kind in kinds}
        again, flushed = [], []
        for number in range(rounds):
            flushed.append(self.flushed())
            standard = measure(base)
            # Another order in each round, so that what comes first is not always the same.
            turn = number % len(kinds)
            for kind in [*kinds[turn:], *kinds[:turn]]:
                found[kind].append(measure(kind) / standard)
            again.append(measure(base) / standard)
        return {
            kind: Ratio(
                f"{_name(kind)} {name} to those of {_name(base)}", tuple(values), tuple(again), tuple(flushed)
            )
            for kind, values in found.items()
        }


def page(kind: MemoryType) -> int:
    """Return where the page of a type lies."""
    return TYPED_PAGES + _PAGE * TYPES.index(kind)


def _name(kind: MemoryType) -> str:
    return kind.name.replace("_MINUS", "-")


def expect_cached(context: Context, ratio: Ratio) -> None:
    """The memory has to be cached; Skipped if the ratio does not say."""
    _expect(context, ratio, ratio.below(CACHED), ratio.above(UNCACHED), f"less than {CACHED:.0f} times, cached")


def expect_uncached(context: Context, ratio: Ratio) -> None:
    """The memory has to be uncached; Skipped if the ratio does not say, or if it may be a hypervisor's doing."""
    cached = ratio.below(CACHED)
    _skip_below_hypervisor(context, ratio, cached)
    _expect(context, ratio, ratio.above(UNCACHED), cached, f"more than {UNCACHED:.0f} times, uncached")


def expect_slower(context: Context, ratio: Ratio, times: float) -> None:
    """Something has to take more than ``times`` as long; Skipped as for :func:`expect_uncached`."""
    faster = ratio.below(times)
    _skip_below_hypervisor(context, ratio, faster)
    _expect(context, ratio, ratio.above(times), faster, f"more than {times:.0f} times")


def expect_control(ratio: Ratio) -> None:
    """Skipped where the ratio's own controls say that nothing follows from it."""
    why = ratio.distrusted()
    if why:
        raise Skipped(f"the measurement cannot be trusted here: {ratio}, but {why}")


def _skip_below_hypervisor(context: Context, ratio: Ratio, fails: bool) -> None:
    if fails and context.host.facts.memory_types.nested:
        raise Skipped(f"a hypervisor below this kernel may force write-back: {ratio}")


def _expect(context: Context, ratio: Ratio, holds: bool, fails: bool, expected: str) -> None:
    if fails:
        expect_control(ratio)
        true(ratio.what, False, str(ratio), f"{expected}, in every round or every one but {_SPOILT}")
    if not holds:
        raise Skipped(f"the machine is too noisy to tell: {ratio}; expected {expected}")
    true(ratio.what, holds, str(ratio), expected)
    context.note(f"sure: {ratio}; expected {expected}")
