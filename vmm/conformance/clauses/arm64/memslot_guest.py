# SPDX-License-Identifier: Apache-2.0
"""What a guest sees of its memslots: those that are read-only, removed, moved, or have other host memory."""

from __future__ import annotations

from vmm._kvm import lib
from vmm.arm64.guest import MEMORY_SIZE, Guest
from vmm.arm64.registers import PC
from vmm.arm64.vcpu import Feature, read
from vmm.conformance.arm64.common import GUEST_RUNS, call, finish
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, succeeds
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.kvm.exits import Exit, MmioRead, MmioWrite
from vmm.kvm.memory import PAGE_SIZE

# The guest's tables map it as memory, with a slot there or without.
_PLACE, _PAGES = 4 << 30, 2
_SIZE = _PAGES * PAGE_SIZE
_AWAY = _PLACE + (8 << 20)
# X0 is the address: STR X0, [X0] and LDR X0, [X0].
_STORE, _LOAD = 0xF9000000, 0xF9400000
_MARK, _OTHER = 0x1122334455667788, 0x99AABBCCDDEEFF00


class _Guest:
    """A guest with a second slot at 4 GiB, a word at the beginning of each of whose pages it loads and stores."""

    def __init__(self, context: Context) -> None:
        self._context = context
        regions = ((0, MEMORY_SIZE), (_PLACE, _SIZE))
        self.guest = context.own(Guest(context.kvm, "hello", features=(Feature.PSCI_0_2,), regions=regions))
        self.memory = self.guest.vm.memories[1]
        for page in range(_PAGES):
            self.put(page, _MARK + page)

    def put(self, page: int, value: int) -> None:
        """The VMM writes the word of a page."""
        self.memory.write(_PLACE + page * PAGE_SIZE, value.to_bytes(8, "little"))

    def get(self, page: int) -> int:
        """The VMM reads the word of a page."""
        return int.from_bytes(self.memory.read(_PLACE + page * PAGE_SIZE, 8), "little")

    def set(self, place: int = _PLACE, size: int = _SIZE, flags: int = 0) -> None:
        """KVM_SET_USER_MEMORY_REGION of the slot."""
        self.guest.vm.set_memory_region(1, place, size, self.memory.address, flags)

    def load(self, address: int) -> int:
        """The guest loads a word, without leaving for it."""
        call(self._context, self.guest, f"a load at {address:#x}", "execute", _LOAD, address)
        return self.guest.mailbox.values[0]

    def store(self, address: int) -> None:
        """The guest stores the address there, without leaving for it."""
        call(self._context, self.guest, f"a store at {address:#x}", "execute", _STORE, address)

    def leave(self, instruction: int, address: int) -> Exit:
        """The guest loads or stores there; returns how it left."""
        self.guest.prepare("execute", instruction, address)
        with judged(f"KVM_RUN with an access at {address:#x}"):
            return self.guest.resume(self._context.timeout)

    def expect_read(self, what: str, address: int) -> None:
        """A load leaves as MMIO and gets the VMM's answer."""
        equal(f"the exit of a load at {what}", self.leave(_LOAD, address), MmioRead(address, 8))
        self.guest.vcpu.reply(_OTHER)
        finish(self._context, self.guest, "a guest that loaded")
        equal("what the guest loaded", self.guest.mailbox.values[0], _OTHER)

    def expect_write(self, what: str, address: int) -> None:
        """A store leaves as MMIO with its value, and its instruction is over when the VMM has it run on."""
        equal(f"the exit of a store at {what}", self.leave(_STORE, address), MmioWrite(address, 8, address))
        place = read(self.guest.vcpu, PC)
        self.guest.complete()
        equal("PC behind the store", read(self.guest.vcpu, PC), place + 4)
        finish(self._context, self.guest, "a guest that stored")


@clause("memslot.readonly-guest", arch="arm64", needs=(capability("KVM_CAP_READONLY_MEM"), GUEST_RUNS))
def readonly(context: Context) -> None:
    """A guest loads from a read-only slot as from any other; its stores leave as MMIO with their value, not made.

    It is so before and after a load has mapped the page, and what the VMM writes there the guest sees.

    Source: Documentation/virt/kvm/api.rst 4.35; arch/arm64/kvm/mmu.c, kvm_handle_guest_abort.
    """
    guest = _Guest(context)
    guest.set(size=0)
    guest.set(flags=lib.KVM_MEM_READONLY)
    guest.expect_write("a page that was never loaded", _PLACE)
    equal("the page that the guest stored to", guest.get(0), _MARK)
    equal("what the guest loads from it", guest.load(_PLACE), _MARK)
    guest.expect_write("a page that was loaded", _PLACE)
    equal("the page after the second store", guest.get(0), _MARK)
    guest.put(0, _OTHER)
    equal("what the guest loads of the VMM's store", guest.load(_PLACE), _OTHER)
    equal("what the guest loads from the other page", guest.load(_PLACE + PAGE_SIZE), _MARK + 1)


@clause("memslot.removed", arch="arm64", needs=(GUEST_RUNS,))
def removed(context: Context) -> None:
    """Where a slot is removed a guest's accesses leave as MMIO; where one is made again it finds the host's memory.

    Source: virt/kvm/kvm_main.c, kvm_set_memslot; arch/arm64/kvm/mmu.c, kvm_arch_flush_shadow_memslot.
    """
    guest = _Guest(context)
    equal("what the guest loads", guest.load(_PLACE), _MARK)
    guest.store(_PLACE + PAGE_SIZE)
    equal("what the guest stored", guest.get(1), _PLACE + PAGE_SIZE)
    succeeds("removing the slot", guest.set, size=0)
    guest.expect_read("a page of the removed slot", _PLACE)
    guest.expect_write("a page of the removed slot", _PLACE + PAGE_SIZE)
    equal("the page that the guest stored to", guest.get(1), _PLACE + PAGE_SIZE)
    guest.put(1, _OTHER)
    succeeds("the slot again", guest.set)
    equal("what the guest loads from its first page", guest.load(_PLACE), _MARK)
    equal("what the guest loads from its second page", guest.load(_PLACE + PAGE_SIZE), _OTHER)


@clause("memslot.moved", arch="arm64", needs=(GUEST_RUNS,))
def moved(context: Context) -> None:
    """A slot whose guest physical address is set anew has moved: its memory is there, and no longer where it was.

    Source: virt/kvm/kvm_main.c, kvm_set_memory_region (KVM_MR_MOVE); Documentation/virt/kvm/api.rst 4.35.
    """
    guest = _Guest(context)
    equal("what the guest loads", guest.load(_PLACE), _MARK)
    guest.store(_PLACE + PAGE_SIZE)
    succeeds("moving the slot", guest.set, _AWAY)
    equal("what the guest loads at the new place", guest.load(_AWAY), _MARK)
    equal("what it stored before the move", guest.load(_AWAY + PAGE_SIZE), _PLACE + PAGE_SIZE)
    guest.expect_read("the old place", _PLACE)
    guest.expect_write("the old place", _PLACE + PAGE_SIZE)
    guest.store(_AWAY)
    equal("what the guest stored at the new place", guest.get(0), _AWAY)
    succeeds("moving it by one page", guest.set, _AWAY + PAGE_SIZE)
    equal("what the guest loads one page further", guest.load(_AWAY + PAGE_SIZE), _AWAY)
    guest.expect_read("the page that it left", _AWAY)
