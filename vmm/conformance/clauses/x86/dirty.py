# SPDX-License-Identifier: Apache-2.0
"""The dirty log of a memslot: who writes the guest's memory, and the calls that say which pages that were."""

from __future__ import annotations

import errno

from vmm._kvm import lib
from vmm.conformance import dirty_rules as rules
from vmm.conformance.context import Context
from vmm.conformance.dirty import Logged, exactly
from vmm.conformance.expect import equal, refused, succeeds
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import GUEST_XSAVE, TILE_GUESTS, permit_tiles, plain_features, vector_level
from vmm.kvm.exits import IoIn, MmioWrite
from vmm.kvm.memory import PAGE_SIZE
from vmm.x86 import cpuid
from vmm.x86.boot import CR4_OSXSAVE
from vmm.x86.guest import Guest
from vmm.x86.msr import set_msr
from vmm.x86.registers import set_xcr0

_MANUAL = capability("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")
# Behind the guest's memory, where its tables map all of 4 GiB.
_GPA = 16 << 20
_SOME = range(1, 150, 16)
# The paravirtual leaf with what KVM offers, its bits, and the MSRs that say where KVM shall write.
# Source: Documentation/virt/kvm/x86/cpuid.rst, msr.rst.
_FEATURES = 0x4000_0001
_CLOCK, _STEAL = 3, 5
_CLOCK_MSR, _STEAL_MSR, _ON = 0x4B56_4D01, 0x4B56_4D03, 1


def _logged(context: Context) -> Logged:
    guest = context.own(Guest(context.kvm, "dirty", cpuid=context.host.facts.cpuid))
    return Logged(guest, _GPA, context.timeout)


def _vectors(context: Context, features: int) -> Logged:
    """A guest whose CR4 and XCR0 let it use vectors."""
    table = cpuid.supported(context.kvm)
    guest = context.own(Guest(context.kvm, "dirty", cpuid=table, cr4=CR4_OSXSAVE))
    set_xcr0(guest.vcpu, features)
    return Logged(guest, _GPA, context.timeout)


@clause("dirty.stores", arch="x86")
def stores(context: Context) -> None:
    """The log has exactly the pages that the guest wrote: by a string instruction, by vectors, and across two pages.

    Source: Documentation/virt/kvm/api.rst 4.8; arch/x86/kvm/mmu/spte.c, make_spte; virt/kvm/kvm_main.c,
    mark_page_dirty_in_slot.
    """
    level = vector_level(context)
    log = _logged(context) if level == "sse" else _vectors(context, plain_features(context))
    entries = {"dirty": 4096, "dirty_sse": 16, "dirty_avx": 32, "dirty_avx512": 64}
    wide = {"sse": 2, "avx": 3, "avx512": 4}[level]
    for entry, size in list(entries.items())[:wide]:
        rules.stores(log, entry, size)
    exactly(
        "pages written by vectors that lie in two of them",
        lambda: log.write_and_get(_SOME, "dirty_across"),
        {*_SOME, *(page - 1 for page in _SOME)},
    )


@clause("dirty.xsave-stores", arch="x86", needs=(GUEST_XSAVE,))
def xsave_stores(context: Context) -> None:
    """The log has exactly the pages into which the guest's XSAVE wrote.

    Source: Documentation/virt/kvm/api.rst 4.8; arch/x86/kvm/mmu/spte.c, make_spte.
    """
    rules.stores(_vectors(context, plain_features(context)), "dirty_xsave", 64)


@clause("dirty.tile-stores", arch="x86", needs=TILE_GUESTS)
def tile_stores(context: Context) -> None:
    """The log has exactly the pages into which the guest's TILESTORED wrote.

    Source: Documentation/virt/kvm/api.rst 4.8; arch/x86/kvm/mmu/spte.c, make_spte.
    """
    permit_tiles(context)
    rules.stores(_vectors(context, cpuid.supported(context.kvm).xcr0), "dirty_tile", 2048)


@clause("dirty.kvm-stores", arch="x86")
def kvm_stores(context: Context) -> None:
    """What KVM writes for the guest is in the log: INS, and where it has them the kvmclock and the steal time.

    Source: virt/kvm/kvm_main.c, kvm_write_guest_page, kvm_write_guest_offset_cached; arch/x86/kvm/x86.c,
    kvm_setup_guest_pvclock (kvm_gpc_mark_dirty_in_slot), record_steal_time.
    """
    log = _logged(context)
    guest, memory = log.guest, log.memory
    offered = context.host.facts.cpuid.get(_FEATURES).eax
    shared = {
        msr: page for bit, msr, page in ((_CLOCK, _CLOCK_MSR, 3), (_STEAL, _STEAL_MSR, 70)) if offered >> bit & 1
    }
    log.log()

    def attempt() -> set[int]:
        memory.view[:] = bytes(memory.size)
        for msr, page in shared.items():
            if not set_msr(guest.vcpu, msr, memory.gpa + page * PAGE_SIZE | _ON):
                raise RuntimeError(f"KVM offers a paravirtual feature and refuses its MSR {msr:#x}")
        guest.prepare("input", *log.parameters(_SOME), privilege=guest.USER)
        for _ in _SOME:
            equal("how INS leaves", log.run(), IoIn(guest.payload.symbol("INPUT_PORT"), 4))
            guest.vcpu.reply(0xFFFFFFFF)
        equal("what follows INS", guest.event(log.run()), guest.DONE)
        found = log.get()
        zeros = bytes(PAGE_SIZE)
        changed = {page for page, data in memory.pages(range(log.pages)) if data != zeros}
        equal("pages that INS did not change", sorted(set(_SOME) - changed), [])
        equal("pages that KVM changed and the log does not have", sorted(changed - found), [])
        return found - set(shared.values())

    exactly("pages that INS wrote", attempt, _SOME)
    if len(shared) < 2:
        context.note(f"KVM offers the paravirtual features {offered:#x}: {len(shared)} of clock and steal time")


