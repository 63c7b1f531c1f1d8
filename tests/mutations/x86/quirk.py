# SPDX-License-Identifier: Apache-2.0
"""Lies about KVM_CAP_DISABLE_QUIRKS2 and what disabling a quirk does."""

from __future__ import annotations

import errno

from tests.mutations.lies import Condition, Proceed, accept, after, drift, nth, once, opposite, refuse, succeed_with
from tests.mutations.registry import lies, mutation
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.memory_types import Quirk

ENABLE, CHECK, LAPIC = "KVM_ENABLE_CAP", "KVM_CHECK_EXTENSION", "KVM_GET_LAPIC"
_LINT0 = Quirk.LINT0_REENABLED
_EXTERNAL, _MASKED = 0x700, 0x10000


def _quirks(*values: int, capability: int | None = None) -> Condition:
    """Met when one of these sets of quirks is disabled, by either capability or by one."""

    def condition(call: Call) -> bool:
        asked = capability is None or call.argument.cap == capability
        return bool(asked and call.argument.args[0] in values)

    return condition


def _mask(call: Call) -> bool:
    return bool(call.argument == lib.KVM_CAP_DISABLE_QUIRKS2)


lies(
    "quirk.caps",
    an_unknown_quirk_is_accepted=lambda: accept(ENABLE, _quirks(1 << 40, capability=lib.KVM_CAP_DISABLE_QUIRKS2)),
    an_unknown_quirk_beside_a_known_one_is_accepted=lambda: accept(ENABLE, _quirks(1 << 63 | _LINT0)),
    an_unknown_quirk_is_eperm=lambda: drift(ENABLE, errno.EPERM, _quirks(1 << 40)),
    a_listed_quirk_cannot_be_disabled=lambda: refuse(
        ENABLE, errno.EINVAL, _quirks(8, capability=lib.KVM_CAP_DISABLE_QUIRKS2)
    ),
    the_old_capability_refuses_what_it_does_not_know=lambda: refuse(
        ENABLE, errno.EINVAL, _quirks(1 << 40, capability=lib.KVM_CAP_DISABLE_QUIRKS)
    ),
    flags_of_the_capability_are_ignored=lambda: accept(ENABLE, lambda call: bool(call.argument.flags)),
)


@mutation("quirk.caps")
def the_vm_lists_other_quirks() -> Interposer:
    second = nth(2)
    return succeed_with(CHECK, lambda call, mask: mask ^ 2, lambda call: _mask(call) and second(call))


lies("quirk.caps", the_oldest_quirk_is_missing=lambda: succeed_with(CHECK, lambda call, mask: mask & ~_LINT0, _mask))

lies(
    "quirk.ignore-guest-pat",
    the_quirk_of_pat_is_where_it_must_not_be_or_is_missing=lambda: succeed_with(
        CHECK, lambda call, mask: mask ^ Quirk.IGNORE_GUEST_PAT, _mask
    ),
    disabling_the_quirk_of_pat_has_the_other_result=lambda: opposite(
        ENABLE, errno.EINVAL, _quirks(Quirk.IGNORE_GUEST_PAT)
    ),
)


def _put_lint0(call: Call, value: int) -> None:
    ffi.buffer(call.argument)[0x350:0x354] = value.to_bytes(4, "little")


def _lint0_after(when: Condition, value: int, *, refused: bool = False) -> Interposer:
    """The next KVM_GET_LAPIC after a KVM_ENABLE_CAP has another LVT LINT0."""
    pending = False

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal pending
        result = proceed()
        if call.name == ENABLE and when(call) and (result < 0) == refused:
            pending = True
        elif call.name == LAPIC and pending:
            pending = False
            _put_lint0(call, value)
        return result

    return interposer


lies(
    "quirk.one-way",
    disabling_the_quirk_has_no_effect=lambda: _lint0_after(_quirks(_LINT0), _EXTERNAL),
    an_empty_set_enables_the_quirks_again=lambda: _lint0_after(_quirks(0), _EXTERNAL),
    another_quirk_enables_the_first_again=lambda: after(LAPIC, lambda call: _put_lint0(call, _EXTERNAL), nth(4)),
    any_quirk_disables_this_one=lambda: _lint0_after(_quirks(Quirk.OUT_7E_INC_RIP), _MASKED),
    a_refused_set_is_half_applied=lambda: _lint0_after(_quirks(_LINT0 | 1 << 63), _MASKED, refused=True),
    a_vms_quirks_are_everybodys=lambda: once(LAPIC, after(LAPIC, lambda call: _put_lint0(call, _MASKED))),
    the_quirk_is_disabled_from_the_start=lambda: after(LAPIC, lambda call: _put_lint0(call, _MASKED), nth(1)),
)
