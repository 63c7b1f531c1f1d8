# SPDX-License-Identifier: Apache-2.0
"""Save and restore: which order, which lists, and what comes back."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, no_difference, refused, subset, succeeds, true
from vmm.conformance.registry import clause
from vmm.conformance.x86 import shadow, state
from vmm.conformance.x86.common import (
    GUEST_XSAVE,
    MASKABLE,
    STRICT_MSRS,
    XSAVE2,
    configured,
    guest_supported,
    maskable,
    pattern,
    plain_features,
    vector_guest,
    vector_level,
)
from vmm.conformance.x86.image import Image
from vmm.conformance.x86.shadow import SHSTK, XSAVES, set_up_msr, shadow_guest
from vmm.kvm.bits import bits
from vmm.kvm.exits import Budget, Hlt, IoOut
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import cpuid, msr, xfeature
from vmm.x86.guest import EXCEPTION, Guest
from vmm.x86.msr import UNKNOWN_MSR
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_regs, set_xcr0
from vmm.x86.xsave import XsaveArea, get_xsave, set_xsave


@clause("mig.cpuid-first", arch="x86", needs=(GUEST_XSAVE,))
def cpuid_first(context: Context) -> None:
    """What depends on the guest's CPUID is refused before KVM_SET_CPUID2 and accepted after it.

    XCR0 beyond x87 is EINVAL and a non-zero IA32_XFD is not set; no read of a listed MSR fails hard.

    Source: arch/x86/kvm/x86.c, __kvm_set_xcr, kvm_set_msr_common, __msr_io.
    """
    vcpu = context.vcpu()
    value = plain_features(context)
    refused(f"XCR0 {value:#x} before CPUID", errno.EINVAL, set_xcr0, vcpu, value)
    # A KVM without XFD does not know the MSR, and may have been told to take those.
    if not context.host.facts.ignore_msrs:
        equal("IA32_XFD 1<<18 accepted before CPUID", msr.set_msr(vcpu, Msr.XFD, 1 << 18), False)
    for index in state.saved_msrs(context.kvm):
        succeeds(f"reading {msr.name(index)}", msr.try_get, vcpu, index)
    cpuid.set_cpuid(vcpu, context.host.facts.cpuid)
    succeeds(f"XCR0 {value:#x} after CPUID", set_xcr0, vcpu, value)


@clause("mig.idempotent", arch="x86", needs=(GUEST_XSAVE, XSAVE2), timeout=30)
def idempotent(context: Context) -> None:
    """Saving, restoring into a new VM and saving again gives the same state, at 20 points of a running guest.

    The points are exits of a guest with all its vector registers in use, one halted and one with a pending
    exception; the last copy then runs on and finds its registers intact.

    Source: Documentation/virt/kvm/api.rst, 4.13, 4.32, 4.43, 4.44; tools/testing/selftests/kvm/x86/state_test.c
    (which compares no byte of the XSAVE area).
    """
    msrs = state.saved_msrs(context.kvm)
    guest = vector_guest(context)
    level = vector_level(context)
    image = Image.random(random.Random(22))
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    guest.prepare(f"churn_{level}", 18, privilege=3)
    for point in range(18):
        equal(f"the exit at point {point}", guest.resume(context.timeout, ticks=1), Budget(1))
        guest.vcpu.complete()
        saved = state.capture(guest.vcpu, msrs)
        twin = state.twin(context, guest, saved, f"point {point}")
        no_difference(f"point {point}", state.compare(saved, state.capture(twin.vcpu, msrs)))
        guest.close()
        guest = twin
    with judged("the run of the last copy", "an end without a fault"):
        guest.finish(guest.resume(context.timeout), "the guest after 18 copies")
    image.check(guest)
    guest.close()
    _idempotent_halted(context, msrs)
    _idempotent_exception(context, msrs)


def _idempotent_halted(context: Context, msrs: tuple[int, ...]) -> None:
    guest = context.own(Guest(context.kvm, "hello", cpuid=context.host.facts.cpuid))
    guest.prepare("halt")
    equal("the exit of a guest that halts", guest.resume(context.timeout), Hlt())
    saved = state.capture(guest.vcpu, msrs)
    twin = state.twin(context, guest, saved, "a halted vCPU")
    no_difference("halted", state.compare(saved, state.capture(twin.vcpu, msrs)))
    guest.close()
    twin.close()


def _idempotent_exception(context: Context, msrs: tuple[int, ...]) -> None:
    guest = context.own(Guest(context.kvm, "hello", cpuid=context.host.facts.cpuid))
    guest.prepare("_start", privilege=3)
    events = guest.vcpu.get_events()
    events.exception.injected, events.exception.nr = 1, 6
    guest.vcpu.set_events(events)
    saved = state.capture(guest.vcpu, msrs)
    state.hold("of a vCPU with a pending #UD", guest.vcpu.get_events(), {"exception.injected": 1, "exception.nr": 6})
    twin = state.twin(context, guest, saved, "a pending #UD")
    no_difference("pending #UD", state.compare(saved, state.capture(twin.vcpu, msrs)))
    exit = twin.resume(context.timeout)
    taken = twin.event(exit) == EXCEPTION
    true("the exit of a guest restored with a pending #UD", taken, exit, "that of its exception handler")
    equal("the exception it took", twin.fault().name, "#UD")


@clause("mig.io-completion", arch="x86")
def io_completion(context: Context) -> None:
    """A KVM_RUN with immediate_exit completes a pending port write: RIP is then that of the next instruction.

    State has to be saved after that, or the write happens twice.

    Source: Documentation/virt/kvm/api.rst, 5, "For KVM_EXIT_IO ... the corresponding operations are complete
    only after userspace has re-entered the kernel".
    """
    guest = context.own(Guest(context.kvm, "hello", cpuid=context.host.facts.cpuid))
    guest.prepare("outs", 2, privilege=3)
    first = guest.resume(context.timeout)
    equal("the first exit", first, IoOut(0x3F8, 1, 0))
    at_exit = get_regs(guest.vcpu).rip
    guest.vcpu.complete()
    after = get_regs(guest.vcpu).rip
    context.note(f"RIP at the exit {at_exit:#x}, completed {after:#x}")
    code = guest.memory.read(after - 1, 1)
    equal("the byte before the completed RIP (OUT DX, AL)", code, b"\xee")
    equal("the exit that follows", guest.resume(context.timeout), IoOut(0x3F8, 1, 1))


@clause("mig.fewer-xfeatures", arch="x86", needs=(MASKABLE, XSAVE2))
def fewer_xfeatures(context: Context) -> None:
    """The state of a guest that was offered fewer components names no others, and restores where only those exist.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_get_xsave2; commit 8647c52e9504; Linux 6.6.
    """
    _, less = maskable(context)
    table = context.host.facts.cpuid.with_xcr0(less)
    guest = vector_guest(context, less, table)
    level = "avx" if less & 4 else "sse"
    image = Image.random(random.Random(23))
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    guest.call(f"fill_{level}", privilege=3, timeout=context.timeout)
    area = get_xsave(guest.vcpu)
    subset("XSTATE_BV of the saved state", area.xstate_bv, less)
    twin = state.twin(context, guest, state.capture(guest.vcpu, ()), "the state")
    with judged("the guest's run with the state", "an end without a fault"):
        twin.call(f"verify_{level}", privilege=3, timeout=context.timeout)
    image.check(twin)


@clause("mig.more-features-rejected", arch="x86", needs=(XSAVE2,))
def more_features_rejected(context: Context) -> None:
    """State with a component that this KVM lacks is refused with EINVAL, never taken without it.

    Source: arch/x86/kernel/fpu/core.c, fpu_copy_uabi_to_guest_fpstate.
    """
    vcpu = configured(context)
    missing = [n for n in range(2, 64) if not guest_supported(context) >> n & 1 or n == 18]
    before = get_xsave(vcpu)
    for number in missing:
        area = pattern(plain_features(context), 24, 16384)
        area.xstate_bv |= 1 << number
        refused(f"{xfeature.name(number)} in XSTATE_BV", errno.EINVAL, set_xsave, vcpu, area)
    no_difference("the state after the refusals", before.compare(get_xsave(vcpu)))


def _refused_msrs(vcpu: Vcpu, indices: tuple[int, ...], target: Vcpu) -> list[int]:
    """Return the MSRs that cannot be read from ``vcpu`` or whose value ``target`` refuses."""
    bad = []
    for index in indices:
        value = msr.try_get(vcpu, index)
        if value is None or not msr.set_msr(target, index, value):
            bad.append(index)
    return bad


@clause("mig.msr-list-closed", arch="x86")
def msr_list_closed(context: Context) -> None:
    """Every MSR of KVM's list can be read and written back, on the same and on a fresh vCPU.

    One exception is allowed: KVM_ASYNC_PF_INT cannot be written without an in-kernel local APIC.

    Source: arch/x86/kvm/x86.c, kvm_do_msr_access (advertised MSRs), kvm_pv_enable_async_pf_int.
    """
    indices = tuple(msr.index_list(context.kvm))
    true("MSRs in the list", len(indices) > 0, len(indices), "some")
    vcpu, fresh = configured(context), configured(context)
    for name, target in (("the same vCPU", vcpu), ("a fresh vCPU", fresh)):
        bad = set(_refused_msrs(vcpu, indices, target))
        for index in sorted(bad & state.NEEDS_APIC):
            context.note(f"{msr.name(index)} is refused on {name}: it needs an in-kernel local APIC")
        equal(f"MSRs refused on {name}", [msr.name(index) for index in sorted(bad - state.NEEDS_APIC)], [])
    changed = 0x0006040600070406
    equal("IA32_PAT accepted", msr.set_msr(vcpu, Msr.PAT, changed), True)
    equal("IA32_PAT written through the list's call", msr.get_msr(vcpu, Msr.PAT), changed)


@clause("mig.msr-batch-partial", arch="x86", needs=(STRICT_MSRS,))
def msr_batch_partial(context: Context) -> None:
    """A batch stops at the first MSR that is refused and returns how many were done.

    256 entries are E2BIG, or done like any others: nothing promises a limit.

    Source: arch/x86/kvm/x86.c, __msr_io, msr_io (MAX_IO_MSRS).
    """
    vcpu = configured(context)
    first, second = 0x0006040600070406, 0x0000000000000006
    with judged("KVM_GET_MSRS with an unknown MSR in it"):
        read = msr.get_msrs(vcpu, [Msr.PAT, UNKNOWN_MSR, Msr.PAT])
    equal("MSRs read before an unknown one", len(read), 1)
    with judged("KVM_SET_MSRS with an unknown MSR in it"):
        done = msr.set_msrs(vcpu, [(Msr.PAT, first), (UNKNOWN_MSR, 0), (Msr.PAT, second)])
    equal("MSRs set before an unknown one", done, 1)
    equal("IA32_PAT after the batch", msr.get_msr(vcpu, Msr.PAT), first)
    full = [Msr.PAT] * msr.MAX_BATCH
    _too_many(context, "256 reads", lambda: len(msr.get_msrs(vcpu, full)))
    _too_many(context, "256 writes", lambda: msr.set_msrs(vcpu, [(index, first) for index in full]))
    equal("255 reads", len(succeeds("255 reads", msr.get_msrs, vcpu, full[:-1])), msr.MAX_BATCH - 1)


def _too_many(context: Context, what: str, call: Callable[[], int]) -> None:
    """A batch of 256 is refused with E2BIG; a KVM that takes it has to do all of it."""
    try:
        done = call()
    except KvmError:
        refused(what, errno.E2BIG, call)
    else:
        equal(f"of {what}, those done", done, msr.MAX_BATCH)
        context.note(f"{what} in one batch are done")


@clause("mig.python-diff", arch="x86", needs=(GUEST_XSAVE, XSAVE2))
def differences_are_named(context: Context) -> None:
    """A byte changed between save and restore is reported as exactly that register and byte, and nothing else.

    Source: Intel SDM volume 1, 13.5 (where each register lies).
    """
    vcpu = configured(context)
    set_xsave(vcpu, pattern(plain_features(context), 25))
    saved = get_xsave(vcpu)
    for number in bits(plain_features(context) & ~1):
        start, length = saved.layout[number].ranges[-1]
        offset = start + length // 2 + 3
        changed = XsaveArea(saved.data)
        changed.data[offset] ^= 0x80
        set_xsave(vcpu, changed)
        found = saved.compare(get_xsave(vcpu))
        equal(f"differences in {xfeature.name(number)}", [d.where for d in found], [saved.where(offset)])


@clause("mig.xss-roundtrip", arch="x86", needs=(XSAVES, SHSTK))
def xss_roundtrip(context: Context) -> None:
    """IA32_XSS set by the guest comes over, and XRSTORS of what XSAVES wrote before works; without it it is #GP.

    Source: arch/x86/kvm/x86.c, msrs_to_save_base (MSR_IA32_XSS, since 6.18); Intel SDM volume 1, 13.12.
    """
    guest = shadow_guest(context, user=0)
    set_up_msr(guest.vcpu, Msr.XSS, 0)
    shadow.call(context, guest, "wrmsr", Msr.XSS, shadow.CET & context.host.facts.cpuid.xss)
    shadow.call(context, guest, "xsaves", 0x801)
    saved = shadow.capture(context, guest)
    equal("the saved IA32_XSS", saved[0]["MSRS"].get(Msr.XSS), shadow.CET & context.host.facts.cpuid.xss)
    for omit, faults in (("", 0), ("XSS", 1)):
        copy = shadow.twin(context, guest)
        shadow.restore(copy.vcpu, saved, omit=omit)
        shadow.call(context, copy, "xrstors", 0x801)
        equal(
            f"faults of XRSTORS {'without IA32_XSS' if omit else 'in the copy'}",
            copy.mailbox.read("values", 15),
            faults,
        )
        if faults:
            equal("the fault of XRSTORS without IA32_XSS", copy.fault().name, "#GP")
