# SPDX-License-Identifier: Apache-2.0
"""Lies about the guest permission: who may grant it, when it freezes, and what the calls answer."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from tests.mutations.lies import Condition, Proceed, accept, after, answer, drift, honest, nth, once, refuse, toggle
from tests.mutations.registry import mutation
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86 import permission

SUPPORTED, PERMITTED = "ARCH_GET_XCOMP_SUPP", "ARCH_GET_XCOMP_PERM"
GUEST, REQUEST, REQUEST_HOST = "ARCH_GET_XCOMP_GUEST_PERM", "ARCH_REQ_XCOMP_GUEST_PERM", "ARCH_REQ_XCOMP_PERM"
TILE_CONFIGURATION, TILES, LOCK = 1 << 17, 1 << 18, 1 << 63


def _set(bits: int) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        call.argument[0] |= bits

    return change


def _clear(bits: int) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        call.argument[0] &= ~bits

    return change


def component(*numbers: int) -> Condition:
    """Met by a request for one of these components."""
    return lambda call: call.argument in numbers


@mutation("perm.supp-is-host-xcr0")
def a_component_that_the_host_has_not_enabled_is_supported() -> Interposer:
    enabled = lib.vmm_xgetbv(0)
    return after(SUPPORTED, _set(~enabled & (enabled + 1)))


@mutation("perm.supp-is-host-xcr0")
def sse_is_not_supported() -> Interposer:
    return after(SUPPORTED, _clear(2))


@mutation("perm.supp-is-host-xcr0")
def avx_is_not_supported() -> Interposer:
    return after(SUPPORTED, _clear(lib.vmm_xgetbv(0) & 4 or 1))


@mutation("perm.supp-is-host-xcr0")
def what_is_supported_is_not_told() -> Interposer:
    return refuse(SUPPORTED, errno.EINVAL)


@mutation("perm.guest-default")
def tile_data_is_permitted_from_the_start() -> Interposer:
    return after(GUEST, _set(TILES))


@mutation("perm.guest-default")
def tile_configuration_is_not_permitted() -> Interposer:
    return after(GUEST, _clear(TILE_CONFIGURATION))


@mutation("perm.guest-default")
def guest_and_host_differ_in_pkru() -> Interposer:
    return after(GUEST, toggle("", 1 << 9))


@mutation("perm.hides-supervisor-and-lock")
def cet_components_are_shown() -> Interposer:
    return after(GUEST, _set(0x1800))


@mutation("perm.hides-supervisor-and-lock")
def the_lock_is_shown_once_a_vcpu_exists() -> Interposer:
    return once("KVM_CREATE_VCPU", after(GUEST, _set(LOCK)))


@mutation("perm.hides-supervisor-and-lock")
def a_vcpu_takes_a_component_away() -> Interposer:
    return once("KVM_CREATE_VCPU", after(GUEST, toggle("", 4)))


@mutation("perm.req-tiledata-ok", "perm.lock-is-vcpu-not-vm", "perm.process-wide")
def the_request_grants_nothing() -> Interposer:
    return answer(REQUEST, 0)


@mutation("perm.req-tiledata-ok")
def the_request_grants_another_component_as_well() -> Interposer:
    return once(REQUEST, after(GUEST, toggle("", 1 << 16)))


@mutation("perm.req-tiledata-ok")
def the_request_permits_the_host_as_well() -> Interposer:
    return once(REQUEST, after(PERMITTED, _set(TILES)))


@mutation("perm.req-tiledata-ok")
def the_request_is_refused() -> Interposer:
    return refuse(REQUEST, errno.EPERM)


@mutation("perm.req-idempotent")
def a_second_request_is_refused() -> Interposer:
    return once(REQUEST, refuse(REQUEST, errno.EINVAL))


@mutation("perm.req-idempotent")
def a_granted_request_is_refused_after_a_vcpu() -> Interposer:
    return once("KVM_CREATE_VCPU", refuse(REQUEST, errno.EBUSY))


@mutation(
    "perm.req-after-first-vcpu-ebusy",
    "perm.lock-survives-close",
    "perm.lock-inherited-by-fork",
    "xsave.size.frozen-after-vcpu",
)
def a_late_request_is_granted() -> Interposer:
    return accept(REQUEST)


@mutation(
    "perm.req-after-first-vcpu-ebusy",
    "perm.lock-survives-close",
    "perm.lock-inherited-by-fork",
    "xsave.size.frozen-after-vcpu",
)
def a_late_request_is_eperm() -> Interposer:
    return drift(REQUEST, errno.EPERM)


@mutation("perm.req-after-first-vcpu-ebusy", "perm.req-unsupported-cpu")
def a_refused_request_grants_all_the_same() -> Interposer:
    return once(REQUEST, after(GUEST, toggle("", TILES)), refused=True)


@mutation("perm.lock-is-vcpu-not-vm")
def a_vm_without_a_vcpu_freezes_the_permission() -> Interposer:
    return once("KVM_CREATE_VM", refuse(REQUEST, errno.EBUSY))


@mutation("perm.lock-survives-close")
def the_lock_is_gone_with_the_vcpu() -> Interposer:
    def lie(call: Call, proceed: Proceed) -> int:
        open_vcpus = [n for n in os.listdir("/proc/self/fd") if "kvm-vcpu" in _target(n)]
        return 0 if call.name == REQUEST and not open_vcpus else proceed()

    return lie


def _target(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""


@mutation("perm.lock-inherited-by-fork")
def a_fork_starts_without_the_lock() -> Interposer:
    parent = os.getpid()
    return answer(REQUEST, 0, lambda call: os.getpid() != parent)


def _exec_answers(guest_permitted: int, request_errno: int) -> Interposer:
    """Let what the clause executes report this; it runs without the clause's interposer."""

    def run(command: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        answer = {"guest_permitted": guest_permitted, "request_errno": request_errno}
        return subprocess.CompletedProcess(command, 0, json.dumps(answer), "")

    subprocess.run = run  # type: ignore[assignment]
    return honest


@mutation("perm.cleared-by-exec")
def exec_keeps_the_permission() -> Interposer:
    return _exec_answers(TILES | TILE_CONFIGURATION | 7, 0)


@mutation("perm.cleared-by-exec")
def exec_keeps_the_lock() -> Interposer:
    return _exec_answers(TILE_CONFIGURATION | 7, errno.EBUSY)


@mutation("perm.process-wide")
def a_request_holds_for_its_own_thread() -> Interposer:
    main = threading.main_thread()
    return answer(REQUEST, 0, lambda call: threading.current_thread() is not main)


@mutation("perm.process-wide")
def one_of_the_racing_requests_is_refused() -> Interposer:
    return refuse(REQUEST, errno.EBUSY, nth(5))


@mutation("perm.process-wide")
def what_a_thread_requested_does_not_serve_a_vcpu() -> Interposer:
    return refuse("KVM_SET_CPUID2", errno.EPERM)


@mutation("perm.host-and-guest-independent")
def the_guests_lock_freezes_the_host_too() -> Interposer:
    return once("KVM_CREATE_VCPU", refuse(REQUEST_HOST, errno.EBUSY))


@mutation("perm.host-and-guest-independent")
def the_host_request_grants_nothing() -> Interposer:
    return answer(REQUEST_HOST, 0)


@mutation("perm.host-and-guest-independent")
def the_host_request_permits_guests_as_well() -> Interposer:
    return once(REQUEST_HOST, after(GUEST, _set(TILES)))


@mutation("perm.req-errors")
def component_64_is_eopnotsupp() -> Interposer:
    return drift(REQUEST, errno.EOPNOTSUPP, component(64))


@mutation("perm.req-errors")
def component_1000_is_taken_modulo_64() -> Interposer:
    return accept(REQUEST, component(1000))


@mutation("perm.req-errors")
def a_static_component_is_granted() -> Interposer:
    return accept(REQUEST, component(9))


@mutation("perm.req-errors")
def the_tile_configuration_is_granted_by_its_own_number() -> Interposer:
    return accept(REQUEST, component(17))


@mutation("perm.req-errors")
def a_static_component_is_einval() -> Interposer:
    return drift(REQUEST, errno.EINVAL, component(0))


@mutation("perm.req-errors")
def component_19_is_granted() -> Interposer:
    return accept(REQUEST, component(19))


@mutation("perm.req-errors")
def an_unknown_option_is_accepted() -> Interposer:
    return accept("arch_prctl 0x7fffffff")


@mutation("perm.req-errors")
def a_bad_pointer_is_einval() -> Interposer:
    return drift(PERMITTED, errno.EINVAL)


@mutation("perm.req-errors")
def a_bad_pointer_is_ignored() -> Interposer:
    return accept(GUEST)


@mutation("perm.req-unsupported-cpu")
def tile_data_is_granted_without_amx() -> Interposer:
    return accept(REQUEST)


@mutation("perm.req-unsupported-cpu")
def tile_data_without_amx_is_einval() -> Interposer:
    return drift(REQUEST, errno.EINVAL)


@mutation("perm.host-altstack-enospc")
def a_small_signal_stack_is_overlooked() -> Interposer:
    return accept(REQUEST_HOST)


@mutation("perm.host-altstack-enospc")
def a_small_signal_stack_is_eopnotsupp() -> Interposer:
    return drift(REQUEST_HOST, errno.EOPNOTSUPP)


@mutation("perm.host-altstack-enospc")
def a_small_signal_stack_hinders_guests() -> Interposer:
    return refuse(REQUEST, errno.ENOSPC)


HAS, GET, SET = "KVM_HAS_DEVICE_ATTR", "KVM_GET_DEVICE_ATTR", "KVM_SET_DEVICE_ATTR"


def _value(call: Call) -> Any:
    return ffi.cast("uint64_t *", call.argument.addr)


def _attribute(change: Callable[[int], int]) -> Interposer:
    """Change the value that KVM_GET_DEVICE_ATTR brings."""

    def spoil(call: Call) -> None:
        _value(call)[0] = change(_value(call)[0])

    return after(GET, spoil)


@mutation("perm.guest-suppprobe")
def the_attribute_is_not_listed() -> Interposer:
    return refuse(HAS, errno.ENXIO)


@mutation("perm.guest-suppprobe")
def the_attribute_cannot_be_read() -> Interposer:
    return refuse(GET, errno.ENXIO)


@mutation("perm.guest-suppprobe")
def x87_is_not_among_the_guests_features() -> Interposer:
    return _attribute(lambda value: value & ~1)


@mutation("perm.guest-suppprobe")
def the_attributes_upper_half_is_not_written() -> Interposer:
    return _attribute(lambda value: value | 0xAAAAAAAA00000000)


@mutation("perm.guest-suppprobe")
def every_attribute_is_there() -> Interposer:
    return accept(HAS)


@mutation("perm.guest-suppprobe")
def an_unknown_group_is_einval() -> Interposer:
    return drift(HAS, errno.EINVAL, lambda call: call.argument.group == 99)


@mutation("perm.guest-suppprobe")
def an_unknown_attribute_can_be_read() -> Interposer:
    return accept(GET, lambda call: call.argument.attr == 99)


@mutation("perm.guest-suppprobe")
def a_bad_address_is_enxio() -> Interposer:
    return drift(GET, errno.ENXIO, lambda call: call.argument.addr == 0x10)


@mutation("perm.guest-suppprobe")
def the_attribute_can_be_set() -> Interposer:
    return accept(SET)


@mutation("perm.guest-supp-independent-of-perm")
def guests_are_offered_what_the_host_lacks() -> Interposer:
    lacking = ~permission.host_supported()
    return _attribute(lambda value: value | (lacking & -lacking))


@mutation("perm.guest-supp-independent-of-perm")
def one_of_the_two_tile_components_is_offered() -> Interposer:
    return _attribute(lambda value: value ^ TILE_CONFIGURATION)


@mutation("perm.guest-supp-independent-of-perm")
def what_guests_are_offered_depends_on_the_permission() -> Interposer:
    if permission.host_supported() & TILES:
        return once(REQUEST, _attribute(lambda value: value ^ 4))
    return _attribute(lambda value: value | TILES)  # where nothing can be requested: as if it had been


@mutation("perm.supp-consistent-with-fpu")
def kvm_leaves_out_tile_data() -> Interposer:
    return _attribute(lambda value: value & ~TILES)


@mutation("perm.supp-consistent-with-fpu")
def kvm_leaves_out_both_tile_components() -> Interposer:
    return _attribute(lambda value: value & ~(TILES | TILE_CONFIGURATION))
