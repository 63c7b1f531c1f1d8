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
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.lies import one_reg_number
from vmm._kvm import lib
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


lies(
    "perm.supp-is-host-xcr0",
    sse_is_not_supported=lambda: after(SUPPORTED, _clear(2)),
    avx_is_not_supported=lambda: after(SUPPORTED, _clear(lib.vmm_xgetbv(0) & 4 or 1)),
    what_is_supported_is_not_told=lambda: refuse(SUPPORTED, errno.EINVAL),
)

lies(
    "perm.guest-default",
    tile_data_is_permitted_from_the_start=lambda: after(GUEST, _set(TILES)),
    tile_configuration_is_not_permitted=lambda: after(GUEST, _clear(TILE_CONFIGURATION)),
    guest_and_host_differ_in_pkru=lambda: after(GUEST, toggle("", 1 << 9)),
)

lies(
    "perm.hides-supervisor-and-lock",
    cet_components_are_shown=lambda: after(GUEST, _set(0x1800)),
    the_lock_is_shown_once_a_vcpu_exists=lambda: once("KVM_CREATE_VCPU", after(GUEST, _set(LOCK))),
    a_vcpu_takes_a_component_away=lambda: once("KVM_CREATE_VCPU", after(GUEST, toggle("", 4))),
)

lies(
    "perm.req-tiledata-ok",
    "perm.lock-is-vcpu-not-vm",
    "perm.process-wide",
    the_request_grants_nothing=lambda: answer(REQUEST, 0),
)

lies(
    "perm.req-tiledata-ok",
    the_request_grants_another_component_as_well=lambda: once(REQUEST, after(GUEST, toggle("", 1 << 16))),
    the_request_permits_the_host_as_well=lambda: once(REQUEST, after(PERMITTED, _set(TILES))),
    the_request_is_refused=lambda: refuse(REQUEST, errno.EPERM),
)

lies(
    "perm.req-idempotent",
    a_second_request_is_refused=lambda: once(REQUEST, refuse(REQUEST, errno.EINVAL)),
    a_granted_request_is_refused_after_a_vcpu=lambda: once("KVM_CREATE_VCPU", refuse(REQUEST, errno.EBUSY)),
)

lies(
    "perm.req-after-first-vcpu-ebusy",
    "perm.lock-survives-close",
    "perm.lock-inherited-by-fork",
    "xsave.size.frozen-after-vcpu",
    a_late_request_is_granted=lambda: accept(REQUEST),
    a_late_request_is_eperm=lambda: drift(REQUEST, errno.EPERM),
)

lies(
    "perm.req-after-first-vcpu-ebusy",
    "perm.req-unsupported-cpu",
    a_refused_request_grants_all_the_same=lambda: once(REQUEST, after(GUEST, toggle("", TILES)), refused=True),
)

lies(
    "perm.lock-is-vcpu-not-vm",
    a_vm_without_a_vcpu_freezes_the_permission=lambda: once("KVM_CREATE_VM", refuse(REQUEST, errno.EBUSY)),
)


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


lies(
    "perm.cleared-by-exec",
    exec_keeps_the_permission=lambda: _exec_answers(TILES | TILE_CONFIGURATION | 7, 0),
    exec_keeps_the_lock=lambda: _exec_answers(TILE_CONFIGURATION | 7, errno.EBUSY),
)


@mutation("perm.process-wide")
def a_request_holds_for_its_own_thread() -> Interposer:
    main = threading.main_thread()
    return answer(REQUEST, 0, lambda call: threading.current_thread() is not main)


lies(
    "perm.process-wide",
    one_of_the_racing_requests_is_refused=lambda: refuse(REQUEST, errno.EBUSY, nth(5)),
    what_a_thread_requested_does_not_serve_a_vcpu=lambda: refuse("KVM_SET_CPUID2", errno.EPERM),
)

lies(
    "perm.host-and-guest-independent",
    the_guests_lock_freezes_the_host_too=lambda: once("KVM_CREATE_VCPU", refuse(REQUEST_HOST, errno.EBUSY)),
    the_host_request_grants_nothing=lambda: answer(REQUEST_HOST, 0),
    the_host_request_permits_guests_as_well=lambda: once(REQUEST_HOST, after(GUEST, _set(TILES))),
)

