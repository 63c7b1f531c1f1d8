# SPDX-License-Identifier: Apache-2.0
"""The time stamp counter: it counts on from what either side writes, its adjustment goes with it, its frequency."""

from __future__ import annotations

import errno
import time

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds, true
from vmm.conformance.registry import clause
from vmm.conformance.x86.lists import Answer, ListGuest
from vmm.conformance.x86.world import MSR_GROUND
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import msr
from vmm.x86.cpuid_names import PLACES
from vmm.x86.guest import Guest
from vmm.x86.msr_names import Msr

_ALL = (1 << 64) - 1
# Far from each other, and from what counts since a VM was made: a write that is close to that sets nothing.
_VALUES = (1 << 44, 0x7123_4567_89AB_CDEF, 1 << 50)
# Of how long it may seem to the host that something took: clocks are steered, and frequencies known to parts of 1000.
_SLACK = 1.25
_TSC_CONTROL = 60  # KVM_CAP_TSC_CONTROL
_TSC_OFFSET = (0, 0)  # KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET
# By which a vCPU that is not synchronized is behind.
_PAUSE = 0.02
# Milliseconds between two vCPUs that are synchronized: where the host's TSC is no clock KVM goes by another one.
_NEAR = 2


def _khz(context: Context, vcpu: Vcpu) -> int:
    try:
        return vcpu.ioctl_value(lib.KVM_GET_TSC_KHZ)
    except KvmError as error:
        context.skip(f"KVM does not say how fast the TSC is: KVM_GET_TSC_KHZ is {error.errno_name}")
        raise AssertionError from error


class _Clock:
    """How many cycles may have passed since it was made, with a tick of a slow machine's clock added."""

    def __init__(self, khz: int) -> None:
        self._khz, self._start = khz, time.monotonic()

    def judge(self, what: str, value: int, least: int) -> None:
        """A counter that had this value has to be there or beyond, but not by more than the time that went by."""
        passed = int(((time.monotonic() - self._start) * _SLACK + 0.05) * 1000 * self._khz)
        true(what, (value - least) & _ALL <= passed, f"{value:#x}", f"{least:#x} or up to {passed} more")


@clause("world.tsc-kept", arch="x86")
def kept(context: Context) -> None:
    """IA32_TSC counts on from what KVM_SET_MSRS writes, for the host and the guest, and TSC_ADJUST stays as it is.

    Source: Documentation/virt/kvm/api.rst, 4.19; arch/x86/kvm/x86.c, kvm_synchronize_tsc, kvm_get_msr_common.
    """
    lists = ListGuest(context, context.host.facts.cpuid)
    vcpu = lists.guest.vcpu
    khz = _khz(context, vcpu)
    for value in _VALUES:
        clock = _Clock(khz)
        equal(f"IA32_TSC = {value:#x} accepted", msr.set_msr(vcpu, Msr.TSC, value), True)
        clock.judge("IA32_TSC by KVM_GET_MSRS", msr.get_msr(vcpu, Msr.TSC), value)
        (answer,) = lists.read_msrs([Msr.TSC])
        equal("a fault of RDMSR of IA32_TSC", answer.vector, -1)
        clock.judge("IA32_TSC by RDMSR", answer.value, value)
        true("IA32_TSC behind the guest", msr.get_msr(vcpu, Msr.TSC) >= answer.value, "less", "more")
        equal("TSC_ADJUST", msr.get_msr(vcpu, Msr.TSC_ADJUST), 0)


def _adjusts(context: Context) -> bool:
    (function, index, register), bit = PLACES["TSC_ADJUST"]
    return bool(getattr(context.host.facts.cpuid.get(function, index), register) >> bit & 1)


@clause("world.tsc-written-by-guest", arch="x86")
def written_by_guest(context: Context) -> None:
    """A guest that writes IA32_TSC or TSC_ADJUST moves the other by as much.

    Source: Intel SDM volume 3, 19.17.3; arch/x86/kvm/x86.c, kvm_set_msr_common, adjust_tsc_offset_guest.
    """
    if not _adjusts(context):
        context.skip("needs TSC_ADJUST for guests: KVM_GET_SUPPORTED_CPUID lacks it")
    lists = ListGuest(context, context.host.facts.cpuid)
    vcpu = lists.guest.vcpu
    clock = _Clock(_khz(context, vcpu))
    # What neither of the two writes changes but by time.
    start = _unadjusted(vcpu)
    for index, value in ((Msr.TSC, 1 << 45), (Msr.TSC_ADJUST, 0x1234_5678_9ABC), (Msr.TSC, 1 << 51)):
        equal(f"WRMSR of {msr.name(index)}", lists.write_msrs([(index, value)]), [Answer(0)])
        now = msr.get_msr(vcpu, index)
        if index == Msr.TSC:
            clock.judge("IA32_TSC after WRMSR", now, value)
        else:
            equal("TSC_ADJUST after WRMSR", now, value)
        clock.judge(f"IA32_TSC without TSC_ADJUST after WRMSR of {msr.name(index)}", _unadjusted(vcpu), start)


