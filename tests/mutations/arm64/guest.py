# SPDX-License-Identifier: Apache-2.0
"""Lies about a guest's vector state: registers lost between two runs, at an exit, on another CPU or by the guest."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from tests.mutations.arm64.lies import (
    GET,
    before_entry,
    change_now,
    executed,
    flip,
    forget,
    get_now,
    has_sve,
    number,
    of,
    reading,
    set_now,
    spoiled_exit,
    values,
    writing,
)
from tests.mutations.lies import (
    RUN,
    Proceed,
    Shared,
    after,
    after_run,
    answer,
    assign,
    called,
    nth,
    on_refusal,
    once,
    refuse,
)
from tests.mutations.registry import lies, mutation
from vmm._kvm import ffi, lib
from vmm.arm64.registers import FFR, FPCR, FPSR, PC, SYSTEM, Register, p, v, x, z
from vmm.arm64.vector import name
from vmm.kvm.ioctl import Call, Interposer

__all__ = ["NAMED"]


_RDVL, _MOVI_V0 = 0x04BF5020, 0x4F00E6A0
_NEVER = 0x7FFF_FFFF
Change = Callable[[int], object]


def _first_byte(register: Register, bits: int = 1) -> Change:
    """Change the first byte of a register of the vCPU."""
    return change_now(register, bits)


def _above_128_bits(register: Register) -> Change:
    """Lose all of a register above its first 128 bits."""

    def change(fd: int) -> None:
        set_now(fd, register, int.from_bytes(get_now(fd, register)[:16], "little"))

    return change


def _clear(*registers: Register) -> Change:
    def change(fd: int) -> None:
        for register in registers:
            set_now(fd, register, 0)

    return change


def _before(entry: str, change: Change, payload: str = "sve") -> Interposer:
    """The vCPU's registers are other ones when it runs from the entry point."""
    return before_entry(entry, lambda guest, fd: change(fd), payload=payload)


lies(
    "guest.runs",
    a_guest_never_leaves=lambda: answer(RUN, lib.VMM_RUN_DEADLINE),
    a_guest_cannot_be_run=lambda: refuse(RUN, errno.EFAULT),
    a_guest_leaves_before_its_first_instruction=lambda: spoiled_exit(
        assign("run.exit_reason", lib.KVM_EXIT_FAIL_ENTRY)
    ),
)

lies(
    "guest.sve-undef-without",
    rdvl_works_without_sve=lambda: executed(_RDVL, values(15, lambda old: 0)),
    sve_traps_as_such_without_it=lambda: executed(_RDVL, lambda guest: guest.set("esr", 0x19 << 26)),
    an_undefined_instruction_is_skipped=lambda: executed(_RDVL, lambda guest: guest.set("elr", guest.get("elr") + 4)),
    advsimd_is_undefined_without_sve=lambda: executed(_MOVI_V0, values(15, lambda old: 1)),
)

lies(
    "guest.sve-own-trap",
    the_guests_own_trap_does_not_come=lambda: executed(_RDVL, values(15, lambda old: 0)),
    the_guests_own_trap_is_another_exception=lambda: executed(_RDVL, lambda guest: guest.set("esr", 0)),
    the_guests_own_trap_leaves_the_guest=lambda: after(RUN, assign("run.exit_reason", lib.KVM_EXIT_DEBUG), nth(1)),
)

lies(
    "guest.load-user-state",
    the_guest_finds_another_z0=lambda: writing(flip(0), z(0)),
    the_guest_finds_z31_without_its_upper_part=lambda: _before("verify", _above_128_bits(z(31))),
)

lies(
    "guest.load-user-state",
    "guest.ffr-preserved",
    "mig.sve-idempotent",
    "mig.sve-guest-goes-on",
    ffr_is_not_restored=lambda: forget(FFR if has_sve() else FPSR),
)

lies(
    "guest.load-user-state",
    the_guest_finds_no_predicates=lambda: _before("verify", _clear(*(p(n) for n in range(16)))),
    the_guest_finds_the_fpsr_of_another=lambda: _before("verify", _first_byte(FPSR)),
    the_second_state_does_not_reach_the_guest=lambda: once(RUN, forget(*(z(n) for n in range(32)))),
)

