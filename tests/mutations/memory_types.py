# SPDX-License-Identifier: Apache-2.0
"""Lies about IA32_PAT, the MTRRs and CR0.CD: as registers, and in how long loads and stores take."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.buffers import change_msr, msr_values, of_msr
from tests.mutations.lies import (
    Proceed,
    Shared,
    after,
    after_entry,
    answer,
    called,
    nth,
    once,
    refuse,
    succeed_with,
)
from tests.mutations.registry import mutation
from vmm.conformance.x86.caching import page
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.memory_types import PAT_AT_RESET, MemoryType
from vmm.x86.msr_names import Msr

GET, SET, SREGS = "KVM_GET_MSRS", "KVM_SET_MSRS", "KVM_SET_SREGS"
PAYLOAD = "memtype"
_CD = 1 << 30
_SLOW = 40
_FIXED, _BASE, _MASK = 0x250, 0x206, 0x207


def _value_of(call: Call, index: int) -> int | None:
    """What a batch has for an MSR."""
    return dict(msr_values(call)).get(index)


def _with_type(kind: int) -> Callable[[Call], bool]:
    """Met by a batch whose IA32_PAT has a type in one of its entries."""
    return lambda call: kind in (_value_of(call, Msr.PAT) or 0).to_bytes(8, "little")


def _guest(entry: str, change: Callable[[Shared], object], index: int = Msr.PAT) -> Interposer:
    """Lie about what RDMSR or WRMSR of one MSR in the hello payload left."""
    return after_entry(entry, change, when=lambda shared: shared.get("params") == index)


def _faulted(shared: Shared) -> None:
    shared.set("values", 1, 15)


def _no_fault(shared: Shared) -> None:
    shared.set("values", 0, 15)


@mutation("pat.reset")
def ia32_pat_is_another_before_cpuid() -> Interposer:
    return after(GET, change_msr(Msr.PAT, lambda value: value ^ 1 << 8), nth(1))


@mutation("pat.reset")
def ia32_pat_is_another_after_cpuid() -> Interposer:
    return once("KVM_SET_CPUID2", after(GET, change_msr(Msr.PAT, lambda value: 0x0006060606060606)))


@mutation("pat.reset")
def the_guest_reads_another_ia32_pat() -> Interposer:
    return _guest("rdmsr", lambda shared: shared.set("values", PAT_AT_RESET ^ 1 << 40))


@mutation("pat.reset")
def the_guest_cannot_read_ia32_pat() -> Interposer:
    return _guest("rdmsr", _faulted)


@mutation("pat.valid-types")
def write_protected_is_no_type() -> Interposer:
    return answer(SET, 0, _with_type(MemoryType.WP))


@mutation("pat.valid-types")
def the_last_entry_is_not_kept() -> Interposer:
    return after(GET, change_msr(Msr.PAT, lambda value: value & ~(0xFF << 56)))


@mutation("pat.valid-types")
def the_guest_may_not_write_ia32_pat() -> Interposer:
    return _guest("wrmsr", _faulted)


@mutation("pat.valid-types")
def the_guest_reads_what_it_did_not_write() -> Interposer:
    return _guest("rdmsr", lambda shared: shared.set("values", shared.get("values") ^ 1))


@mutation("pat.valid-types")
def the_host_does_not_see_what_the_guest_wrote() -> Interposer:
    # The clause's first 48 reads are of what the host wrote.
    reads = 0

    def stale(call: Call, proceed: Proceed) -> int:
        nonlocal reads
        result = proceed()
        if call.name == GET and result >= 0:
            reads += 1
            if reads > 48:
                change_msr(Msr.PAT, lambda value: PAT_AT_RESET)(call)
        return result

    return stale


@mutation("pat.invalid-type")
def type_2_is_accepted() -> Interposer:
    return succeed_with(SET, lambda call, result: 1, _with_type(2))


@mutation("pat.invalid-type")
def a_reserved_bit_in_the_last_entry_is_accepted() -> Interposer:
    return succeed_with(SET, lambda call, result: 1, lambda call: bool((_value_of(call, Msr.PAT) or 0) >> 63))


@mutation("pat.invalid-type")
def what_is_refused_is_kept() -> Interposer:
    return once(SET, after(GET, change_msr(Msr.PAT, lambda value: value ^ 1 << 1)))


@mutation("pat.invalid-type")
def the_guest_may_write_a_reserved_type() -> Interposer:
    return _guest("wrmsr", _no_fault)


@mutation("pat.invalid-type")
def a_reserved_type_is_an_invalid_opcode() -> Interposer:
    return _guest("wrmsr", lambda shared: shared.set("vector", 6))


def timed(entry: str, factor: float, *kinds: MemoryType) -> Interposer:
    """Loads or stores of some types take ``factor`` times as long as they did."""
    pages = [page(kind) for kind in kinds]
    return after_entry(
        entry,
        lambda shared: shared.set("values", int(shared.get("values") * factor)),
        payload=PAYLOAD,
        when=lambda shared: shared.get("params") in pages,
    )


@mutation("pat.quirk-default-wb")
def uncached_pages_are_uncached() -> Interposer:
    return timed("loads", _SLOW, MemoryType.UC)


@mutation("pat.quirk-default-wb")
def uncached_minus_pages_are_uncached() -> Interposer:
    return timed("loads", _SLOW, MemoryType.UC_MINUS)


@mutation("pat.quirk-default-wb")
def write_combining_pages_are_uncached() -> Interposer:
    return timed("loads", _SLOW, MemoryType.WC)


@mutation("pat.quirk-default-wb")
def write_through_pages_are_uncached() -> Interposer:
    return timed("loads", _SLOW, MemoryType.WT)


@mutation("pat.quirk-default-wb", "pat.quirk-disabled-honoured", "pat.amd-honoured")
def ia32_pat_cannot_be_set() -> Interposer:
    return answer(SET, 0, of_msr(Msr.PAT))


@mutation("pat.quirk-disabled-honoured", "pat.amd-honoured")
def uncached_pages_are_cached() -> Interposer:
    return timed("loads", 1 / _SLOW, MemoryType.UC)


@mutation("pat.quirk-disabled-honoured", "pat.amd-honoured")
def write_combining_pages_are_cached() -> Interposer:
    return timed("loads", 1 / _SLOW, MemoryType.WC)


@mutation("pat.quirk-disabled-honoured", "pat.amd-honoured")
def write_through_pages_are_not_cached() -> Interposer:
    return timed("loads", _SLOW, MemoryType.WT)


@mutation("pat.quirk-disabled-honoured", "pat.amd-honoured")
def write_combining_combines_nothing() -> Interposer:
    return timed("stores", _SLOW, MemoryType.WC)


@mutation("pat.quirk-disabled-honoured")
def the_quirk_cannot_be_disabled() -> Interposer:
    return refuse("KVM_ENABLE_CAP", errno.EINVAL)


@mutation("pat.quirk-late")
def pages_in_use_change_their_type_at_once() -> Interposer:
    return once("KVM_ENABLE_CAP", timed("loads", _SLOW, MemoryType.UC))


@mutation("noncoh.wbinvd")
def wbinvd_empties_the_caches() -> Interposer:
    shared = Shared(PAYLOAD)
    last = ""

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal last
        shared.watch(call)
        entry = next((n for n in ("once", "wbinvd") if shared.entry == shared.payload.symbol(n)), "")
        result = proceed()
        if called(call) == "run" and result >= 0:
            if entry == "once" and last == "wbinvd":
                shared.set("values", shared.get("values") * _SLOW)
            # The loads that warm the lines come before it, the timed pass after it.
            last = entry
        return result

    return interposer


@mutation("mtrr.cap")
def there_are_ten_variable_ranges() -> Interposer:
    return after(GET, change_msr(Msr.MTRRCAP, lambda value: 0x50A))


@mutation("mtrr.cap")
def ia32_mtrrcap_can_be_written() -> Interposer:
    return succeed_with(SET, lambda call, result: 1, of_msr(Msr.MTRRCAP))


@mutation("mtrr.cap")
def the_guest_sees_smrr() -> Interposer:
    return _guest("rdmsr", lambda shared: shared.set("values", 0xD08), Msr.MTRRCAP)


@mutation("mtrr.cap")
def the_guest_may_write_ia32_mtrrcap() -> Interposer:
    return _guest("wrmsr", _no_fault, Msr.MTRRCAP)


@mutation("mtrr.cap")
def the_last_range_of_ia32_mtrrcap_is_missing() -> Interposer:
    return answer(SET, 0, of_msr(0x20F))


@mutation("mtrr.cap")
def the_last_fixed_range_is_missing() -> Interposer:
    return answer(SET, 0, of_msr(0x26F))


@mutation("mtrr.cap")
def there_is_no_write_combining_in_spite_of_its_bit() -> Interposer:
    return answer(SET, 0, of_msr(Msr.MTRR_DEF_TYPE))


@mutation("mtrr.emulated-only")
def the_mtrrs_are_on_at_reset() -> Interposer:
    return after(GET, change_msr(Msr.MTRR_DEF_TYPE, lambda value: value | 0xC00))


@mutation("mtrr.emulated-only")
def a_fixed_range_cannot_be_set() -> Interposer:
    return answer(SET, 0, of_msr(0x26F))


@mutation("mtrr.emulated-only")
def a_variable_range_is_not_kept() -> Interposer:
    return once(SET, after(GET, change_msr(0x20E, lambda value: value & ~0xFF)))


@mutation("mtrr.emulated-only")
def the_guest_may_not_write_a_mask() -> Interposer:
    return _guest("wrmsr", _faulted, 0x201)


@mutation("mtrr.emulated-only")
def the_guest_reads_another_default_type() -> Interposer:
    return _guest("rdmsr", lambda shared: shared.set("values", 0xC00), Msr.MTRR_DEF_TYPE)


def _accepted(index: int, value: int) -> Interposer:
    return succeed_with(SET, lambda call, result: 1, lambda call: _value_of(call, index) == value)


@mutation("mtrr.validation")
def default_type_2_is_accepted() -> Interposer:
    return _accepted(Msr.MTRR_DEF_TYPE, 2)


@mutation("mtrr.validation")
def bit_8_of_the_default_type_is_accepted() -> Interposer:
    return _accepted(Msr.MTRR_DEF_TYPE, 0x106)


@mutation("mtrr.validation")
def type_3_of_a_fixed_range_is_accepted() -> Interposer:
    return _accepted(_FIXED, 3)


@mutation("mtrr.validation")
def bit_11_of_a_base_is_accepted() -> Interposer:
    return _accepted(_BASE, 1 << 11 | 6)


@mutation("mtrr.validation")
def bit_10_of_a_mask_is_accepted() -> Interposer:
    return _accepted(_MASK, 1 << 10)


@mutation("mtrr.validation")
def a_base_beyond_the_guests_memory_is_accepted() -> Interposer:
    return _accepted(_BASE, 1 << 63 | 6)


@mutation("mtrr.validation")
def there_is_a_ninth_range() -> Interposer:
    return succeed_with(SET, lambda call, result: 1, of_msr(0x210))


@mutation("mtrr.validation")
def a_refused_default_type_is_kept() -> Interposer:
    return once(SET, after(GET, change_msr(Msr.MTRR_DEF_TYPE, lambda value: 2)))


@mutation("mtrr.validation")
def the_guest_may_write_a_reserved_bit() -> Interposer:
    return _guest("wrmsr", _no_fault, _MASK)


@mutation("mtrr.validation")
def a_reserved_default_type_is_an_invalid_opcode() -> Interposer:
    return _guest("wrmsr", lambda shared: shared.set("vector", 6), Msr.MTRR_DEF_TYPE)


def _while(name: str, on: Callable[[Call], bool], lie: Interposer) -> Interposer:
    """``lie`` holds from a call of ``name`` that meets ``on`` to the next one that does not."""
    active = False

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal active
        if call.name == name:
            active = on(call)
        # The lie has to watch all calls to know where memory lies: it is told of what it may not change.
        return lie(call, proceed) if active or call.name != "KVM_RUN" else proceed()

    return interposer


@mutation("mtrr.no-effect")
def uncached_mtrrs_slow_the_guest_down() -> Interposer:
    lie = timed("loads", _SLOW, MemoryType.WB)
    return _while(SET, lambda call: _value_of(call, Msr.MTRR_DEF_TYPE) == 1 << 11, lie)


@mutation("mtrr.no-effect")
def the_default_type_cannot_be_set() -> Interposer:
    return answer(SET, 0, of_msr(Msr.MTRR_DEF_TYPE))


@mutation("cr0cd.no-effect-intel")
def cache_disable_slows_the_guest_down() -> Interposer:
    return _while(SREGS, lambda call: bool(call.argument.cr0 & _CD), timed("loads", _SLOW, MemoryType.WB))


def _clear_cd(shared: Shared) -> None:
    shared.set("values", shared.get("values") & ~_CD)


@mutation("cr0cd.no-effect-intel", "cr0cd.amd-honoured")
def cache_disable_reads_as_0() -> Interposer:
    return after_entry("read_cr0", _clear_cd, payload=PAYLOAD)


@mutation("cr0cd.amd-honoured")
def cache_disable_changes_nothing() -> Interposer:
    lie = timed("loads", 1 / _SLOW, MemoryType.WB)
    return _while(SREGS, lambda call: bool(call.argument.cr0 & _CD), lie)


@mutation("dev.vfio-coherent")
def a_non_coherent_group_changes_nothing() -> Interposer:
    return once("KVM_SET_DEVICE_ATTR", timed("loads", 1 / _SLOW, MemoryType.UC))


@mutation("dev.vfio-coherent")
def the_guest_is_uncached_without_a_group() -> Interposer:
    return timed("loads", _SLOW, MemoryType.UC)
