# SPDX-License-Identifier: Apache-2.0
"""What the small guests of all architectures share: one VM, one payload, called entry by entry.

``vmm.x86.guest.Guest`` and ``vmm.arm64.guest.Guest`` are the guests to use; what an architecture adds are the
hooks that are abstract here. The events and the mailbox are those of guest_payloads/*/mailbox.h.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self

from vmm._kvm import lib
from vmm.guest.crew import Crew
from vmm.guest.layout import Regions, end_of_own, end_of_tables, own, split
from vmm.guest.payload import PARAMETERS, Mailbox, Payload, PayloadError, load
from vmm.guest.processor import Processor
from vmm.kvm.exits import Budget, Exit
from vmm.kvm.memory import PAGE_SIZE, GuestMemory
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import DEFAULT_TIMEOUT, Vcpu
from vmm.kvm.vm import VirtualMachine

__all__ = [
    "DIFFERENT",
    "DONE",
    "EXCEPTION",
    "MEMORY_SIZE",
    "NO_CAPABILITIES",
    "BaseGuest",
    "Capabilities",
    "Faulted",
    "GuestError",
]

DONE, EXCEPTION, DIFFERENT = 1, 2, 3
MEMORY_SIZE = 4 << 20
_CHUNK = 64 << 10

Capabilities = Mapping[int, tuple[int, ...]]
NO_CAPABILITIES: Capabilities = MappingProxyType({})


class GuestError(Exception):
    """The guest did not do what the entry point promises; ``exit`` is how it left: an Exit, or a Fault."""

    def __init__(self, message: str, exit: Exit | Any) -> None:
        super().__init__(message)
        self.exit = exit


class Faulted(Protocol):
    """An exception that a guest's handler saw; ``pc`` is the address of its instruction."""

    @property
    def pc(self) -> int: ...


