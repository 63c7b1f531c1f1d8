# SPDX-License-Identifier: Apache-2.0
"""Lies about KVM_SET: what is accepted, and what the vCPU holds afterwards."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.lies import (
    RUN,
    Condition,
    Proceed,
    accept,
    after,
    answer,
    before,
    drift,
    nth,
    offered,
    on_refusal,
    once,
    refuse,
    top_component,
)
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import (
    FCW,
    MXCSR,
    RESERVED,
    ST7,
    XCOMP_BV,
    XMM3,
    XSTATE_BV,
    area,
    bits_of,
    clear_now,
    flip,
    flip_now,
    leaf,
    offers,
    put,
    set_msr_now,
    spoil,
    top_byte,
    with_bits,
    without_bits,
    xsave_lie,
)
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

SET, SET_CPUID = "KVM_SET_XSAVE", "KVM_SET_CPUID2"
BAD_MXCSR = 0x80


def _names(*bits: int) -> Condition:
    """Met by an area whose XSTATE_BV is one of these."""
    return lambda call: bits_of(call) in bits


lies(
    "xsave.set-unsupported-bit",
    processor_trace_state_is_accepted=lambda: accept(SET, _names(1 << 8)),
    the_compaction_bit_is_accepted_in_xstate_bv=lambda: accept(SET, _names(1 << 63)),
    tile_data_is_accepted_without_permission=lambda: accept(SET, _names(1 << 18)),
    sse_alone_is_refused=lambda: refuse(SET, errno.EINVAL, _names(2)),
    a_component_that_kvm_lacks_is_eperm=lambda: drift(SET, errno.EPERM, _names(1 << 62)),
)


@mutation("xsave.set-cpuid-independent")
def components_are_refused_before_cpuid() -> Interposer:
    seen: set[int] = set()

    def interposer(call: Call, proceed: Proceed) -> int:
        if call.name == SET_CPUID:
            seen.add(call.fd)
        if call.name == SET and call.fd not in seen:
            return -errno.EINVAL
        return proceed()

    return interposer


def _refused_by_table(condition: Condition) -> Interposer:
    """Refuse areas after a table that meets the condition."""
    hit = False

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal hit
        if call.name == SET_CPUID:
            hit = condition(call)
        return -errno.EINVAL if call.name == SET and hit else proceed()

    return interposer


lies(
    "xsave.set-cpuid-independent",
    components_are_refused_after_an_empty_cpuid=lambda: _refused_by_table(
        lambda call: leaf(call, 0xD) == (0, 0, 0, 0)
    ),
)


@mutation("xsave.set-cpuid-independent", "mig.fewer-xfeatures")
def components_are_refused_after_a_masked_cpuid() -> Interposer:
    full = offered()
    return _refused_by_table(lambda call: 0 < offers(call) & full < full)


lies(
    "xsave.set-cpuid-independent",
    what_is_set_before_cpuid_is_dropped=lambda: answer(SET, 0, nth(1)),
    what_is_set_after_an_empty_cpuid_is_dropped=lambda: answer(SET, 0, nth(2)),
    what_a_masked_cpuid_hides_is_dropped=lambda: before(SET, without_bits(1 << top_component()), nth(3)),
)

lies(
    "xsave.set-header-checks",
    the_compaction_bit_is_accepted_in_xcomp_bv=lambda: accept(SET, lambda call: bits_of(call, XCOMP_BV) == 1 << 63),
    x87_in_xcomp_bv_is_accepted=lambda: accept(SET, lambda call: bits_of(call, XCOMP_BV) == 1),
    the_last_reserved_header_byte_is_not_looked_at=lambda: accept(SET, lambda call: area(call)[RESERVED + 47] != 0),
    the_first_reserved_header_byte_is_not_looked_at=lambda: accept(SET, lambda call: area(call)[RESERVED] != 0),
)

lies(
    "xsave.set-header-checks",
    "xsave.set-mxcsr",
    "xsave.set-atomic",
    a_malformed_area_is_efault=lambda: drift(SET, errno.EFAULT),
)

lies(
    "xsave.set-header-checks",
    a_clean_header_is_refused=lambda: refuse(
        SET, errno.EINVAL, lambda call: not any(area(call)[XCOMP_BV : RESERVED + 48])
    ),
)


def _bad_mxcsr(*bits: int) -> Condition:
    """Met by an area with a reserved MXCSR bit and one of these XSTATE_BV (any, if none is given)."""
    return lambda call: area(call)[MXCSR + 3] == BAD_MXCSR and (not bits or bits_of(call) in bits)


lies(
    "xsave.set-mxcsr",
    a_reserved_mxcsr_bit_is_accepted_with_x87=lambda: accept(SET, _bad_mxcsr(1)),
    a_reserved_mxcsr_bit_is_accepted_with_sse=lambda: accept(SET, _bad_mxcsr(2)),
    a_reserved_mxcsr_bit_is_accepted_with_all_of_avx=lambda: accept(SET, _bad_mxcsr(offered() & 7)),
    mxcsr_is_checked_although_nothing_comes_along=lambda: refuse(SET, errno.EINVAL, _bad_mxcsr(0)),
    an_ignored_mxcsr_is_kept=lambda: once(SET, xsave_lie(flip(MXCSR + 3, BAD_MXCSR)), when=_bad_mxcsr(0)),
)


def _malformed(call: Call) -> bool:
    return bool(bits_of(call) >> 63 or any(area(call)[XCOMP_BV : RESERVED + 48]) or _bad_mxcsr()(call))


lies("xsave.set-atomic", a_malformed_area_is_accepted=lambda: accept(SET, _malformed))


def _take_in_part(start: int, stop: int) -> Interposer:
    """Take some bytes of a refused area all the same."""

    def take(call: Call) -> None:
        wanted = bytes(area(call)[start:stop])
        spoil(call.fd, lambda view: view.__setitem__(slice(start, stop), wanted))

    return on_refusal(SET, take)


lies(
    "xsave.set-atomic",
    the_legacy_region_of_a_refused_area_is_taken=lambda: _take_in_part(32, 416),
    a_refused_area_is_taken_without_its_xmm_registers=lambda: _take_in_part(576, 4096),
    a_refusal_clears_the_state=lambda: once(SET, xsave_lie(put(XSTATE_BV, 0)), refused=True),
)

lies(
    "xsave.set-bit-clear-means-init",
    components_whose_bit_is_clear_are_taken_all_the_same=lambda: before(SET, with_bits(offered())),
)


@mutation("xsave.set-bit-clear-means-init")
def components_whose_bit_is_clear_keep_their_state() -> Interposer:
    full = offered()

    def interposer(call: Call, proceed: Proceed) -> int:
        old = ffi.new("uint8_t[]", 65536)
        if call.name == SET and full & ~bits_of(call):
            lib.vmm_ioctl(call.fd, lib.KVM_GET_XSAVE2, old)
        result = proceed()
        if call.name == SET and result >= 0 and full & ~bits_of(call):
            lib.vmm_ioctl(call.fd, lib.KVM_SET_XSAVE, old)
        return result

    return interposer


lies(
    "xsave.set-bit-clear-means-init",
    the_x87_control_word_outlives_its_bit=lambda: once(SET, xsave_lie(put(FCW, 0x27F, 2))),
    a_byte_of_the_highest_component_outlives_its_bit=lambda: once(SET, xsave_lie(flip(top_byte()))),
    a_clear_bit_costs_another_component_a_byte=lambda: xsave_lie(
        lambda call: flip(XMM3)(call) if bits_of(call) & 2 else None
    ),
    mxcsr_is_not_that_of_the_area_without_sse=lambda: xsave_lie(
        lambda call: None if bits_of(call) & 2 else flip(MXCSR, 0x20)(call)
    ),
)


def _before_runs(change: Callable[[int], None]) -> Interposer:
    """Change the vCPU's real state when it is about to run."""
    return before(RUN, lambda call: change(call.fd))


