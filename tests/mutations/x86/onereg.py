# SPDX-License-Identifier: Apache-2.0
"""Lies about KVM_GET_ONE_REG and KVM_SET_ONE_REG."""

from __future__ import annotations

import errno

from tests.mutations.lies import Condition, Proceed, accept, after, answer, drift, once, refuse, succeed_with
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import change_msr, set_msr_now
from tests.mutations.x86.lies import one_reg_number
from vmm._kvm import lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr import UNKNOWN_MSR, msr_id
from vmm.x86.msr_names import Msr

GET, SET, CHECK = "KVM_GET_ONE_REG", "KVM_SET_ONE_REG", "KVM_CHECK_EXTENSION"


def _of(index: int) -> Condition:
    return lambda call: bool(call.argument.id == msr_id(index))


def _flip(call: Call) -> None:
    one_reg_number(call)[0] ^= 1 << 8


lies(
    "onereg.cap",
    the_capability_says_the_opposite=lambda: succeed_with(
        CHECK, lambda call, has: not has, lambda call: call.argument == lib.KVM_CAP_ONE_REG
    ),
)


@mutation("onereg.cap")
def ia32_pat_is_another_or_the_missing_call_succeeds() -> Interposer:
    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if call.name == GET:
            _flip(call)
            return 0
        return result

    return interposer


lies("onereg.cap", the_call_is_enoent=lambda: refuse(GET, errno.ENOENT))


# (name of the id's fault) -> bits of the id that tell it from the right one
_SIZE_U32 = lib.KVM_REG_SIZE_U32


def _architecture(call: Call) -> bool:
    return bool(call.argument.id & lib.KVM_REG_ARCH_MASK != lib.KVM_REG_X86)


def _size(call: Call) -> bool:
    return bool(call.argument.id & lib.KVM_REG_SIZE_MASK == _SIZE_U32)


def _kind(number: int) -> Condition:
    return lambda call: bool(call.argument.id >> 32 & 0xFF == number)


lies(
    "onereg.id-validation",
    another_architectures_register_can_be_read=lambda: accept(GET, _architecture),
    a_register_can_be_read_in_half=lambda: accept(GET, _size),
    a_register_can_be_written_in_half=lambda: accept(SET, _size),
    a_reserved_bit_is_ignored=lambda: accept(GET, lambda call: bool(call.argument.id >> 40 & 1)),
    type_0_can_be_read=lambda: accept(GET, _kind(0)),
    type_255_can_be_written=lambda: accept(SET, _kind(255)),
    an_unknown_register_of_kvm_can_be_written=lambda: accept(SET, _kind(lib.KVM_X86_REG_TYPE_KVM)),
    an_unknown_msr_reads_as_0=lambda: accept(GET, _of(UNKNOWN_MSR)),
    the_right_register_is_refused=lambda: refuse(GET, errno.EINVAL, _of(Msr.PAT)),
    a_bad_address_of_a_register_is_ignored=lambda: accept(SET, lambda call: bool(call.argument.addr == 0x10)),
    a_bad_address_of_a_register_is_einval=lambda: drift(
        GET, errno.EINVAL, lambda call: bool(call.argument.addr == 0x10)
    ),
)

lies(
    "onereg.equals-msrs",
    one_register_of_the_list_differs_in_a_bit=lambda: after(GET, _flip, _of(Msr.LSTAR)),
    one_register_of_the_list_cannot_be_read=lambda: refuse(GET, errno.EINVAL, _of(Msr.KERNEL_GS_BASE)),
    a_register_that_is_set_stays_as_it_was=lambda: answer(SET, 0),
    what_kvm_set_msrs_writes_is_not_read=lambda: once("KVM_SET_MSRS", after(GET, _flip, _of(Msr.PAT))),
)


@mutation("onereg.equals-msrs")
def what_kvm_set_one_reg_writes_is_half_of_the_register() -> Interposer:
    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if call.name == SET and result >= 0:
            set_msr_now(call.fd, Msr.PAT, 0x00070406 << 32 | int(one_reg_number(call)[0]) & 0xFFFFFFFF)
        return result

    return interposer


lies(
    "onereg.equals-msrs",
    kvm_get_msrs_reads_a_stale_value=lambda: once(
        SET, after("KVM_GET_MSRS", change_msr(Msr.PAT, lambda value: 0x0007040600070406))
    ),
)
