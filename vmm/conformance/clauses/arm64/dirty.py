# SPDX-License-Identifier: Apache-2.0
"""The dirty log of a memslot: who writes the guest's memory, and the calls that say which pages that were."""

from __future__ import annotations

import errno

from vmm._kvm import ffi, lib
from vmm.arm64.registers import SYSTEM
from vmm.arm64.vcpu import Feature, write
from vmm.conformance import dirty_rules as rules
from vmm.conformance.arm64.common import GUEST_RUNS, SVE, call, lengths
from vmm.conformance.arm64.logged import GPA, guest_of, logged
from vmm.conformance.context import Context
from vmm.conformance.dirty import Logged, exactly
from vmm.conformance.expect import equal, refused, succeeds
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.kvm.exits import MmioWrite
from vmm.kvm.memory import PAGE_SIZE

_MANUAL = capability("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")
_SOME = range(1, 150, 16)
# Calls of the paravirtual time, and what they answer. Source: Documentation/virt/kvm/arm/pvtime.rst.
_PV_FEATURES, _PV_STOLEN, _SUCCESS = 0xC5000020, 0xC5000021, 0
_STOLEN_PAGE, _STOLEN_BYTES = 70, 16


@clause("dirty.stores", arch="arm64", needs=(GUEST_RUNS,))
def stores(context: Context) -> None:
    """The log has exactly the pages that the guest wrote: by pairs, by AdvSIMD registers, and across two pages.

    Source: Documentation/virt/kvm/api.rst 4.8; arch/arm64/kvm/mmu.c, user_mem_abort; virt/kvm/kvm_main.c,
    mark_page_dirty_in_slot.
    """
    log = logged(context)
    rules.stores(log, "dirty", 4096)
    rules.stores(log, "dirty_neon", 16)
    exactly(
        "pages written by vectors that lie in two of them",
        lambda: log.write_and_get(_SOME, "dirty_across", 16),
        {*_SOME, *(page - 1 for page in _SOME)},
    )


@clause("dirty.sve-stores", arch="arm64", needs=(SVE, GUEST_RUNS))
def sve_stores(context: Context) -> None:
    """The log has exactly the pages into which the guest's SVE stores wrote, at its longest vectors and its shortest.

    Source: Documentation/virt/kvm/api.rst 4.8; arch/arm64/kvm/mmu.c, user_mem_abort.
    """
    log = logged(context, Feature.SVE)
    for vq in sorted({1, lengths(context).maximum}):
        write(log.guest.vcpu, SYSTEM["ZCR_EL1"], vq - 1)
        rules.stores(log, "dirty_sve", 512)


@clause("dirty.kvm-stores", arch="arm64", needs=(capability("KVM_CAP_STEAL_TIME"), GUEST_RUNS))
def kvm_stores(context: Context) -> None:
    """The page in which KVM tells a guest of stolen time is in the log when KVM has written there.

    Source: Documentation/virt/kvm/arm/pvtime.rst; arch/arm64/kvm/pvtime.c, kvm_init_stolen_time;
    virt/kvm/kvm_main.c, kvm_write_guest_page.
    """
    log = Logged(guest_of(context, context.kvm, "hello"), GPA, context.timeout)
    guest, place = log.guest, GPA + _STOLEN_PAGE * PAGE_SIZE
    group, attribute = lib.KVM_ARM_VCPU_PVTIME_CTRL, lib.KVM_ARM_VCPU_PVTIME_IPA
    guest.vcpu.set_attribute(group, attribute, ffi.new("uint64_t *", place))
    log.log()

    def attempt() -> set[int]:
        log.memory.write(place, bytes([0xFF]) * _STOLEN_BYTES)
        call(context, guest, "PV_TIME_FEATURES", "hvc", _PV_FEATURES, _PV_STOLEN)  # type: ignore[arg-type]
        equal("PV_TIME_FEATURES of PV_TIME_ST", guest.mailbox.values[0], _SUCCESS)
        call(context, guest, "PV_TIME_ST", "hvc", _PV_STOLEN)  # type: ignore[arg-type]
        equal("where PV_TIME_ST says that it is", guest.mailbox.values[0], place)
        found = log.get()
        equal("the revision and the attributes there", log.memory.read(place, 8), bytes(8))
        return found

    exactly("the page of the stolen time", attempt, [_STOLEN_PAGE])
    exactly("the page of the stolen time, written again", attempt, [_STOLEN_PAGE])


@clause("dirty.get-clears", arch="arm64", needs=(GUEST_RUNS,))
def get_clears(context: Context) -> None:
    """KVM_GET_DIRTY_LOG empties the log, and a page that is written again is in it again.

    Source: Documentation/virt/kvm/api.rst 4.8; virt/kvm/kvm_main.c, kvm_get_dirty_log_protect.
    """
    rules.clears_and_logs_again(logged(context))


@clause("dirty.not-written", arch="arm64", needs=(GUEST_RUNS,))
def not_written(context: Context) -> None:
    """What the guest only reads, and what the VMM writes, is not in the log.

    Source: Documentation/virt/kvm/api.rst 4.8; arch/arm64/kvm/mmu.c, user_mem_abort.
    """
    rules.others_do_not_count(logged(context))