@clause("dirty.get-clears", arch="x86")
def get_clears(context: Context) -> None:
    """KVM_GET_DIRTY_LOG empties the log, and a page that is written again is in it again.

    Source: Documentation/virt/kvm/api.rst 4.8; virt/kvm/kvm_main.c, kvm_get_dirty_log_protect.
    """
    rules.clears_and_logs_again(_logged(context))


@clause("dirty.not-written", arch="x86")
def not_written(context: Context) -> None:
    """What the guest only reads, and what the VMM writes, is not in the log.

    A page that KVM maps for a read is mapped writable and counts as written, so the pages are mapped beforehand.

    Source: Documentation/virt/kvm/api.rst 4.8; arch/x86/kvm/mmu/spte.c, make_spte.
    """
    rules.others_do_not_count(_logged(context))


@clause("dirty.off-and-on", arch="x86")
def off_and_on(context: Context) -> None:
    """A slot without KVM_MEM_LOG_DIRTY_PAGES has no log (ENOENT); with it again it has an empty one that works.

    Source: Documentation/virt/kvm/api.rst 4.35; virt/kvm/kvm_main.c, kvm_prepare_memory_region.
    """
    rules.off_and_on(_logged(context))


@clause("dirty.malformed-get", arch="x86")
def malformed_get(context: Context) -> None:
    """KVM_GET_DIRTY_LOG of no slot is ENOENT, of no address space or an impossible slot EINVAL; it takes nothing.

    Source: virt/kvm/kvm_main.c, kvm_get_dirty_log_protect.
    """
    rules.malformed_gets(_logged(context))


@clause("dirty.readonly-slot", arch="x86", needs=(capability("KVM_CAP_READONLY_MEM"),))
def readonly_slot(context: Context) -> None:
    """A read-only slot has a log that stays empty: the guest's stores are MMIO and change nothing.

    Source: Documentation/virt/kvm/api.rst 4.35; virt/kvm/kvm_main.c, check_memory_region_flags.
    """
    log = _logged(context)
    log.remove()
    log.log(readonly=True)
    guest = log.guest
    guest.prepare("dirty", *log.parameters(_SOME, 8), privilege=guest.USER)
    for page in _SOME:
        exit = log.run()
        value = exit.value if isinstance(exit, MmioWrite) else 0
        equal("how a store leaves", exit, MmioWrite(log.memory.gpa + page * PAGE_SIZE, 8, value))
    equal("what follows the stores", guest.event(log.run()), guest.DONE)
    equal("memory that stores changed", bytes(log.memory.current()) != bytes(log.memory.size), False)
    log.read(_SOME)
    equal("pages in the log", sorted(succeeds("KVM_GET_DIRTY_LOG", log.get)), [])
    refused("a log of a slot that was made writable", errno.EINVAL, log.log)


@clause("dirty.manual-keeps", arch="x86", needs=(_MANUAL,))
def manual_keeps(context: Context) -> None:
    """With manual protection KVM_GET_DIRTY_LOG changes nothing; KVM_CLEAR_DIRTY_LOG empties the log and arms it.

    Source: Documentation/virt/kvm/api.rst 7.18, 4.117; virt/kvm/kvm_main.c, kvm_get_dirty_log_protect,
    kvm_clear_dirty_log_protect.
    """
    rules.keeps_until_cleared(_logged(context))


@clause("dirty.clear-range", arch="x86", needs=(_MANUAL,))
def clear_range(context: Context) -> None:
    """KVM_CLEAR_DIRTY_LOG clears the pages whose bits are set in its bitmap, within its range and nowhere else.

    Source: Documentation/virt/kvm/api.rst 4.117; virt/kvm/kvm_main.c, kvm_clear_dirty_log_protect.
    """
    rules.clears_a_range(_logged(context))


@clause("dirty.malformed-clear", arch="x86", needs=(_MANUAL,))
def malformed_clear(context: Context) -> None:
    """KVM_CLEAR_DIRTY_LOG refuses a range that is not of whole words or goes beyond the slot, and clears nothing.

    Only the slot's last word may be a part of one.

    Source: Documentation/virt/kvm/api.rst 4.117; virt/kvm/kvm_main.c, kvm_clear_dirty_log_protect.
    """
    rules.malformed_clears(_logged(context))


def _manual_options(context: Context) -> int:
    return int(context.host.facts.capabilities["KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"])


@clause("dirty.initially-set", arch="x86", needs=(_MANUAL,))
def initially_set(context: Context) -> None:
    """With KVM_DIRTY_LOG_INITIALLY_SET a new log has every page of its slot and no other; once cleared it has stores.

    Source: Documentation/virt/kvm/api.rst 7.18; virt/kvm/kvm_main.c, kvm_prepare_memory_region.
    """
    offered = _manual_options(context)
    if not offered & lib.KVM_DIRTY_LOG_INITIALLY_SET:
        context.skip(f"KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is {offered}, KVM_DIRTY_LOG_INITIALLY_SET is 2")
    rules.initially_set(_logged(context))


@clause("dirty.manual-options", arch="x86", needs=(_MANUAL,))
def manual_options(context: Context) -> None:
    """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 takes the options that it reports; others are EINVAL and change nothing.

    So is INITIALLY_SET without MANUAL_PROTECT_ENABLE.

    Source: Documentation/virt/kvm/api.rst 7.18; virt/kvm/kvm_main.c, kvm_vm_ioctl_enable_cap_generic.
    """
    rules.manual_options(_logged(context), _manual_options(context))
