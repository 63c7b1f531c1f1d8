# SPDX-License-Identifier: Apache-2.0
"""Lies in the table of KVM_GET_SUPPORTED_CPUID."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace

from tests.mutations.lies import accept, after, assign, both, drift, honest, on_refusal, once, refuse
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import change_entry, offers
from tests.mutations.x86.lies import TILES
from vmm.conformance.clauses.x86 import cpuid as clauses
from vmm.kvm.ioctl import Call, Interposer, KvmError
from vmm.kvm.system import Kvm
from vmm.x86 import cpuid, permission
from vmm.x86.cpuid import Entry
from vmm.x86.xfeature import XTILE

ASK, REQUEST = "KVM_GET_SUPPORTED_CPUID", "ARCH_REQ_XCOMP_GUEST_PERM"
SHSTK, IBT, XSAVES, AVX10, APX = 1 << 7, 1 << 20, 1 << 3, 1 << 19, 1 << 21


def _leaf(function: int, index: int, /, **changes: Callable[[int], int]) -> Interposer:
    """Change registers of one entry."""
    return after(ASK, change_entry(function, index, **changes))


def _supported() -> int:
    """Return what KVM could give a guest, asked behind the clause's back."""
    with Kvm() as kvm:
        try:
            return permission.guest_supported(kvm)
        except KvmError:
            return cpuid.supported(kvm).xcr0


def _complete(index: Callable[[Call], int], **changes: Callable[[int], int]) -> Interposer:
    """Change registers of one entry of leaf 0xD, but only in a table that has all that can ever be offered.

    That is one with tiles, where KVM supports them.
    """
    complete = _supported() & XTILE

    def asked(call: Call) -> None:
        if offers(call) & XTILE == complete:
            change_entry(0xD, index(call), **changes)(call)

    return after(ASK, asked)


def _last_component(call: Call) -> int:
    return offers(call).bit_length() - 1


def _first_component(**changes: Callable[[int], int]) -> Interposer:
    """Change registers of the subleaf of AVX, the first component that has one."""
    return _leaf(0xD, 2, **changes)


lies(
    "cpuid.0xd0-size",
    the_size_in_use_is_64_bytes_too_long=lambda: _leaf(0xD, 0, ebx=lambda value: value + 64),
    the_maximal_size_is_one_byte_too_short=lambda: _leaf(0xD, 0, ecx=lambda value: value - 1),
)

lies(
    "cpuid.0xd0-size",
    "cpuid.not-exposed",
    a_component_is_offered_that_kvm_lacks=lambda: _leaf(0xD, 0, eax=lambda value: value | 1 << 19),
)

lies(
    "cpuid.0xd0-size",
    a_component_of_the_upper_half_is_offered=lambda: _leaf(0xD, 0, edx=lambda value: value | 1 << 30),
)

lies(
    "cpuid.0xd1-size",
    the_compacted_size_ignores_alignment=lambda: _leaf(0xD, 1, ebx=lambda value: value - 48),
    ia32_xss_may_have_a_user_component=lambda: _leaf(0xD, 1, ecx=lambda value: value | 4),
)

lies(
    "cpuid.0xd-subleaf-kind",
    a_component_has_no_size=lambda: _first_component(eax=lambda value: 0),
    a_user_component_is_said_to_be_a_supervisors=lambda: _first_component(ecx=lambda value: value | 1),
    a_user_component_lies_at_0=lambda: _first_component(ebx=lambda value: 0),
    a_reserved_register_of_a_component_is_not_0=lambda: _first_component(edx=lambda value: 1),
    a_component_has_no_subleaf=lambda: _first_component(index=lambda value: 61),
    a_component_that_is_not_offered_has_a_subleaf=lambda: _leaf(
        0xD, 62, eax=lambda value: 64, ebx=lambda value: 0x3000
    ),
)

