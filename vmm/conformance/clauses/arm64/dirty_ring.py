# SPDX-License-Identifier: Apache-2.0
"""The dirty rings of vCPUs, and the bitmaps that arm64 has beside them."""

from __future__ import annotations

import errno

from vmm._kvm import lib
from vmm.conformance import dirty_rules as rules
from vmm.conformance.arm64.common import GUEST_RUNS
from vmm.conformance.arm64.logged import GPA, guest_of
from vmm.conformance.context import Context
from vmm.conformance.dirty import PAGES, Logged, Ring, exactly
from vmm.conformance.expect import equal, refused, succeeds
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.kvm.dirty_log import RingKvm, RingMachine

# The capability for architectures whose stores are not ordered as x86's are.
_RING = capability("KVM_CAP_DIRTY_LOG_RING_ACQ_REL")
_WITH_BITMAP = capability("KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP")
_SOME = range(0, PAGES, 21)
# More than KVM keeps in reserve.
_ENTRIES = 1024


def _ringed(context: Context, pages: int = PAGES) -> tuple[Logged, Ring]:
    guest = guest_of(context, context.own(RingKvm(_ENTRIES)), pages=pages)
    assert isinstance(guest.vm, RingMachine)
    ring = context.own(Ring(guest.vm, guest.vcpu))
    return Logged(guest, GPA, context.timeout, pages), ring


@clause("dirty.ring-entries", arch="arm64", needs=(_RING, GUEST_RUNS))
def ring_entries(context: Context) -> None:
    """A ring has exactly the pages that its vCPU wrote, by slot and offset, and after a reset has them again.

    KVM_RESET_DIRTY_RINGS returns how many harvested entries it took back.

    Source: Documentation/virt/kvm/api.rst 7.36; virt/kvm/dirty_ring.c, kvm_dirty_ring_push, kvm_dirty_ring_reset.
    """
    rules.ring_names_pages(*_ringed(context))


@clause("dirty.ring-not-written", arch="arm64", needs=(_RING, GUEST_RUNS))
def ring_not_written(context: Context) -> None:
    """What the guest only reads, what the VMM writes, and stores to a slot without the flag, make no entry.

    Source: Documentation/virt/kvm/api.rst 7.36; virt/kvm/kvm_main.c, mark_page_dirty_in_slot.
    """
    rules.ring_ignores_others(*_ringed(context))


@clause("dirty.ring-full", arch="arm64", needs=(_RING, GUEST_RUNS))
def ring_full(context: Context) -> None:
    """A vCPU whose ring is full leaves with KVM_EXIT_DIRTY_RING_FULL until KVM_RESET_DIRTY_RINGS; no page is lost.

    Source: Documentation/virt/kvm/api.rst 7.36; virt/kvm/dirty_ring.c, kvm_dirty_ring_check_request.
    """
    rules.full_ring_stops(*_ringed(context, _ENTRIES))


@clause("dirty.ring-no-bitmap", arch="arm64", needs=(_RING, GUEST_RUNS))
def ring_no_bitmap(context: Context) -> None:
    """A VM with rings that did not ask for bitmaps has none: KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG are ENXIO.

    Source: Documentation/virt/kvm/api.rst 7.36; virt/kvm/kvm_main.c, kvm_get_dirty_log_protect,
    kvm_clear_dirty_log_protect.
    """
    log, _ = _ringed(context)
    rules.bitmap_refused_beside_rings(log)


@clause("dirty.ring-sizes", arch="arm64", needs=(_RING,))
def ring_sizes(context: Context) -> None:
    """The bytes of a ring are a power of two, a page at least and what is reported at most (E2BIG), chosen once.

    The choice comes before the first vCPU; all other refusals are EINVAL.

    Source: Documentation/virt/kvm/api.rst 7.36; virt/kvm/kvm_main.c, kvm_vm_ioctl_enable_dirty_log_ring.
    """
    rules.ring_sizes(context.vm, lib.KVM_CAP_DIRTY_LOG_RING_ACQ_REL)


class _BitmapKvm(RingKvm):
    """A /dev/kvm whose VMs have rings, and bitmaps for what no vCPU writes."""

    def create_vm(self, kind: int | None = None) -> RingMachine:
        machine = super().create_vm(kind)
        succeeds("bitmaps beside rings", machine.enable_cap, lib.KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP)
        return machine


@clause("dirty.ring-with-bitmap", arch="arm64", needs=(_RING, _WITH_BITMAP, GUEST_RUNS))
def ring_with_bitmap(context: Context) -> None:
    """Bitmaps beside rings are asked for after the rings and before memslots (EINVAL), and have no vCPU's stores.

    Source: Documentation/virt/kvm/api.rst 7.36; virt/kvm/kvm_main.c, kvm_vm_ioctl_enable_cap_generic,
    mark_page_dirty_in_slot; Linux 6.2.
    """
    capability = lib.KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
    refused("bitmaps beside no rings", errno.EINVAL, context.vm().enable_cap, capability)
    kvm = context.own(RingKvm(_ENTRIES))
    late = context.own(kvm.create_vm())
    late.add_memory(PAGES << 16)
    refused("bitmaps after a memslot", errno.EINVAL, late.enable_cap, capability)
    refused("bitmaps with a flag", errno.EINVAL, context.own(kvm.create_vm()).enable_cap, capability, flags=1)
    guest = guest_of(context, context.own(_BitmapKvm(_ENTRIES)))
    assert isinstance(guest.vm, RingMachine)
    ring = context.own(Ring(guest.vm, guest.vcpu))
    log = Logged(guest, GPA, context.timeout)
    log.log()

    def attempt() -> set[int]:
        log.write(_SOME)
        pages = {page for slot, page in ring.harvest() if slot == log.slot}
        ring.reset()
        equal("pages in the bitmap", sorted(succeeds("KVM_GET_DIRTY_LOG", log.get)), [])
        return pages

    exactly("pages in the ring", attempt, _SOME)
