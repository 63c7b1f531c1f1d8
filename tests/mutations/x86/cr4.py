# SPDX-License-Identifier: Apache-2.0
"""Lies about CR4: bits that a guest gets without their features, or does not get with them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from tests.mutations.lies import Condition, Proceed, accept, after, drift, kvm_table, on_refusal, refuse
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import leaf
from tests.mutations.x86.lies import UD, in_lists
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer

GET, SET = "KVM_GET_SREGS", "KVM_SET_SREGS"
_UMIP, _VMXE, _FSGSBASE, _PCIDE, _OSXSAVE, _SMEP, _SMAP, _PKE, _CET = 11, 13, 16, 17, 18, 20, 21, 22, 23


class _Table:
    """Whether the vCPU that was configured last has a feature: so many bits of a register of a leaf."""

    def __init__(self, function: int, register: int, bit: int) -> None:
        self._where = (function, register, bit)
        self.has = False

    def watch(self, call: Call) -> None:
        if call.name == "KVM_SET_CPUID2":
            function, register, bit = self._where
            self.has = bool(leaf(call, function)[register] >> bit & 1)


def _without(lie: Interposer, function: int, register: int, bit: int, *, has: bool = False) -> Interposer:
    """A lie to guests whose CPUID lacks a feature, or ``has`` it."""
    table = _Table(function, register, bit)

    def interposer(call: Call, proceed: Proceed) -> int:
        table.watch(call)
        # The lie has to watch the other calls to know where memory lies.
        return proceed() if table.has != has and call.name in ("KVM_RUN", SET) else lie(call, proceed)

    return interposer


# Bit of CR4: where its feature is, leaf, register and bit.
_FEATURES = {
    _UMIP: (7, 2, 2), _FSGSBASE: (7, 1, 0), _PCIDE: (1, 2, 17), _OSXSAVE: (1, 2, 26), _PKE: (7, 2, 3),
}  # fmt: skip


def _offered(lie: Callable[[int], Interposer], which: int) -> Interposer:
    """A lie about the first (0) or last (-1) bit that KVM offers guests here, to guests that have its feature."""
    table = kvm_table()
    bits = [
        bit for bit, (at, register, number) in _FEATURES.items() if table.get(at).registers[register] >> number & 1
    ]
    return _without(lie(bits[which]), *_FEATURES[bits[which]], has=True)


def _with(bit: int) -> Condition:
    return lambda call: bool(call.argument.cr4 >> bit & 1)


def _clear(call: Call) -> None:
    """Clear CR4.OSXMMEXCPT behind the clause's back."""
    sregs = ffi.new("struct kvm_sregs *")
    lib.vmm_ioctl(call.fd, lib.KVM_GET_SREGS, sregs)
    sregs.cr4 &= ~(1 << 10)
    lib.vmm_ioctl(call.fd, lib.KVM_SET_SREGS, sregs)


def _lost(bits: int) -> Interposer:
    return after(GET, lambda call: setattr(call.argument, "cr4", call.argument.cr4 & ~bits))


