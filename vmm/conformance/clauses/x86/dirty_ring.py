# SPDX-License-Identifier: Apache-2.0
"""The dirty rings of vCPUs, which a VM has instead of bitmaps."""

from __future__ import annotations

from functools import partial

from vmm._kvm import lib
from vmm.conformance import dirty_rules as rules
from vmm.conformance.context import Context
from vmm.conformance.dirty import PAGES, Logged, Ring, exactly
from vmm.conformance.expect import equal
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.kvm.dirty_log import RingKvm, RingMachine
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import boot
from vmm.x86.cpuid import set_cpuid
from vmm.x86.guest import Guest
from vmm.x86.registers import get_regs, set_regs

# x86 orders stores as both capabilities promise, so every kernel with rings reports this one, the older.
# Source: virt/kvm/Kconfig, HAVE_KVM_DIRTY_RING_TSO.
_RING = capability("KVM_CAP_DIRTY_LOG_RING")
_GPA = 16 << 20
# More than KVM keeps in reserve, which with page-modification logging is over 512.
_ENTRIES = 1024
# IOPL 3, and the bit that is always set.
_RFLAGS = 3 << 12 | 2


# What each of two vCPUs writes: no page is written by both.
_PAGES = (range(2, 150, 30), range(7, 150, 20))


def _point(guest: Guest, vcpu: Vcpu, parameters: tuple[int, ...]) -> None:
    """Point a vCPU that is not among the guest's processors at the payload's stores."""
    for number, value in enumerate(parameters):
        guest.mailbox.write("params", value, number)
    boot.enter(vcpu, privilege=guest.USER)
    regs = get_regs(vcpu)
    regs.rip, regs.rsp = guest.payload.symbol("dirty"), guest.payload.symbol("user_stack_top")
    regs.rflags = _RFLAGS
    set_regs(vcpu, regs)


def _ringed(context: Context, pages: int = PAGES) -> tuple[Logged, Ring]:
    kvm = context.own(RingKvm(_ENTRIES))
    guest = context.own(Guest(kvm, "dirty", cpuid=context.host.facts.cpuid))
    assert isinstance(guest.vm, RingMachine)
    ring = context.own(Ring(guest.vm, guest.vcpu))
    return Logged(guest, _GPA, context.timeout, pages), ring


@clause("dirty.ring-entries", arch="x86", needs=(_RING,))
def ring_entries(context: Context) -> None:
    """A ring has exactly the pages that its vCPU wrote, by slot and offset, and after a reset has them again.

    KVM_RESET_DIRTY_RINGS returns how many harvested entries it took back.

    Source: Documentation/virt/kvm/api.rst 7.36; virt/kvm/dirty_ring.c, kvm_dirty_ring_push, kvm_dirty_ring_reset.
    """
    rules.ring_names_pages(*_ringed(context))


@clause("dirty.ring-not-written", arch="x86", needs=(_RING,))
def ring_not_written(context: Context) -> None:
    """What the guest only reads, what the VMM writes, and stores to a slot without the flag, make no entry.

    Source: Documentation/virt/kvm/api.rst 7.36; virt/kvm/kvm_main.c, mark_page_dirty_in_slot.
    """
    rules.ring_ignores_others(*_ringed(context))


@clause("dirty.ring-per-vcpu", arch="x86", needs=(_RING,))
def ring_per_vcpu(context: Context) -> None:
    """The ring of each vCPU has what that vCPU wrote and nothing else, and one reset takes back the entries of all.

    Source: Documentation/virt/kvm/api.rst 7.36; virt/kvm/kvm_main.c, mark_page_dirty_in_slot,
    kvm_vm_ioctl_reset_dirty_pages.
    """
    log, first = _ringed(context)
    guest, machine = log.guest, log.guest.vm
    assert isinstance(guest, Guest) and isinstance(machine, RingMachine)
    other = machine.create_vcpu(1)
    set_cpuid(other, guest.cpuid.with_apic_id(1))
    second = context.own(Ring(machine, other))
    log.log()

    def attempt(number: int) -> set[int]:
        """Each vCPU writes its pages, first one and then the other; the pages in the ring of one."""
        guest.prepare("dirty", *log.parameters(_PAGES[0]), privilege=guest.USER)
        equal("how the first vCPU leaves", guest.event(log.run()), guest.DONE)
        _point(guest, other, log.parameters(_PAGES[1]))
        equal("how the second vCPU leaves", guest.event(other.run(context.timeout)), guest.DONE)
        other.complete()
        found = [{page for _, page in ring.harvest()} for ring in (first, second)]
        entries = sum(len(pages) for pages in found)
        equal("entries that KVM_RESET_DIRTY_RINGS gave back", machine.ioctl_value(lib.KVM_RESET_DIRTY_RINGS), entries)
        return found[number]

    for number in (0, 1):
        exactly(f"pages in the ring of vCPU {number}", partial(attempt, number), _PAGES[number])


@clause("dirty.ring-full", arch="x86", needs=(_RING,))
def ring_full(context: Context) -> None:
    """A vCPU whose ring is full leaves with KVM_EXIT_DIRTY_RING_FULL until KVM_RESET_DIRTY_RINGS; no page is lost.

    Source: Documentation/virt/kvm/api.rst 7.36; virt/kvm/dirty_ring.c, kvm_dirty_ring_check_request.
    """
    rules.full_ring_stops(*_ringed(context, _ENTRIES))


@clause("dirty.ring-no-bitmap", arch="x86", needs=(_RING,))
def ring_no_bitmap(context: Context) -> None:
    """A VM with rings has no bitmaps: KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG are ENXIO.

    Source: Documentation/virt/kvm/api.rst 7.36; virt/kvm/kvm_main.c, kvm_get_dirty_log_protect,
    kvm_clear_dirty_log_protect.
    """
    log, _ = _ringed(context)
    rules.bitmap_refused_beside_rings(log)


@clause("dirty.ring-sizes", arch="x86", needs=(_RING,))
def ring_sizes(context: Context) -> None:
    """The bytes of a ring are a power of two, a page at least and what is reported at most (E2BIG), chosen once.

    The choice comes before the first vCPU; all other refusals are EINVAL.

    Source: Documentation/virt/kvm/api.rst 7.36; virt/kvm/kvm_main.c, kvm_vm_ioctl_enable_dirty_log_ring.
    """
    rules.ring_sizes(context.vm, lib.KVM_CAP_DIRTY_LOG_RING)