@clause("dirty.off-and-on", arch="arm64", needs=(GUEST_RUNS,))
def off_and_on(context: Context) -> None:
    """A slot without KVM_MEM_LOG_DIRTY_PAGES has no log (ENOENT); with it again it has an empty one that works.

    Source: Documentation/virt/kvm/api.rst 4.35; virt/kvm/kvm_main.c, kvm_prepare_memory_region.
    """
    rules.off_and_on(logged(context))


@clause("dirty.malformed-get", arch="arm64", needs=(GUEST_RUNS,))
def malformed_get(context: Context) -> None:
    """KVM_GET_DIRTY_LOG of no slot is ENOENT, of no address space or an impossible slot EINVAL; it takes nothing.

    Source: virt/kvm/kvm_main.c, kvm_get_dirty_log_protect.
    """
    rules.malformed_gets(logged(context))


@clause("dirty.readonly-slot", arch="arm64", needs=(capability("KVM_CAP_READONLY_MEM"), GUEST_RUNS))
def readonly_slot(context: Context) -> None:
    """A read-only slot has a log that stays empty: the guest's stores are MMIO and change nothing.

    Source: Documentation/virt/kvm/api.rst 4.35; arch/arm64/kvm/mmu.c, kvm_handle_guest_abort.
    """
    log = Logged(guest_of(context, context.kvm, "hello"), GPA, context.timeout)
    log.remove()
    log.log(readonly=True)
    guest = log.guest
    for page in _SOME[:3]:
        address = GPA + page * PAGE_SIZE
        guest.prepare("execute", _STORE, address)
        equal("how a store leaves", log.run(), MmioWrite(address, 8, address))
        equal("what follows the store", guest.event(log.run()), guest.DONE)
        guest.prepare("execute", _LOAD, address)
        equal("how a load ends", guest.event(log.run()), guest.DONE)
    equal("memory that stores changed", bytes(log.memory.current()) != bytes(log.memory.size), False)
    equal("pages in the log", sorted(succeeds("KVM_GET_DIRTY_LOG", log.get)), [])
    refused("a log of a slot that was made writable", errno.EINVAL, log.log)


# X0 is the address: STR X0, [X0] and LDR X0, [X0].
_STORE, _LOAD = 0xF9000000, 0xF9400000


@clause("dirty.manual-keeps", arch="arm64", needs=(_MANUAL, GUEST_RUNS))
def manual_keeps(context: Context) -> None:
    """With manual protection KVM_GET_DIRTY_LOG changes nothing; KVM_CLEAR_DIRTY_LOG empties the log and arms it.

    Source: Documentation/virt/kvm/api.rst 7.18, 4.117; virt/kvm/kvm_main.c, kvm_get_dirty_log_protect,
    kvm_clear_dirty_log_protect.
    """
    rules.keeps_until_cleared(logged(context))


@clause("dirty.clear-range", arch="arm64", needs=(_MANUAL, GUEST_RUNS))
def clear_range(context: Context) -> None:
    """KVM_CLEAR_DIRTY_LOG clears the pages whose bits are set in its bitmap, within its range and nowhere else.

    Source: Documentation/virt/kvm/api.rst 4.117; virt/kvm/kvm_main.c, kvm_clear_dirty_log_protect.
    """
    rules.clears_a_range(logged(context))


@clause("dirty.malformed-clear", arch="arm64", needs=(_MANUAL, GUEST_RUNS))
def malformed_clear(context: Context) -> None:
    """KVM_CLEAR_DIRTY_LOG refuses a range that is not of whole words or goes beyond the slot, and clears nothing.

    Only the slot's last word may be a part of one.

    Source: Documentation/virt/kvm/api.rst 4.117; virt/kvm/kvm_main.c, kvm_clear_dirty_log_protect.
    """
    rules.malformed_clears(logged(context))


def _manual_options(context: Context) -> int:
    return int(context.host.facts.capabilities["KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"])


@clause("dirty.initially-set", arch="arm64", needs=(_MANUAL, GUEST_RUNS))
def initially_set(context: Context) -> None:
    """With KVM_DIRTY_LOG_INITIALLY_SET a new log has every page of its slot and no other; once cleared it has stores.

    Source: Documentation/virt/kvm/api.rst 7.18; virt/kvm/kvm_main.c, kvm_prepare_memory_region.
    """
    offered = _manual_options(context)
    if not offered & lib.KVM_DIRTY_LOG_INITIALLY_SET:
        context.skip(f"KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is {offered}, KVM_DIRTY_LOG_INITIALLY_SET is 2")
    rules.initially_set(logged(context))


@clause("dirty.manual-options", arch="arm64", needs=(_MANUAL, GUEST_RUNS))
def manual_options(context: Context) -> None:
    """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 takes the options that it reports; others are EINVAL and change nothing.

    So is INITIALLY_SET without MANUAL_PROTECT_ENABLE.

    Source: Documentation/virt/kvm/api.rst 7.18; virt/kvm/kvm_main.c, kvm_vm_ioctl_enable_cap_generic.
    """
    rules.manual_options(logged(context), _manual_options(context))
