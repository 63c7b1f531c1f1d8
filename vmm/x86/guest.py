# SPDX-License-Identifier: Apache-2.0
"""A small x86 guest: one VM, vCPUs in long mode, one payload, called entry point by entry point.

>>> with Guest(kvm, "hello") as guest:
...     guest.call("cpuid", 0xD, 0)
...     print(guest.mailbox.values[:4])
"""

from __future__ import annotations

from dataclasses import dataclass

from vmm._kvm import ffi
from vmm.guest.base import (
    DIFFERENT,
    DONE,
    EXCEPTION,
    MEMORY_SIZE,
    NO_CAPABILITIES,
    BaseGuest,
    Capabilities,
    GuestError,
)
from vmm.guest.layout import Regions
from vmm.guest.payload import Payload
from vmm.kvm.exits import Exit, IoOut
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import boot
from vmm.x86.cpuid import Cpuid, set_cpuid, supported
from vmm.x86.fields import Cr4, Xcr0
from vmm.x86.registers import get_regs, get_sregs, get_xcr0, set_regs

__all__ = ["DIFFERENT", "DONE", "EXCEPTION", "MEMORY_SIZE", "Fault", "Guest", "GuestError"]

_RFLAGS = 2  # the bit that is always set
# Besides the TSS's bitmap: an emulated SVM CPU refuses the bitmap of a busy TSS, which VMRUN requires.
_IOPL3 = 3 << 12
_VECTORS = {
    0: "#DE", 1: "#DB", 3: "#BP", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP",
    14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM", 21: "#CP",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception the guest's handler saw: vector, error code, and the registers pushed with it."""

    vector: int
    error: int
    rip: int
    cs: int
    rflags: int
    rsp: int
    cr2: int
    cr0: int

    @property
    def pc(self) -> int:
        """RIP."""
        return self.rip

    @property
    def name(self) -> str:
        """The vector's mnemonic, such as #GP."""
        return _VECTORS.get(self.vector, f"vector {self.vector}")

    def __str__(self) -> str:
        return f"{self.name}({self.error:#x}) at {self.rip:#x}, CPL {self.cs & 3}, CR2 {self.cr2:#x}"


class Guest(BaseGuest):
    """A payload in ``memory``; ``cpuid`` defaults to all that KVM supports. See BaseGuest for memory and vCPUs.

    ``cr4`` is added to the bits every payload needs. Entry points run at CPL ``privilege``, 0 or 3.
    """

    _EVENT, _TICK, _PACE = "EVENT_PORT_NUMBER", "TICK_PORT_NUMBER", "PACE_PORT_NUMBER"
    _TABLES_END, _TABLE_PAGES, _HOLE = boot.TABLES_END, boot.OWN_PAGES, boot.HOLE
    USER = 3

    def __init__(
        self,
        kvm: Kvm,
        payload: str | Payload = "hello",
        *,
        cpuid: Cpuid | None = None,
        cr4: int = 0,
        memory_size: int = MEMORY_SIZE,
        regions: Regions | None = None,
        vcpus: int = 1,
        capabilities: Capabilities = NO_CAPABILITIES,
    ) -> None:
        # KVM shows the ids of the host's CPU that it was asked on: two guests would differ by chance.
        self.cpuid = supported(kvm).with_apic_id(0) if cpuid is None else cpuid
        self.cr4 = cr4
        self.capabilities = capabilities
        super().__init__(kvm, payload, memory_size, regions=regions, vcpus=vcpus, capabilities=capabilities)

    def _set_up(self) -> None:
        several = len(self.processors) > 1
        for index, processor in enumerate(self.processors):
            set_cpuid(processor.vcpu, self.cpuid.with_apic_id(index) if several else self.cpuid)
        boot.write_tables(self.memory, self.payload, self.memory_end)
        for own in self.own:
            boot.write_own_tables(self.memory, self.payload, own)

    def _enter(self, index: int, address: int, privilege: int) -> None:
        vcpu = self.processors[index].vcpu
        boot.enter(vcpu, privilege=privilege, cr4=self.cr4, tables=self.own[index - 1].tables if index else boot.PML4)
        regs = get_regs(vcpu)
        regs.rip = address
        regs.rsp = self.payload.symbol("user_stack_top" if privilege else "kernel_stack_top")
        regs.rflags = _RFLAGS | (_IOPL3 if privilege else 0)
        set_regs(vcpu, regs)

    def _where(self) -> str:
        return f"RIP {get_regs(self.left.vcpu).rip:#x}"

    def event(self, exit: Exit) -> int | None:
        """Return the event number if ``exit`` is the payload's way out, else None."""
        return exit.value if isinstance(exit, IoOut) and exit.port == self._way_out else None

    def fault(self) -> Fault:
        """Return the exception that the mailbox of the vCPU that left describes."""
        names = ("vector", "error", "rip", "cs", "rflags", "rsp", "cr2", "cr0")
        return Fault(*(self.left.mailbox.read(name) for name in names))

    def _registers(self, vcpu: Vcpu) -> list[str]:
        """Return the general registers, control registers and XCR0."""
        regs, sregs = get_regs(vcpu), get_sregs(vcpu)
        names = [name for name, _ in ffi.typeof("struct kvm_regs").fields]
        values = [f"{name:6} {getattr(regs, name):016x}" for name in names]
        lines = ["   ".join(values[start : start + 3]) for start in range(0, len(values), 3)]
        control = " ".join(f"{name} {getattr(sregs, name):#x}" for name in ("cr0", "cr2", "cr3", "efer"))
        lines.append(f"{control} cpl {sregs.cs.selector & 3}")
        return [*lines, f"cr4    {Cr4(sregs.cr4)}", f"xcr0   {Xcr0(get_xcr0(vcpu))}"]