lies(
    "guest.save-guest-state",
    z31_is_saved_without_its_last_byte=lambda: reading(flip(15), z(31)),
    ffr_is_not_saved=lambda: reading(number(0), FFR),
    fpcr_is_not_saved=lambda: reading(number(_NEVER), FPCR),
    reading_z7_changes_it=lambda: after(GET, lambda call: _first_byte(z(7))(call.fd), of(z(7))),
)

lies(
    "guest.kept-over-exits",
    # With vectors of 128 bits there is nothing to lose.
    an_exit_loses_z9_above_128_bits=lambda: after_run(_above_128_bits(z(9))),
    an_exit_changes_one_bit_of_p3=lambda: after_run(_first_byte(p(3), 4)),
    an_exit_loses_ffr=lambda: after_run(_clear(FFR)),
    an_exit_rounds_differently=lambda: after_run(change_now(FPCR, 1 << 22)),
)

lies(
    "guest.untouched-fp",
    a_guest_without_vectors_changes_z7=lambda: once(RUN, reading(flip(7), z(7))),
    a_guest_without_vectors_loses_p0=lambda: once(RUN, reading(number(0), p(0))),
)

lies(
    "guest.ffr-preserved",
    ffr_is_saved_as_0=lambda: reading(number(0), FFR),
    ffr_is_saved_with_a_gap=lambda: reading(lambda view: number(int.from_bytes(view, "little") << 1)(view), FFR),
    a_byte_of_a_first_fault_load_is_another=lambda: reading(flip(0), z(0)),
    ffr_is_lost_when_the_guest_looks=lambda: _before("verify", _clear(FFR)),
)

lies(
    "guest.zcr-shrink-full-width",
    a_shorter_length_leaves_rubbish_in_z3=lambda: reading(flip(16), z(3)),
    a_shorter_length_changes_the_low_part_of_z3=lambda: reading(flip(0), z(3)),
    a_shorter_length_leaves_rubbish_in_p3=lambda: reading(flip(2), p(3)),
    the_guest_finds_something_else_at_the_full_length=lambda: _before("verify", change_now(z(11), 1 << 130)),
)

lies("guest.mmio-vector-nisv", a_vector_store_is_an_ordinary_exit=lambda: answer(RUN, 0))


def _skip_instruction(call: Call) -> None:
    set_now(call.fd, PC, int.from_bytes(get_now(call.fd, PC), "little") + 4)


lies(
    "guest.mmio-vector-nisv",
    a_refused_vector_store_is_skipped=lambda: on_refusal(RUN, _skip_instruction),
    the_exit_without_a_syndrome_has_another_reason=lambda: after(
        RUN, assign("run.exit_reason", lib.KVM_EXIT_FAIL_ENTRY)
    ),
    the_exit_without_a_syndrome_has_no_address=lambda: after(RUN, assign("run.arm_nisv.fault_ipa", 0)),
)


def _after_run_number(turn: int, change: Change) -> Interposer:
    """After so many runs the vCPU's registers are spoiled."""
    return after(RUN, lambda call: change(call.fd), nth(turn))


@mutation("guest.two-vms-same-cpu")
def a_guest_gets_z9_of_its_predecessor() -> Interposer:
    last: list[int] = []

    def leak(call: Call) -> None:
        last.append(call.fd)
        if len(last) == 42:  # the second of four takes over from the first
            set_now(call.fd, z(9), int.from_bytes(get_now(last[-2], z(9))[:16], "little"))

    return after(RUN, leak)


lies(
    "guest.two-vms-same-cpu",
    a_guest_without_sve_loses_v31=lambda: _after_run_number(44, change_now(v(31), 1 << 127)),
)

lies(
    "guest.two-vms-same-cpu",
    "guest.other-thread",
    "guest.cross-cpu",
    a_turn_costs_one_bit_of_ffr=lambda: _after_run_number(9, change_now(FFR)),
    a_turn_costs_one_byte_of_z30=lambda: _after_run_number(13, change_now(z(30), 0xFF << 8)),
)

lies("guest.cross-cpu", a_register_is_read_from_the_wrong_cpu=lambda: reading(flip(3), z(1)))