lies(
    "perm.req-errors",
    component_64_is_eopnotsupp=lambda: drift(REQUEST, errno.EOPNOTSUPP, component(64)),
    component_1000_is_taken_modulo_64=lambda: accept(REQUEST, component(1000)),
    a_static_component_is_granted=lambda: accept(REQUEST, component(9)),
    the_tile_configuration_is_granted_by_its_own_number=lambda: accept(REQUEST, component(17)),
    a_static_component_is_einval=lambda: drift(REQUEST, errno.EINVAL, component(0)),
    component_19_is_granted=lambda: accept(REQUEST, component(19)),
    an_unknown_option_is_accepted=lambda: accept("arch_prctl 0x7fffffff"),
    a_bad_pointer_is_einval=lambda: drift(PERMITTED, errno.EINVAL),
    a_bad_pointer_is_ignored=lambda: accept(GUEST),
)

lies(
    "perm.req-unsupported-cpu",
    tile_data_is_granted_without_amx=lambda: accept(REQUEST),
    tile_data_without_amx_is_einval=lambda: drift(REQUEST, errno.EINVAL),
)

lies(
    "perm.host-altstack-enospc",
    a_small_signal_stack_is_overlooked=lambda: accept(REQUEST_HOST),
    a_small_signal_stack_is_eopnotsupp=lambda: drift(REQUEST_HOST, errno.EOPNOTSUPP),
    a_small_signal_stack_hinders_guests=lambda: refuse(REQUEST, errno.ENOSPC),
)


HAS, GET, SET = "KVM_HAS_DEVICE_ATTR", "KVM_GET_DEVICE_ATTR", "KVM_SET_DEVICE_ATTR"


def _attribute(change: Callable[[int], int]) -> Interposer:
    """Change the value that KVM_GET_DEVICE_ATTR brings."""

    def spoil(call: Call) -> None:
        one_reg_number(call)[0] = change(one_reg_number(call)[0])

    return after(GET, spoil)


lies(
    "perm.guest-suppprobe",
    the_attribute_is_not_listed=lambda: refuse(HAS, errno.ENXIO),
    the_attribute_cannot_be_read=lambda: refuse(GET, errno.ENXIO),
    x87_is_not_among_the_guests_features=lambda: _attribute(lambda value: value & ~1),
    the_attributes_upper_half_is_not_written=lambda: _attribute(lambda value: value | 0xAAAAAAAA00000000),
    every_attribute_is_there=lambda: accept(HAS),
    an_unknown_group_is_einval=lambda: drift(HAS, errno.EINVAL, lambda call: call.argument.group == 99),
    an_unknown_attribute_can_be_read=lambda: accept(GET, lambda call: call.argument.attr == 99),
    a_bad_address_is_enxio=lambda: drift(GET, errno.ENXIO, lambda call: call.argument.addr == 0x10),
    the_attribute_can_be_set=lambda: accept(SET),
)


@mutation("perm.guest-supp-independent-of-perm")
def guests_are_offered_what_the_host_lacks() -> Interposer:
    lacking = ~permission.host_supported()
    return _attribute(lambda value: value | (lacking & -lacking))


lies(
    "perm.guest-supp-independent-of-perm",
    one_of_the_two_tile_components_is_offered=lambda: _attribute(lambda value: value ^ TILE_CONFIGURATION),
)


@mutation("perm.guest-supp-independent-of-perm")
def what_guests_are_offered_depends_on_the_permission() -> Interposer:
    if permission.host_supported() & TILES:
        return once(REQUEST, _attribute(lambda value: value ^ 4))
    return _attribute(lambda value: value | TILES)  # where nothing can be requested: as if it had been


lies(
    "perm.supp-consistent-with-fpu",
    kvm_leaves_out_tile_data=lambda: _attribute(lambda value: value & ~TILES),
    kvm_leaves_out_both_tile_components=lambda: _attribute(lambda value: value & ~(TILES | TILE_CONFIGURATION)),
)