class BaseGuest(ABC):
    """A VM with a payload in ``memory``, its first region; closing the guest closes all of it.

    ``processors`` are its vCPUs with their mailboxes, ``vcpu`` and ``mailbox`` those of the first. Several vCPUs run
    together and stop together: see vmm.guest.crew, and vmm.guest.layout for what each has for itself. ``left`` is the
    one that left last. ``regions`` are the memory regions if it has not just ``memory_size`` bytes, which leave out
    the addresses of devices. ``capabilities`` are enabled on the VM, each with its arguments, before there is a vCPU.
    A subclass sets what ``_set_up`` needs before it calls this constructor.
    """

    DONE = DONE
    # The symbols for where a payload leaves, where it ticks and where it writes its pace.
    _EVENT: ClassVar[str]
    _TICK: ClassVar[str]
    _PACE: ClassVar[str]
    # Where the tables for 4 GiB end, pages of those that a vCPU beyond the first has for itself, and the addresses
    # without memory.
    _TABLES_END: ClassVar[int]
    _TABLE_PAGES: ClassVar[int]
    _HOLE: ClassVar[tuple[int, int]]
    # The least privilege that entry points have: where a back end that interprets the most privileged code does not.
    USER: ClassVar[int] = 0

    def __init__(
        self,
        kvm: Kvm,
        payload: str | Payload,
        memory_size: int = MEMORY_SIZE,
        *,
        regions: Regions | None = None,
        vcpus: int = 1,
        capabilities: Capabilities = NO_CAPABILITIES,
    ) -> None:
        self._open(kvm, payload, regions or self.regions(memory_size), vcpus, capabilities, fresh=True)

    @classmethod
    def regions(cls, size: int) -> Regions:
        """Return the regions of a guest with ``size`` bytes of memory, which leave out the addresses of devices."""
        return split(size, cls._HOLE)

    @classmethod
    def empty(
        cls,
        kvm: Kvm,
        payload: str | Payload,
        regions: Regions,
        vcpus: int = 1,
        capabilities: Capabilities = NO_CAPABILITIES,
    ) -> Self:
        """Return an unconfigured guest with zeroed memory, ready for a restore."""
        guest = cls.__new__(cls)
        guest._open(kvm, payload, regions, vcpus, capabilities, fresh=False)
        return guest

    def _open(
        self,
        kvm: Kvm,
        payload: str | Payload,
        regions: Regions,
        vcpus: int,
        capabilities: Capabilities = NO_CAPABILITIES,
        *,
        fresh: bool,
    ) -> None:
        self.payload = payload if isinstance(payload, Payload) else load(payload)
        self._check(kvm, regions, vcpus)
        if fresh:
            self._check_places(regions)
        self._crew: Crew | None = None
        self.vm: VirtualMachine = kvm.create_vm()
        try:
            for capability, arguments in capabilities.items():
                self.vm.enable_cap(capability, *arguments)
            for gpa, size in regions:
                self.vm.add_memory(size, gpa)
            self.memory: GuestMemory = self.vm.memories[0]
            self._make_processors(vcpus)
            if fresh:
                self._set_up()
                self.payload.write_to(self.memory)
                for own in self.own:
                    self.payload.write_data_to(self.memory, own.data)
            self._way_out = self.payload.symbol(self._EVENT)
        except BaseException:
            self.vm.close()
            raise

    def _check(self, kvm: Kvm, regions: Regions, vcpus: int) -> None:
        """Refuse what no VM here can be, in a sentence, before there is one."""
        if regions[0][0]:
            raise PayloadError(f"the first memory region of a guest begins at 0, not at {regions[0][0]:#x}")
        most = kvm.check_extension(lib.KVM_CAP_MAX_VCPUS)
        if vcpus > most:
            raise PayloadError(f"a guest has at most {most} vCPUs here (KVM_CAP_MAX_VCPUS), not {vcpus}")
        # Where the highest region ends.
        self.memory_end = max(gpa + size for gpa, size in regions)
        lowest = end_of_tables(self._TABLES_END, self.memory_end)
        self.payload.check_range(lowest, max(regions[0][1], self.payload.end))
        # Where what the payload and its vCPUs take ends.
        self.end_of_own = end_of_own(self.payload, vcpus, self._TABLE_PAGES)
        if self.end_of_own > regions[0][1]:
            raise PayloadError(
                f"{self.payload.name} with {vcpus} vCPUs needs {self.end_of_own:#x} bytes of memory at 0, "
                f"and the guest has {regions[0][1]:#x}: give it more"
            )

    def _check_places(self, regions: Regions) -> None:
        start, end = self._HOLE
        if any(number % PAGE_SIZE for region in regions for number in region):
            raise PayloadError(f"guest memory comes in pages of {PAGE_SIZE} bytes: ask for a multiple of that")
        for (gpa, size), (following, _) in pairwise(sorted(regions)):
            if gpa + size > following:
                raise PayloadError(f"the memory region at {following:#x} overlaps the one at {gpa:#x}")
        if any(gpa < end and gpa + size > start for gpa, size in regions):
            places = ", ".join(f"{size:#x} bytes at {gpa:#x}" for gpa, size in regions)
            raise PayloadError(f"guest memory leaves out {start:#x} to {end:#x}, where devices are: not {places}")

    def _make_processors(self, vcpus: int) -> None:
        # What each vCPU beyond the first has for itself.
        self.own = [own(self.payload, index, self._TABLE_PAGES) for index in range(1, vcpus)]
        shifts = [0, *(one.data - (self.payload.data or 0) for one in self.own)]
        pace = self.payload.symbols.get(self._PACE)
        self.processors = [
            Processor(self.vm.create_vcpu(index), Mailbox(self.memory, self.payload, shift), pace)
            for index, shift in enumerate(shifts)
        ]
        for processor in self.processors:
            processor.vcpu.tick = self.payload.symbol(self._TICK)
        self.left = self.processors[0]
        self.vcpu, self.mailbox = self.left.vcpu, self.left.mailbox
        if vcpus > 1:
            self._crew = Crew(self.processors, lambda exit: self.event(exit) == DONE)

    @abstractmethod
    def _set_up(self) -> None:
        """Configure the fresh vCPUs and write the tables they need."""

    @abstractmethod
    def _enter(self, index: int, address: int, privilege: int) -> None:
        """Point a vCPU at ``address`` with a stack."""

    @abstractmethod
    def _where(self) -> str:
        """Return the program counter of the vCPU that left as a phrase."""

    @abstractmethod
    def event(self, exit: Exit) -> int | None:
        """Return the event number if ``exit`` is the payload's way out, else None."""

    @abstractmethod
    def fault(self) -> Faulted:
        """Return the exception that the mailbox of the vCPU that left describes."""

    @abstractmethod
    def _registers(self, vcpu: Vcpu) -> list[str]:
        """Return a vCPU's registers as lines for people."""

    def registers(self) -> list[str]:
        """Return the registers as lines for people, those of one vCPU after those of another."""
        if len(self.processors) == 1:
            return self._registers(self.vcpu)
        lines = []
        for index, processor in enumerate(self.processors):
            lines += [f"vCPU {index}", *self._registers(processor.vcpu)]
        return lines

    def prepare(self, entry: str | int, *parameters: int, privilege: int = 0) -> None:
        """Point all vCPUs at an entry point with its parameters in their mailboxes; nothing runs yet."""
        for index in range(len(self.processors)):
            self.prepare_vcpu(index, entry, *parameters, privilege=privilege)

    def prepare_vcpu(self, index: int, entry: str | int, *parameters: int, privilege: int = 0) -> None:
        """Point one vCPU at an entry point with its parameters in its mailbox."""
        if len(parameters) > PARAMETERS:
            raise ValueError(f"a payload takes at most {PARAMETERS} parameters, not {len(parameters)}")
        address = entry if isinstance(entry, int) else self.payload.symbol(entry)
        processor = self.processors[index]
        # Or the next KVM_RUN would advance the new program counter past the old instruction.
        processor.complete()
        processor.ended = None
        for number, value in enumerate(parameters):
            processor.mailbox.write("params", value, number)
        self._enter(index, address, privilege)

    def resume(self, timeout: float = DEFAULT_TIMEOUT, ticks: int = 1 << 62) -> Exit:
        """Run on from where the guest is, to the next exit that is not a tick; no vCPU runs when this returns.

        Several vCPUs run until one leaves, each has made its ticks or all have ended: see Crew.run.
        """
        if self._crew is None:
            return self.left.run(timeout, ticks)
        self.left, exit = self._crew.run(timeout, ticks)
        return exit

    @property
    def waiting(self) -> bool:
        """Whether another vCPU has left too, so that the next resume() only says how."""
        return self._crew is not None and self._crew.waiting

    def kick(self) -> None:
        """Stop all vCPUs from another thread, or the next run if there is none now."""
        (self._crew or self.left).kick()

    def complete(self) -> None:
        """Retire the instructions that vCPUs left with, if they are pending, so that their registers can be read.

        A read (IoIn, MmioRead) has to be answered first: see Vcpu.reply. Registers are read when no vCPU runs.
        """
        if self._crew and self._crew.running:
            raise RuntimeError("the state of a guest is read while one of its vCPUs runs")
        for processor in self.processors:
            processor.complete()

    def call(self, entry: str | int, *parameters: int, privilege: int = 0, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Run an entry point to its event and return that: DONE or DIFFERENT.

        Raises GuestError if the guest faults (``exit`` is the Fault), hangs or leaves in another way.
        """
        self.prepare(entry, *parameters, privilege=privilege)
        given = "".join(f" {value:#x}" for value in parameters)
        return self.finish(self.resume(timeout), f"{self.payload.name}.{entry}{given}")

    def finish(self, exit: Exit, what: str = "the payload") -> int:
        """Turn the exit of a run into its event; GuestError if it is none."""
        event = self.event(exit)
        if event in (DONE, DIFFERENT):
            self.complete()
            return int(event)
        if event == EXCEPTION:
            fault = self.fault()
            raise GuestError(f"{what} took {fault} ({self.payload.place(fault.pc)})", fault)
        if isinstance(exit, Budget):
            raise GuestError(f"{what} is still ticking after {exit.ticks} ticks", exit)
        raise GuestError(f"{what} left with {exit} at {self._where()}", exit)

    def describe(self, event: int) -> str:
        """Say in words what an event means, with the values or the fault that came along."""
        if event == EXCEPTION:
            return f"exception: {self.fault()}"
        if event == DIFFERENT:
            where, count = self.left.mailbox.read("difference"), self.left.mailbox.read("differences")
            return f"different: {count} bytes, the first at offset {where} of the expected image"
        each = (" ".join(f"{value:#x}" for value in one.mailbox.values if value) for one in self.processors)
        values = "; ".join(filter(None, each))
        return f"done{': ' + values if values else ''}"

    def take_memory(self, other: BaseGuest) -> None:
        """Write what another guest of the payload has in memory up to its end into this one's, which is new.

        Between its tables and the payload a new guest has zeros: what is zero in both is not written, for every page
        that is costs the host a fault.
        """
        ours, theirs = self.memory, other.memory
        hole = end_of_tables(self._TABLES_END, self.memory_end)
        start, end = min(address for address, _ in self.payload.segments), self.payload.end
        ours.write(0, theirs.read(0, hole))
        for at in range(hole, start, _CHUNK):
            data = theirs.read(at, min(_CHUNK, start - at))
            if data != bytes(len(data)):
                ours.write(at, data)
        ours.write(start, theirs.read(start, end - start))

    def close(self) -> None:
        """Close the VM with all it owns."""
        if self._crew:
            self._crew.close()
        self.vm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
