# SPDX-License-Identifier: Apache-2.0
"""Guest permission for dynamic xfeatures: arch_prctl, its lock, and KVM's device attribute."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, subset, succeeds, true
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import (
    HOST_XFD,
    HOST_XSAVE,
    NO_HOST_XFD,
    SYSTEM_ATTRIBUTES,
    TILEDATA,
    XCOMP,
    XCOMP_GUEST,
    tile_table,
)
from vmm.kvm.ioctl import KvmError, arch_prctl, arch_prctl_value, errno_name
from vmm.x86 import cpuid, permission, xfeature

_BAD_POINTER = ffi.cast("void *", 0x10)
_LOCK_BIT = 63
# The exit status of a child that could not even ask.
_BROKEN = 255
# An unused option of arch_prctl; the next free number may get one.
_NO_OPTION = 0x7FFFFFFF
# Large enough for the static components of today's CPUs, smaller than the 8 KiB of tile data.
_SMALL_STACK = 8192


@clause("perm.supp-is-host-xcr0", arch="x86", needs=(HOST_XSAVE, XCOMP))
def supported_is_host_xcr0(context: Context) -> None:
    """ARCH_GET_XCOMP_SUPP names the xfeatures that the host has enabled in its own XCR0, and no others.

    Source: arch/x86/kernel/fpu/xstate.c, fpu_xstate_prctl; Documentation/arch/x86/xstate.rst.
    """
    value = succeeds("ARCH_GET_XCOMP_SUPP", permission.host_supported)
    equal("ARCH_GET_XCOMP_SUPP against XCR0", value, lib.vmm_xgetbv(0))


@clause("perm.guest-default", arch="x86", needs=(HOST_XFD, XCOMP_GUEST))
def guest_default(context: Context) -> None:
    """Before any request the guest permission has XTILECFG and not XTILEDATA, and equals the host permission.

    So bit 17 says nothing about AMX being permitted: only bit 18 does.

    Source: arch/x86/kernel/fpu/xstate.c, guest_default_mask; arch/x86/kernel/fpu/core.c, fpstate_reset.
    """
    guest = permission.guest_permitted()
    equal("XTILECFG and XTILEDATA in ARCH_GET_XCOMP_GUEST_PERM", guest >> 17 & 3, 1)
    equal("ARCH_GET_XCOMP_GUEST_PERM against ARCH_GET_XCOMP_PERM", guest, permission.host_permitted())


@clause("perm.hides-supervisor-and-lock", arch="x86", needs=(XCOMP_GUEST,))
def hides_supervisor_and_lock(context: Context) -> None:
    """ARCH_GET_XCOMP_GUEST_PERM never shows supervisor components or the software lock, and no vCPU changes it.

    The kernel keeps the lock in bit 63 and, since 6.17, the guest-only CET components in the same mask.

    Source: arch/x86/kernel/fpu/xstate.c, fpu_xstate_prctl (XFEATURE_MASK_USER_SUPPORTED).
    """
    hidden = xfeature.SUPERVISOR | 1 << _LOCK_BIT
    before = permission.guest_permitted()
    equal("supervisor and lock bits before a vCPU", before & hidden, 0)
    context.vcpu()
    after = permission.guest_permitted()
    equal("supervisor and lock bits after a vCPU", after & hidden, 0)
    equal("ARCH_GET_XCOMP_GUEST_PERM after a vCPU", after, before)


@clause("perm.req-tiledata-ok", arch="x86", needs=(HOST_XFD, XCOMP_GUEST))
def request_tiledata(context: Context) -> None:
    """Requesting component 18 before the first vCPU adds exactly that bit, and only to the guest permission.

    Source: arch/x86/kernel/fpu/xstate.c, __xstate_request_perm.
    """
    guest, host = permission.guest_permitted(), permission.host_permitted()
    succeeds("ARCH_REQ_XCOMP_GUEST_PERM(18)", permission.request_guest, TILEDATA)
    equal("guest permission", permission.guest_permitted(), guest | 1 << TILEDATA)
    equal("host permission", permission.host_permitted(), host)


@clause("perm.req-idempotent", arch="x86", needs=(HOST_XFD, XCOMP_GUEST))
def request_idempotent(context: Context) -> None:
    """A permission that has been granted can be requested again, even after a vCPU froze the permissions.

    Source: arch/x86/kernel/fpu/xstate.c, xstate_request_perm (the check for a granted one comes first).
    """
    permission.request_guest(TILEDATA)
    succeeds("the second request", permission.request_guest, TILEDATA)
    context.vcpu()
    succeeds("the request after a vCPU", permission.request_guest, TILEDATA)


@clause("perm.req-after-first-vcpu-ebusy", arch="x86", needs=(HOST_XFD, XCOMP_GUEST))
def request_after_first_vcpu(context: Context) -> None:
    """After the first vCPU exists, a new guest permission request fails with EBUSY.

    Source: Documentation/arch/x86/xstate.rst; arch/x86/kernel/fpu/xstate.c, __xstate_request_perm
    (FPU_GUEST_PERM_LOCKED).
    """
    before = permission.guest_permitted()
    context.vcpu()
    refused("the request after a vCPU", errno.EBUSY, permission.request_guest, TILEDATA)
    equal("guest permission after the refusal", permission.guest_permitted(), before)


@clause("perm.lock-is-vcpu-not-vm", arch="x86", needs=(HOST_XFD, XCOMP_GUEST))
def lock_is_vcpu_not_vm(context: Context) -> None:
    """A VM without a vCPU does not freeze the guest permission.

    Source: arch/x86/kernel/fpu/core.c, fpu_alloc_guest_fpstate (called for a vCPU).
    """
    context.vm()
    succeeds("the request after KVM_CREATE_VM", permission.request_guest, TILEDATA)
    equal("XTILEDATA in the guest permission", permission.guest_permitted() >> TILEDATA & 1, 1)


@clause("perm.lock-survives-close", arch="x86", needs=(HOST_XFD, XCOMP_GUEST))
def lock_survives_close(context: Context) -> None:
    """Closing every KVM fd does not thaw the guest permission.

    Source: arch/x86/kernel/fpu/core.c, fpu_lock_guest_permissions (nothing clears it but exec).
    """
    with context.kvm.create_vm() as vm:
        vm.create_vcpu()
    refused("the request after all is closed", errno.EBUSY, permission.request_guest, TILEDATA)


def _in_fork(action: object) -> int:
    """Return the errno that ``action`` got in a forked child, 0 for none."""
    pid = os.fork()
    if pid == 0:
        code = _BROKEN
        try:
            action()  # type: ignore[operator]
            code = 0
        except KvmError as error:
            code = error.errno or _BROKEN
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _report_fork(result: int) -> None:
    if result:
        raise KvmError("ARCH_REQ_XCOMP_GUEST_PERM", result)


@clause("perm.lock-inherited-by-fork", arch="x86", needs=(HOST_XFD, XCOMP_GUEST))
def lock_inherited_by_fork(context: Context) -> None:
    """A process forked after its parent created a vCPU cannot request guest permission: EBUSY.

    It never used KVM itself. The documentation says only that permissions are inherited.

    Source: arch/x86/kernel/fpu/core.c, fpu_inherit_perms; Documentation/arch/x86/xstate.rst.
    """
    context.vcpu()
    result = _in_fork(lambda: permission.request_guest(TILEDATA))
    if result in (_BROKEN, *range(-64, 0)):
        raise ChildProcessError(f"the forked child did not come as far as its request: it ended with {result}")
    refused("the request in the child", errno.EBUSY, _report_fork, result)


@clause("perm.cleared-by-exec", arch="x86", needs=(HOST_XFD, XCOMP_GUEST), timeout=30)
def cleared_by_exec(context: Context) -> None:
    """exec resets the permissions and the lock: the new program can request again.

    Source: Documentation/arch/x86/xstate.rst; arch/x86/kernel/fpu/core.c, fpu_flush_thread.
    """
    permission.request_guest(TILEDATA)
    context.vcpu()
    command = [sys.executable, "-m", "vmm.x86.permission"]
    limit = 25 * context.options.time_scale
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=True)
    answer = json.loads(done.stdout)
    equal("XTILEDATA in the guest permission after exec", answer["guest_permitted"] >> TILEDATA & 1, 0)
    equal("errno of the request after exec", answer["request_errno"], 0)


@clause("perm.process-wide", arch="x86", needs=(HOST_XFD, XCOMP_GUEST))
def process_wide(context: Context) -> None:
    """A request made in any thread holds for all threads, and racing requests all succeed.

    Source: arch/x86/kernel/fpu/xstate.c, xstate_request_perm (state of current->group_leader).
    """
    failures: list[str] = []

    def request() -> None:
        try:
            permission.request_guest(TILEDATA)
        except KvmError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=request) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal("failures of 8 racing requests", failures, [])
    equal("XTILEDATA in the main thread's permission", permission.guest_permitted() >> TILEDATA & 1, 1)
    vcpu = context.vcpu()
    succeeds("KVM_SET_CPUID2 with tiles", cpuid.set_cpuid, vcpu, tile_table(context))


@clause("perm.host-and-guest-independent", arch="x86", needs=(HOST_XFD, XCOMP_GUEST))
def host_and_guest_independent(context: Context) -> None:
    """The host permission can still be requested after the guest one froze, and does not grant it.

    Source: arch/x86/kernel/fpu/xstate.c, __xstate_request_perm (perm and guest_perm).
    """
    context.vcpu()
    succeeds("ARCH_REQ_XCOMP_PERM(18) after a vCPU", permission.request_host, TILEDATA)
    equal("XTILEDATA in the host permission", permission.host_permitted() >> TILEDATA & 1, 1)
    equal("XTILEDATA in the guest permission", permission.guest_permitted() >> TILEDATA & 1, 0)


@clause("perm.req-errors", arch="x86", needs=(XCOMP_GUEST,))
def request_errors(context: Context) -> None:
    """Wrong requests are refused: EINVAL for unknown components and options, EOPNOTSUPP for static ones, EFAULT.

    Component 17 is static too: the facility is named by its highest component, 18. Component 19 became known
    in 6.16 (APX), so either refusal is right for it.

    Source: arch/x86/kernel/fpu/xstate.c, xstate_request_perm, fpu_xstate_prctl.
    """
    for number in (63, 64, 1000):
        refused(f"component {number}", errno.EINVAL, permission.request_guest, number)
    for number in (0, 2, 9, 17):
        refused(f"component {number}", errno.EOPNOTSUPP, permission.request_guest, number)
    refused("component 19", (errno.EOPNOTSUPP, errno.EINVAL), permission.request_guest, 19)
    refused(f"option {_NO_OPTION:#x}", errno.EINVAL, arch_prctl_value, _NO_OPTION, 0)
    for code in (lib.ARCH_GET_XCOMP_SUPP, lib.ARCH_GET_XCOMP_PERM, lib.ARCH_GET_XCOMP_GUEST_PERM):
        refused(f"option {code:#x} with a bad pointer", errno.EFAULT, arch_prctl, code, _BAD_POINTER)


@clause("perm.req-unsupported-cpu", arch="x86", needs=(XCOMP_GUEST, NO_HOST_XFD))
def request_unsupported(context: Context) -> None:
    """On a host without AMX the request for component 18 fails with EOPNOTSUPP.

    Source: arch/x86/kernel/fpu/xstate.c, xstate_request_perm (fpu_user_cfg.max_features).
    """
    before = permission.guest_permitted()
    refused("ARCH_REQ_XCOMP_GUEST_PERM(18)", errno.EOPNOTSUPP, permission.request_guest, TILEDATA)
    equal("guest permission after the refusal", permission.guest_permitted(), before)


@clause("perm.host-altstack-enospc", arch="x86", needs=(HOST_XFD, XCOMP_GUEST))
def host_altstack(context: Context) -> None:
    """With a signal stack too small for tiles the host request fails with ENOSPC and the guest request succeeds.

    The documentation calls the errno ENOSUPP; the code returns ENOSPC.

    Source: arch/x86/kernel/fpu/xstate.c, validate_sigaltstack (called only for the host).
    """
    installed = lib.vmm_sigaltstack(_SMALL_STACK)
    if installed:
        context.skip(f"a signal stack of {_SMALL_STACK} bytes cannot be installed: {errno_name(-installed)}")
    try:
        refused("ARCH_REQ_XCOMP_PERM(18)", errno.ENOSPC, permission.request_host, TILEDATA)
        succeeds("ARCH_REQ_XCOMP_GUEST_PERM(18)", permission.request_guest, TILEDATA)
    finally:
        lib.vmm_sigaltstack(0)


@clause("perm.guest-suppprobe", arch="x86", needs=(SYSTEM_ATTRIBUTES,))
def guest_supported_probe(context: Context) -> None:
    """KVM_X86_XCOMP_GUEST_SUPP answers HAS and GET; other attributes get ENXIO, a bad address EFAULT, SET EINVAL.

    Source: arch/x86/kvm/x86.c, kvm_x86_dev_get_attr, kvm_x86_dev_has_attr, kvm_arch_dev_ioctl.
    """
    kvm = context.kvm
    group, attribute = lib.KVM_X86_GRP_SYSTEM, lib.KVM_X86_XCOMP_GUEST_SUPP
    value = ffi.new("uint64_t *", 0xAAAAAAAAAAAAAAAA)
    succeeds("KVM_HAS_DEVICE_ATTR", kvm.has_attribute, group, attribute)
    succeeds("KVM_GET_DEVICE_ATTR", kvm.get_attribute, group, attribute, value)
    own = context.host.facts.xcr0
    equal("x87 and SSE in KVM_X86_XCOMP_GUEST_SUPP", value[0] & 3, own & 3)
    subset("KVM_X86_XCOMP_GUEST_SUPP against the host's XCR0", value[0], own)
    refused("attribute 99", errno.ENXIO, kvm.has_attribute, group, 99)
    refused("group 99", errno.ENXIO, kvm.has_attribute, 99, attribute)
    refused("GET of attribute 99", errno.ENXIO, kvm.get_attribute, group, 99, value)
    refused("GET to a bad address", errno.EFAULT, kvm.get_attribute, group, attribute, _BAD_POINTER)
    refused("SET", (errno.EINVAL, errno.ENOTTY), kvm.set_attribute, group, attribute, value)


@clause("perm.guest-supp-independent-of-perm", arch="x86", needs=(SYSTEM_ATTRIBUTES, XCOMP))
def guest_supported_independent(context: Context) -> None:
    """KVM_X86_XCOMP_GUEST_SUPP is the same with and without permission, within what the host supports.

    Source: arch/x86/kvm/x86.c, kvm_x86_dev_get_attr (kvm_caps.supported_xcr0, unfiltered).
    """
    before = permission.guest_supported(context.kvm)
    subset("KVM_X86_XCOMP_GUEST_SUPP against ARCH_GET_XCOMP_SUPP", before, permission.host_supported())
    true("XTILECFG and XTILEDATA", before >> 17 & 3 in (0, 3), before >> 17 & 3, "both or neither")
    facts = context.host.facts
    if not permission.host_supported() >> TILEDATA & 1:
        context.note("the host has no AMX to permit: only the value without permission was checked")
    elif facts.xcomp_guest_permitted is None:
        context.note(f"{facts.answer('xcomp_guest_permitted')}: only the value without permission was checked")
    else:
        permission.request_guest(TILEDATA)
        equal("KVM_X86_XCOMP_GUEST_SUPP after the request", permission.guest_supported(context.kvm), before)


@clause("perm.supp-consistent-with-fpu", arch="x86", needs=(HOST_XFD, SYSTEM_ATTRIBUTES), info=True)
def supported_consistent(context: Context) -> None:
    """Whether KVM supports both tile components where the host can permit tile data to guests.

    Nothing promises it. Where KVM does not, KVM_CAP_XSAVE2 and the size of a vCPU's area come apart.

    Source: arch/x86/kvm/x86.c, KVM_SUPPORTED_XCR0 and kvm_caps.supported_xcr0.
    """
    equal(
        "XTILECFG and XTILEDATA in KVM_X86_XCOMP_GUEST_SUPP",
        permission.guest_supported(context.kvm) >> 17 & 3,
        3,
    )