lies(
    "cpuid.0xd-xfd-bit",
    avx_is_said_to_be_subject_to_xfd=lambda: _first_component(ecx=lambda value: value ^ 4),
    the_xfd_bit_belongs_to_a_component_without_a_register=lambda: _leaf(0xD, 62, ecx=lambda value: value | 4),
)

lies(
    "cpuid.0x1d",
    there_is_one_tile_palette_more=lambda: _leaf(0x1D, 0, eax=lambda value: value + 1),
    the_palette_has_another_number_of_rows=lambda: _leaf(0x1D, 1, ecx=lambda value: value ^ 1),
    the_palette_has_another_number_of_tiles=lambda: _leaf(0x1D, 1, ebx=lambda value: value ^ 0x10000),
)

lies(
    "cpuid.0x24-avx10",
    the_avx10_version_is_255=lambda: _leaf(0x24, 0, ebx=lambda value: value | 0xFF),
    avx10_is_offered_without_its_leaf=lambda: both(
        _leaf(7, 1, edx=lambda value: value | AVX10), _leaf(0x24, 0, ebx=lambda value: 0)
    ),
    a_reserved_register_of_avx10_is_not_0=lambda: _leaf(0x24, 1, edx=lambda value: 1),
)

lies(
    "cpuid.not-exposed",
    processor_trace_state_is_offered=lambda: _leaf(0xD, 1, ecx=lambda value: value | 1 << 8),
    not_all_that_is_offered_can_be_enabled=lambda: refuse("KVM_SET_XCRS", errno.EINVAL),
    apx_is_offered_without_its_component=lambda: _leaf(7, 1, edx=lambda value: value | APX),
)

lies(
    "cpuid.all-or-none",
    a_part_of_avx512_is_offered=lambda: _leaf(0xD, 0, eax=lambda value: value ^ 1 << 5),
    one_of_the_tile_components_is_offered=lambda: _leaf(0xD, 0, eax=lambda value: value ^ 1 << 17),
    half_of_mpx_is_offered=lambda: _leaf(0xD, 0, eax=lambda value: value ^ 1 << 4),
    avx512_is_offered_without_avx=lambda: _leaf(0xD, 0, eax=lambda value: (value | 0xE0) & ~4),
    avx_is_offered_without_sse=lambda: _leaf(0xD, 0, eax=lambda value: (value | 4) & ~2),
    sse_is_offered_without_x87=lambda: _leaf(0xD, 0, eax=lambda value: value & ~1),
)


@mutation("cpuid.pku-needs-tdp")
def pku_is_offered_where_the_host_does_not_use_it() -> Interposer:
    """CPUID of the host is no call, so it is the fact and not KVM's answer that changes."""
    ask = cpuid.host

    def host(function: int, index: int = 0) -> Entry:
        found = ask(function, index)
        return replace(found, ecx=found.ecx & ~(1 << 4)) if function == 7 and not index else found

    cpuid.host = host
    return honest


@mutation("cpuid.pku-needs-tdp")
def pku_is_offered_with_shadow_paging() -> Interposer:
    clauses._two_dimensional_paging = lambda host: "N"
    return honest


lies(
    "cpuid.cet-all-or-nothing",
    one_of_the_cet_components_is_offered=lambda: _leaf(0xD, 1, ecx=lambda value: value ^ 1 << 11),
    ibt_is_offered_without_its_components=lambda: both(
        _leaf(7, 0, edx=lambda value: value | IBT), _leaf(0xD, 1, ecx=lambda value: value & ~0x1800)
    ),
    shadow_stacks_are_offered_without_xsaves=lambda: both(
        _leaf(7, 0, ecx=lambda value: value | SHSTK),
        _leaf(0xD, 1, eax=lambda value: value & ~XSAVES, ecx=lambda value: value | 0x1800),
    ),
)