def _unadjusted(vcpu: Vcpu) -> int:
    counter, adjustment = msr.get_msrs(vcpu, [Msr.TSC, Msr.TSC_ADJUST])
    return (counter - adjustment) & _ALL


@clause("world.tsc-khz-kept", arch="x86")
def frequency(context: Context) -> None:
    """A TSC frequency that KVM can give a vCPU is taken and shown, 0 is the host's, what it cannot give is EINVAL.

    The host's is what its kernel has measured, and measures better a second after its start.

    Source: Documentation/virt/kvm/api.rst, 4.55, 4.56; arch/x86/kvm/x86.c, kvm_set_tsc_khz, set_tsc_khz.
    """
    vcpu = MSR_GROUND.vcpu(context)
    fresh = _khz(context, vcpu)
    succeeds("KVM_SET_TSC_KHZ of 0", vcpu.ioctl_value, lib.KVM_SET_TSC_KHZ, 0)
    own = vcpu.ioctl_value(lib.KVM_GET_TSC_KHZ)
    true("KVM_GET_TSC_KHZ after 0", abs(own - fresh) <= fresh // 100, own, f"{fresh}, within 1 %")
    scales = context.kvm.check_extension(_TSC_CONTROL) > 0
    # Without scaling a faster one is reached by catching up at each entry; a slower one cannot be.
    for khz in (own * 5 // 4, *((own * 3 // 4,) if scales else ()), own * 2, own):
        succeeds(f"KVM_SET_TSC_KHZ of {khz}", vcpu.ioctl_value, lib.KVM_SET_TSC_KHZ, khz)
        equal("KVM_GET_TSC_KHZ", vcpu.ioctl_value(lib.KVM_GET_TSC_KHZ), khz)
    wrong = 1 << 31 if scales else own // 2
    refused(f"KVM_SET_TSC_KHZ of {wrong}", errno.EINVAL, vcpu.ioctl_value, lib.KVM_SET_TSC_KHZ, wrong)


@clause("world.tsc-synchronized", arch="x86")
def synchronized(context: Context) -> None:
    """A vCPU whose TSC is written within a second of what another one's is, or with 0, is as far as that one.

    So a restore that writes one after the other leaves no differences between them.

    Source: arch/x86/kvm/x86.c, kvm_synchronize_tsc.
    """
    guest = context.own(Guest(context.kvm, "chain", vcpus=2))
    first, second = (processor.vcpu for processor in guest.processors)
    khz = _khz(context, first)
    for value in (1 << 44, 1 << 50):
        clock = _Clock(khz)
        equal("IA32_TSC of the first vCPU accepted", msr.set_msr(first, Msr.TSC, value), True)
        time.sleep(_PAUSE)
        for written in (value, 0):
            equal(f"IA32_TSC = {written:#x} accepted", msr.set_msr(second, Msr.TSC, written), True)
            before, now, after = (msr.get_msr(vcpu, Msr.TSC) for vcpu in (first, second, first))
            near = before - _NEAR * khz <= now <= after + _NEAR * khz
            true(f"IA32_TSC of the second after {written:#x}", near, f"{now:#x}", f"{before:#x} to {after:#x}")
        clock.judge("IA32_TSC of the first", before, value)


@clause("world.tsc-offset", arch="x86")
def offset(context: Context) -> None:
    """KVM_VCPU_TSC_OFFSET is what a vCPU's TSC is ahead of the host's: it is kept, and moves the TSC by its change.

    Source: Documentation/virt/kvm/devices/vcpu.rst, 4.1; arch/x86/kvm/x86.c, kvm_arch_tsc_get_attr,
    kvm_arch_tsc_set_attr.
    """
    vcpu = MSR_GROUND.vcpu(context)
    khz = _khz(context, vcpu)
    number = ffi.new("uint64_t *")
    try:
        vcpu.has_attribute(*_TSC_OFFSET)
    except KvmError as error:
        context.skip(f"needs KVM_VCPU_TSC_OFFSET: KVM_HAS_DEVICE_ATTR is {error.errno_name}")
    succeeds("KVM_GET_DEVICE_ATTR", vcpu.get_attribute, *_TSC_OFFSET, number)
    clock, start, least = _Clock(khz), number[0], msr.get_msr(vcpu, Msr.TSC)
    for change in (1 << 44, -(1 << 40), 0x1234_5678_9ABC):
        number[0] = wanted = (start + change) & _ALL
        succeeds(f"KVM_SET_DEVICE_ATTR of {wanted:#x}", vcpu.set_attribute, *_TSC_OFFSET, number)
        clock.judge(f"IA32_TSC after {wanted:#x}", msr.get_msr(vcpu, Msr.TSC), (least + change) & _ALL)
        number[0] = 0
        succeeds("KVM_GET_DEVICE_ATTR", vcpu.get_attribute, *_TSC_OFFSET, number)
        equal("KVM_VCPU_TSC_OFFSET", number[0], wanted)
