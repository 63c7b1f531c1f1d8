# SPDX-License-Identifier: Apache-2.0
"""Lies about IA32_PAT: as a register, and in how long loads and stores take."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.lies import Proceed, after, answer, nth, once, refuse, succeed_with
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import change_msr, of_msr
from tests.mutations.x86.lies import SLOW, after_msr_entry, batch_value, guest_did_not_fault, guest_faulted, timed
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.memory_types import PAT_AT_RESET, MemoryType
from vmm.x86.msr_names import Msr

GET, SET = "KVM_GET_MSRS", "KVM_SET_MSRS"


def _with_type(kind: int) -> Callable[[Call], bool]:
    """Met by a batch whose IA32_PAT has a type in one of its entries."""
    return lambda call: kind in (batch_value(call, Msr.PAT) or 0).to_bytes(8, "little")


lies(
    "pat.reset",
    ia32_pat_is_another_before_cpuid=lambda: after(GET, change_msr(Msr.PAT, lambda value: value ^ 1 << 8), nth(1)),
    ia32_pat_is_another_after_cpuid=lambda: once(
        "KVM_SET_CPUID2", after(GET, change_msr(Msr.PAT, lambda value: 0x0006060606060606))
    ),
    the_guest_reads_another_ia32_pat=lambda: after_msr_entry(
        "rdmsr", lambda shared: shared.set("values", PAT_AT_RESET ^ 1 << 40)
    ),
    the_guest_cannot_read_ia32_pat=lambda: after_msr_entry("rdmsr", guest_faulted),
)

lies(
    "pat.valid-types",
    write_protected_is_no_type=lambda: answer(SET, 0, _with_type(MemoryType.WP)),
    the_last_entry_is_not_kept=lambda: after(GET, change_msr(Msr.PAT, lambda value: value & ~(0xFF << 56))),
    the_guest_may_not_write_ia32_pat=lambda: after_msr_entry("wrmsr", guest_faulted),
    the_guest_reads_what_it_did_not_write=lambda: after_msr_entry(
        "rdmsr", lambda shared: shared.set("values", shared.get("values") ^ 1)
    ),
)


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


lies(
    "pat.invalid-type",
    type_2_is_accepted=lambda: succeed_with(SET, lambda call, result: 1, _with_type(2)),
    a_reserved_bit_in_the_last_entry_is_accepted=lambda: succeed_with(
        SET, lambda call, result: 1, lambda call: bool((batch_value(call, Msr.PAT) or 0) >> 63)
    ),
    what_is_refused_is_kept=lambda: once(SET, after(GET, change_msr(Msr.PAT, lambda value: value ^ 1 << 1))),
    the_guest_may_write_a_reserved_type=lambda: after_msr_entry("wrmsr", guest_did_not_fault),
    a_reserved_type_is_an_invalid_opcode=lambda: after_msr_entry("wrmsr", lambda shared: shared.set("vector", 6)),
)

lies(
    "pat.quirk-default-wb",
    uncached_pages_are_uncached=lambda: timed("loads", SLOW, MemoryType.UC),
    uncached_minus_pages_are_uncached=lambda: timed("loads", SLOW, MemoryType.UC_MINUS),
    write_combining_pages_are_uncached=lambda: timed("loads", SLOW, MemoryType.WC),
    write_through_pages_are_uncached=lambda: timed("loads", SLOW, MemoryType.WT),
)

lies(
    "pat.quirk-default-wb",
    "pat.quirk-disabled-honoured",
    "pat.amd-honoured",
    ia32_pat_cannot_be_set=lambda: answer(SET, 0, of_msr(Msr.PAT)),
)

lies(
    "pat.quirk-disabled-honoured",
    "pat.amd-honoured",
    uncached_pages_are_cached=lambda: timed("loads", 1 / SLOW, MemoryType.UC),
    write_combining_pages_are_cached=lambda: timed("loads", 1 / SLOW, MemoryType.WC),
    write_through_pages_are_not_cached=lambda: timed("loads", SLOW, MemoryType.WT),
    write_combining_combines_nothing=lambda: timed("stores", SLOW, MemoryType.WC),
)

lies("pat.quirk-disabled-honoured", the_quirk_cannot_be_disabled=lambda: refuse("KVM_ENABLE_CAP", errno.EINVAL))

lies(
    "pat.quirk-late",
    pages_in_use_change_their_type_at_once=lambda: once("KVM_ENABLE_CAP", timed("loads", SLOW, MemoryType.UC)),
)
