# SPDX-License-Identifier: Apache-2.0
"""What the small guests of all architectures share: one VM, one vCPU, one payload, called entry by entry.

``vmm.x86.guest.Guest`` and ``vmm.arm64.guest.Guest`` are the guests to use; what an architecture adds are the
hooks that are abstract here. The events and the mailbox are those of guest_payloads/*/mailbox.h.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self

from vmm.guest.payload import PARAMETERS, Mailbox, Payload, load
from vmm.kvm.exits import Budget, Exit, IoIn, IoOut, MmioRead, MmioWrite, MsrRead, MsrWrite
from vmm.kvm.memory import GuestMemory
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import DEFAULT_TIMEOUT, Vcpu
from vmm.kvm.vm import VirtualMachine

__all__ = ["DIFFERENT", "DONE", "EXCEPTION", "MEMORY_SIZE", "BaseGuest", "GuestError"]

DONE, EXCEPTION, DIFFERENT = 1, 2, 3
MEMORY_SIZE = 4 << 20
# Exits whose instruction is only retired by the next KVM_RUN.
_PENDING = (IoOut, IoIn, MmioWrite, MmioRead, MsrRead, MsrWrite, Budget)


class GuestError(Exception):
    """The guest did not do what the entry point promises; ``exit`` is how it left: an Exit, or a Fault."""

    def __init__(self, message: str, exit: Exit | Any) -> None:
        super().__init__(message)
        self.exit = exit


class BaseGuest(ABC):
    """One vCPU with a payload in ``memory``; closing the guest closes all of it.

    A subclass sets what ``_set_up`` needs before it calls this constructor.
    """

    DONE = DONE
    # Where a payload may begin, and its symbols for where it leaves and where it ticks.
    _LOWEST: ClassVar[int]
    _EVENT: ClassVar[str]
    _TICK: ClassVar[str]

    def __init__(self, kvm: Kvm, payload: str | Payload, memory_size: int = MEMORY_SIZE) -> None:
        self._open(kvm, payload, memory_size, fresh=True)

    @classmethod
    def empty(
        cls,
        kvm: Kvm,
        payload: str | Payload,
        memory_size: int = MEMORY_SIZE,
        capabilities: Mapping[int, tuple[int, ...]] = MappingProxyType({}),
    ) -> Self:
        """Return an unconfigured guest with zeroed memory, ready for a restore.

        ``capabilities`` are enabled on the VM, each with its arguments, before there is a vCPU.
        """
        guest = cls.__new__(cls)
        guest._open(kvm, payload, memory_size, capabilities, fresh=False)
        return guest

    def _open(
        self,
        kvm: Kvm,
        payload: str | Payload,
        memory_size: int,
        capabilities: Mapping[int, tuple[int, ...]] = MappingProxyType({}),
        *,
        fresh: bool,
    ) -> None:
        self.payload = payload if isinstance(payload, Payload) else load(payload)
        self.payload.check_range(self._LOWEST, memory_size)
        self._pending = False
        self.vm: VirtualMachine = kvm.create_vm()
        try:
            for capability, arguments in capabilities.items():
                self.vm.enable_cap(capability, *arguments)
            self.memory: GuestMemory = self.vm.add_memory(memory_size)
            self.vcpu: Vcpu = self.vm.create_vcpu()
            if fresh:
                self._set_up()
                self.payload.write_to(self.memory)
            self.mailbox = Mailbox(self.memory, self.payload)
            self.vcpu.tick = self.payload.symbol(self._TICK)
            self._way_out = self.payload.symbol(self._EVENT)
        except BaseException:
            self.vm.close()
            raise

    @abstractmethod
    def _set_up(self) -> None:
        """Configure the fresh vCPU and write the tables it needs."""

    @abstractmethod
    def _enter(self, address: int, privilege: int) -> None:
        """Point the vCPU at ``address`` with a stack."""

    @abstractmethod
    def _where(self) -> str:
        """Return the program counter as a phrase."""

    @abstractmethod
    def event(self, exit: Exit) -> int | None:
        """Return the event number if ``exit`` is the payload's way out, else None."""

    @abstractmethod
    def fault(self) -> object:
        """Return the exception that the mailbox describes."""

    @abstractmethod
    def registers(self) -> list[str]:
        """Return the registers as lines for people."""

    def prepare(self, entry: str | int, *parameters: int, privilege: int = 0) -> None:
        """Point the vCPU at an entry point with its parameters in the mailbox; nothing runs yet."""
        if len(parameters) > PARAMETERS:
            raise ValueError(f"a payload takes at most {PARAMETERS} parameters, not {len(parameters)}")
        address = entry if isinstance(entry, int) else self.payload.symbol(entry)
        # Or the next KVM_RUN would advance the new program counter past the old instruction.
        self.complete()
        for index, value in enumerate(parameters):
            self.mailbox.write("params", value, index)
        self._enter(address, privilege)

    def resume(self, timeout: float = DEFAULT_TIMEOUT, ticks: int = 1 << 62) -> Exit:
        """Run on from where the guest is, to the next exit that is not a tick."""
        self._pending = False
        exit = self.vcpu.run(timeout, ticks)
        self._pending = isinstance(exit, _PENDING)
        return exit

    def complete(self) -> None:
        """Retire the instruction that the guest left with, if it is pending, so that its registers can be read.

        A read (IoIn, MmioRead) has to be answered first: see Vcpu.reply.
        """
        if self._pending:
            self.vcpu.complete()
            self._pending = False

    def call(self, entry: str | int, *parameters: int, privilege: int = 0, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Run an entry point to its event and return that: DONE or DIFFERENT.

        Raises GuestError if the guest faults (``exit`` is the Fault), hangs or leaves in another way.
        """
        self.prepare(entry, *parameters, privilege=privilege)
        return self.finish(self.resume(timeout), f"{self.payload.name}.{entry}")

    def finish(self, exit: Exit, what: str = "the payload") -> int:
        """Turn the exit of a run into its event; GuestError if it is none."""
        event = self.event(exit)
        if event in (DONE, DIFFERENT):
            self.complete()
            return int(event)
        if event == EXCEPTION:
            fault = self.fault()
            raise GuestError(f"{what} took {fault}", fault)
        if isinstance(exit, Budget):
            raise GuestError(f"{what} is still ticking after {exit.ticks} ticks", exit)
        raise GuestError(f"{what} left with {exit} at {self._where()}", exit)

    def describe(self, event: int) -> str:
        """Say in words what an event means, with the values or the fault that came along."""
        if event == EXCEPTION:
            return f"exception: {self.fault()}"
        if event == DIFFERENT:
            where, count = self.mailbox.read("difference"), self.mailbox.read("differences")
            return f"different: {count} bytes, the first at offset {where} of the expected image"
        values = " ".join(f"{value:#x}" for value in self.mailbox.values if value)
        return f"done{': ' + values if values else ''}"

    def close(self) -> None:
        """Close the VM with all it owns."""
        self.vm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