lies(
    "guest.other-thread",
    another_thread_runs_on_from_another_place=lambda: _after_run_number(5, change_now(x(2), 0x10)),
)


_FREE = 0x8000  # below the payload: nobody uses it
_MOV_V7 = 0x4EA71CE7  # MOV V7.16B, V7.16B: an AdvSIMD write, which zeroes the rest of Z7
_SETFFR = 0x252C9000
_LDRB, _STRB, _EOR_BIT_5 = 0x39400085, 0x39000085, 0x521B00A5  # LDRB W5, [X4]; STRB W5, [X4]; EOR W5, W5, #0x20


def _branch(source: int, target: int, link: bool = False) -> int:
    return 0x14000000 | link << 31 | (target - source) >> 2 & 0x3FFFFFF


def _load_address(address: int) -> list[int]:
    """MOVZ X4 and MOVK X4."""
    return [0xD2800004 | (address & 0xFFFF) << 5, 0xF2A00004 | (address >> 16) << 5]


def broken_payload(before: Callable[[Shared], list[int]], behind: Callable[[Shared], list[int]]) -> Interposer:
    """The payload ``sve`` as if it had been built with other instructions around its loading of the registers."""

    def patch(guest: Shared, fd: int) -> None:
        entry = guest.payload.symbol("load")
        offset = (int(_words(guest, entry)[0]) & 0x3FFFFFF ^ 0x2000000) - 0x2000000
        loader = entry + 4 * offset  # the target of the BL that is there
        words = before(guest)
        words.append(_branch(_FREE + 4 * len(words), loader, link=True))
        words += behind(guest)
        words.append(_branch(_FREE + 4 * len(words), entry + 4))
        _write(guest, _FREE, words)
        _write(guest, entry, [_branch(entry, _FREE)])

    return before_entry("load", patch)


def _words(guest: Shared, address: int) -> Any:
    """The guest's code at an address, an instruction each."""
    return ffi.cast("uint32_t *", guest.at(address))


def _write(guest: Shared, address: int, words: list[int]) -> None:
    for index, word in enumerate(words):
        _words(guest, address)[index] = word


def _nothing(guest: Shared) -> list[int]:
    return []


lies(
    "guest.save-guest-state",
    the_payload_loses_the_top_of_z7=lambda: broken_payload(_nothing, lambda guest: [_MOV_V7]),
    the_payload_loses_ffr=lambda: broken_payload(_nothing, lambda guest: [_SETFFR]),
)


@mutation("guest.save-guest-state")
def the_payload_loses_bit_5_of_p3() -> Interposer:
    def toggle(guest: Shared) -> list[int]:
        place = guest.payload.symbol("image") + 8192 + 3 * 32
        return [*_load_address(place), _LDRB, _EOR_BIT_5, _STRB]

    return broken_payload(toggle, toggle)


# What the evidence of these three has to name.
NAMED = {
    "the_payload_loses_the_top_of_z7": name(7 * 256 + 16),
    "the_payload_loses_ffr": "FFR byte",
    "the_payload_loses_bit_5_of_p3": name(8192 + 3 * 32),
}


lies(
    "guest.psci-cpu-on-resets-sve",
    cpu_on_leaves_the_vcpu_stopped=lambda: after("KVM_GET_MP_STATE", assign("mp_state", 5)),
    cpu_on_leaves_z9=lambda: once(RUN, reading(number(0xA5), z(9))),
    cpu_on_leaves_ffr=lambda: once(RUN, reading(number(1), FFR)),
    cpu_on_leaves_zcr_el1=lambda: once(RUN, reading(number(1), SYSTEM["ZCR_EL1"])),
    cpu_on_loses_the_context=lambda: once(RUN, reading(number(0), x(0))),
    cpu_on_begins_elsewhere=lambda: once(RUN, reading(flip(0, 4), PC)),
)


@mutation("guest.psci-cpu-on-resets-sve")
def the_switched_on_vcpu_finds_another_x0() -> Interposer:
    def lose(call: Call, proceed: Proceed) -> int:
        if called(call) == RUN:
            set_now(call.fd, x(0), 7)
        return proceed()

    return once(RUN, lose)