lies(
    "xsave.set-then-run",
    the_guest_runs_with_one_byte_of_xmm3_changed=lambda: _before_runs(flip_now(XMM3 + 15)),
    the_guest_runs_with_one_byte_of_the_highest_component_changed=lambda: _before_runs(flip_now(top_byte())),
    the_guest_runs_with_one_byte_of_st7_changed=lambda: _before_runs(flip_now(ST7 + 5)),
    the_guest_runs_with_another_mxcsr=lambda: _before_runs(flip_now(MXCSR, 0x20)),
    the_guest_runs_with_initial_registers=lambda: _before_runs(clear_now),
)

lies(
    "xsave.legacy-zero-header",
    an_area_of_zeros_is_refused=lambda: refuse(SET, errno.EINVAL, lambda call: not any(area(call))),
    an_area_of_zeros_changes_nothing=lambda: answer(SET, 0, lambda call: not any(area(call))),
    an_area_of_zeros_is_taken_literally=lambda: before(SET, put(XSTATE_BV, 3), lambda call: not any(area(call))),
)

lies(
    "xsave.set-get-identity",
    a_component_that_was_not_set_is_in_xstate_bv=lambda: xsave_lie(with_bits(1 << 62)),
)


@mutation("xsave.set-get-identity")
def the_last_component_that_is_set_stays_away() -> Interposer:
    full = offered()
    return answer(SET, 0, lambda call: bits_of(call) == full)


lies(
    "xsave.set-get-identity",
    mxcsr_is_not_taken=lambda: before(SET, put(MXCSR, 0x1F80, 4)),
    the_x87_control_word_has_another_precision_mask=lambda: xsave_lie(flip(FCW, 0x40)),
)

lies(
    "xsave.set-preserves-supervisor",
    an_area_without_components_resets_u_cet=lambda: after(SET, lambda call: set_msr_now(call.fd, Msr.U_CET, 0)),
    an_area_without_components_resets_pl3_ssp=lambda: after(SET, lambda call: set_msr_now(call.fd, Msr.PL3_SSP, 0)),
    an_area_without_components_changes_pl1_ssp=lambda: after(
        SET, lambda call: set_msr_now(call.fd, Msr.PL1_SSP, 0x1000)
    ),
    the_guest_runs_without_user_state_behind_an_area_without_components=lambda: once(
        SET, before(RUN, lambda call: set_msr_now(call.fd, Msr.PL3_SSP, 0), nth(1))
    ),
)


def _software(call: Call) -> bool:
    """Met by an area whose software bytes are no kernel's."""
    return bits_of(call, 464) == 0x5A5A5A5A5A5A5A5A


lies(
    "xsave.set-software-bytes",
    unknown_software_bytes_are_refused=lambda: refuse(SET, errno.EINVAL, _software),
    unknown_software_bytes_are_kept=lambda: once(SET, xsave_lie(put(464, 0x5A)), when=_software),
    the_reserved_bytes_before_them_are_kept=lambda: once(SET, xsave_lie(flip(416)), when=_software),
    unknown_software_bytes_hide_a_component=lambda: before(SET, without_bits(2), _software),
)