lies(
    "cr4.sregs-follow-cpuid",
    umip_is_taken_without_its_feature=lambda: _without(accept(SET, _with(_UMIP)), 7, 2, 2),
    vmxe_is_taken_without_its_feature=lambda: _without(accept(SET, _with(_VMXE)), 1, 2, 5),
    fsgsbase_is_taken_without_its_feature=lambda: _without(accept(SET, _with(_FSGSBASE)), 7, 1, 0),
    pcide_is_taken_without_its_feature=lambda: _without(accept(SET, _with(_PCIDE)), 1, 2, 17),
    osxsave_is_taken_without_its_feature=lambda: _without(accept(SET, _with(_OSXSAVE)), 1, 2, 26),
    smep_is_taken_without_its_feature=lambda: _without(accept(SET, _with(_SMEP)), 7, 1, 7),
    smap_is_taken_without_its_feature=lambda: _without(accept(SET, _with(_SMAP)), 7, 1, 20),
    pke_is_taken_without_its_feature=lambda: _without(accept(SET, _with(_PKE)), 7, 2, 3),
    cet_is_taken_without_its_feature=lambda: _without(accept(SET, _with(_CET)), 7, 2, 7),
    the_first_bit_is_refused_with_its_feature=lambda: _offered(lambda bit: refuse(SET, errno.EINVAL, _with(bit)), 0),
    the_last_bit_is_refused_with_its_feature=lambda: _offered(lambda bit: refuse(SET, errno.EINVAL, _with(bit)), -1),
    a_bit_without_its_feature_is_eperm=lambda: _without(drift(SET, errno.EPERM, _with(_UMIP)), 7, 2, 2),
    the_last_bit_does_not_last=lambda: _offered(lambda bit: _lost(1 << bit), -1),
    a_refusal_changes_another_bit=lambda: on_refusal(SET, _clear),
    bits_of_every_guest_are_refused=lambda: refuse(SET, errno.EINVAL, _with(8)),
    a_bit_of_every_guest_does_not_last=lambda: _lost(1 << 3),
    a_reserved_bit_is_eperm=lambda: drift(SET, errno.EPERM, _with(63)),
)


def _moved(bit: int, change: Callable[[Any], object]) -> Interposer:
    return in_lists("cr4_list", lambda operand, answer: change(answer) if operand >> bit & 1 else None)


def _taken(bit: int) -> Callable[[Any], object]:
    def change(answer: Any) -> None:
        answer[bit // 32] |= 1 << bit % 32
        answer[2] = 0

    return change


def _faults(bit: int) -> Callable[[Any], object]:
    def change(answer: Any) -> None:
        answer[bit // 32] &= ~(1 << bit % 32)
        answer[2], answer[3] = 1, 13

    return change


def _lost_bit(bit: int) -> Callable[[Any], object]:
    def change(answer: Any) -> None:
        answer[bit // 32] &= ~(1 << bit % 32)

    return change


def _stays(bit: int) -> Callable[[Any], object]:
    def change(answer: Any) -> None:
        answer[bit // 32] |= 1 << bit % 32

    return change


def _is_ud(answer: Any) -> None:
    answer[3] = UD


lies(
    "cr4.guest-follows-cpuid",
    the_guest_sets_umip_without_its_feature=lambda: _without(_moved(_UMIP, _taken(_UMIP)), 7, 2, 2),
    the_guest_sets_fsgsbase_without_its_feature=lambda: _without(_moved(_FSGSBASE, _taken(_FSGSBASE)), 7, 1, 0),
    the_guest_sets_smep_without_its_feature=lambda: _without(_moved(_SMEP, _taken(_SMEP)), 7, 1, 7),
    the_guest_sets_cet_without_its_feature=lambda: _without(_moved(_CET, _taken(_CET)), 7, 2, 7),
    the_first_bit_faults_with_its_feature=lambda: _offered(lambda bit: _moved(bit, _faults(bit)), 0),
    the_last_bit_faults_with_its_feature=lambda: _offered(lambda bit: _moved(bit, _faults(bit)), -1),
    the_last_bit_is_lost_with_its_feature=lambda: _offered(lambda bit: _moved(bit, _lost_bit(bit)), -1),
    a_fault_is_another=lambda: _without(_moved(_UMIP, _is_ud), 7, 2, 2),
    a_fault_leaves_the_bit=lambda: _without(_moved(_SMAP, _stays(_SMAP)), 7, 1, 20),
)

lies(
    "cr4.upper-half",
    bit_32_is_dropped=lambda: _moved(32, lambda answer: answer.__setitem__(2, 0)),
    bit_63_is_taken=lambda: _moved(63, _taken(63)),
    a_fault_is_another=lambda: _moved(40, _is_ud),
    a_fault_leaves_the_bit=lambda: _moved(50, _stays(50)),
)