lies(
    "cpuid.nent-protocol",
    a_table_that_is_too_small_is_enomem=lambda: drift(ASK, errno.ENOMEM),
    a_table_that_is_too_small_is_filled_as_far_as_it_goes=lambda: accept(ASK),
    a_table_of_no_entry_is_accepted=lambda: accept(ASK, lambda call: call.argument.nent == 0),
    more_room_than_256_entries_is_enomem=lambda: refuse(ASK, errno.ENOMEM, lambda call: call.argument.nent > 256),
    a_table_of_the_exact_size_is_too_small=lambda: refuse(
        ASK, errno.E2BIG, lambda call: 1 < call.argument.nent < 256
    ),
)


@mutation("cpuid.nent-protocol")
def the_last_entry_is_missing_from_a_large_table() -> Interposer:
    def change(call: Call) -> None:
        call.argument.nent -= 1

    return after(ASK, change, lambda call: bool(call.argument.nent > 256))


lies("cpuid.nent-protocol", the_needed_size_is_left_in_nent=lambda: on_refusal(ASK, assign("nent", 77)))

lies(
    "cpuid.leaf0-max",
    the_highest_leaf_is_below_the_xstate_leaf=lambda: _leaf(0, 0, eax=lambda value: 0xC),
    the_highest_leaf_is_one_too_many=lambda: _leaf(0, 0, eax=lambda value: cpuid.host(0).eax + 1),
    a_leaf_is_listed_beyond_the_highest=lambda: _leaf(0x77, 0, eax=lambda value: 1),
    leaf_7_lists_a_subleaf_beyond_its_last=lambda: _leaf(7, 9, eax=lambda value: 1),
    leaf_7_has_one_subleaf_too_many=lambda: _leaf(7, 0, eax=lambda value: cpuid.host(7).eax + 1),
)

lies(
    "cpuid.0xd0-size",
    the_maximal_size_leaves_out_the_last_component=lambda: _complete(lambda call: 0, ecx=lambda value: value - 64),
)

lies(
    "cpuid.0xd1-size",
    the_compacted_size_leaves_out_the_last_component=lambda: _complete(lambda call: 1, ebx=lambda value: value - 64),
)

lies(
    "cpuid.0xd-subleaf-kind",
    the_last_component_is_larger_than_the_cpus=lambda: _complete(_last_component, eax=lambda value: value + 64),
    avx_state_is_64_bytes_larger_than_the_cpus=lambda: _first_component(eax=lambda value: value + 64),
    avx_state_lies_64_bytes_further_than_the_cpus=lambda: _first_component(ebx=lambda value: value + 64),
)

lies(
    "cpuid.0xd-xfd-bit",
    the_last_component_has_the_other_xfd_bit=lambda: _complete(_last_component, ecx=lambda value: value ^ 4),
)

lies(
    "cpuid.hidden-without-perm",
    the_subleaf_of_tile_data_is_there_without_permission=lambda: _leaf(
        0xD, TILES, eax=lambda value: 8192, ebx=lambda value: 2816
    ),
    tile_data_stays_hidden_with_permission=lambda: once(
        REQUEST, _leaf(0xD, 0, eax=lambda value: value & ~(1 << TILES))
    ),
    the_subleaf_of_tile_data_lacks_the_xfd_bit=lambda: once(REQUEST, _leaf(0xD, TILES, ecx=lambda value: value & ~4)),
)

lies(
    "cpuid.amx-isa-bits-not-hidden",
    amx_tile_is_hidden_without_permission=lambda: _leaf(7, 0, edx=lambda value: value & ~(1 << 24)),
    permission_changes_the_palette=lambda: once(REQUEST, _leaf(0x1D, 1, ecx=lambda value: value + 1)),
)

lies(
    "cpuid.0x1e",
    the_multiplier_has_one_more_row=lambda: _leaf(0x1E, 0, ebx=lambda value: value + 1),
    a_reserved_register_of_the_multiplier_is_not_0=lambda: _leaf(0x1E, 0, ecx=lambda value: 1),
)

lies(
    "cpuid.0x1e",
    "cpuid.0x1e-alias-consistent",
    every_feature_of_the_multiplier_is_there=lambda: _leaf(0x1E, 1, eax=lambda value: ~value & 0xFFFFFFFF),
)
