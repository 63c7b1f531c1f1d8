# SPDX-License-Identifier: Apache-2.0
"""KVM's own MSRs and Hyper-V's: what KVM writes where they point, and the CPUID bits that a guest needs for them."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, true
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import STRICT_MSRS
from vmm.conformance.x86.lists import GP, Answer, ListGuest
from vmm.kvm.vcpu import Vcpu
from vmm.state.x86.world.msr_row import KVM_PAGES
from vmm.x86 import msr
from vmm.x86.msr_names import Msr

_WALL, _CLOCK, _STEAL, _PAGE = (KVM_PAGES + 0x1000 * page for page in range(4))
_POISON = b"\x5a" * 64
_DAY = 86_400
# struct pvclock_wall_clock, pvclock_vcpu_time_info, kvm_steal_time: arch/x86/include/asm/pvclock-abi.h, kvm_para.h.
_WALL_CLOCK, _TIME, _STOLEN = struct.Struct("<III"), struct.Struct("<I4xQQIbB2x"), struct.Struct("<QII")
# By the bit of CPUID leaf 40000001H, EAX, that a guest needs; a legal value, not 0.
_FEATURES: Mapping[int, tuple[tuple[int, int], ...]] = {
    0: ((Msr.KVM_WALL_CLOCK, _WALL), (Msr.KVM_SYSTEM_TIME, _CLOCK)),
    3: ((Msr.KVM_WALL_CLOCK_NEW, _WALL), (Msr.KVM_SYSTEM_TIME_NEW, _CLOCK)),
    4: ((Msr.KVM_ASYNC_PF_EN, _PAGE),), 6: ((Msr.KVM_PV_EOI_EN, _PAGE),),
    12: ((Msr.KVM_POLL_CONTROL, 1),), 14: ((0x4B56_4D07, 1),),
}  # fmt: skip
_LEAF = 0x4000_0001
_RET = 0xC3
_VMCALL, _VMMCALL = b"\x0f\x01\xc1", b"\x0f\x01\xd9"


def _run(lists: ListGuest) -> None:
    lists.read_msrs([Msr.PAT])


def _set(vcpu: Vcpu, index: int, value: int) -> None:
    equal(f"{msr.name(index)} = {value:#x} accepted", msr.set_msr(vcpu, index, value), True)


@clause("world.kvm-pages", arch="x86")
def pages(context: Context) -> None:
    """KVM writes the wall clock, the vCPU's clock and its stolen time where the MSRs point while they are enabled.

    Source: Documentation/virt/kvm/x86/msr.rst; arch/x86/kvm/x86.c, kvm_write_wall_clock, kvm_guest_time_update,
    record_steal_time.
    """
    lists = ListGuest(context, context.host.facts.cpuid)
    vcpu, memory = lists.guest.vcpu, lists.guest.memory
    for address in (_WALL, _CLOCK, _STEAL):
        memory.write(address, bytes(64))
    began = time.monotonic()
    _set(vcpu, Msr.KVM_WALL_CLOCK_NEW, _WALL)
    _set(vcpu, Msr.KVM_SYSTEM_TIME_NEW, _CLOCK | 1)
    counted = bool(context.host.facts.cpuid.get(_LEAF).eax >> 5 & 1)
    if counted:
        _set(vcpu, Msr.KVM_STEAL_TIME, _STEAL | 1)
    _run(lists)
    version, seconds, nanoseconds = _WALL_CLOCK.unpack(memory.read(_WALL, _WALL_CLOCK.size))
    true("the wall clock's version", version > 0 and version % 2 == 0, version, "even and not 0")
    true("the wall clock's nanoseconds", nanoseconds < 10**9, nanoseconds, "below 10^9")
    true("the wall clock's seconds", abs(seconds - time.time()) < _DAY, seconds, "about now")
    version, _stamp, system, factor, _shift, _flags = _TIME.unpack(memory.read(_CLOCK, _TIME.size))
    true("the clock's version", version > 0 and version % 2 == 0, version, "even and not 0")
    true("the clock's factor", factor > 0, factor, "not 0")
    most = int((time.monotonic() - began + _DAY) * 10**9)
    true("the clock's time", system < most, system, f"less than {most} ns")
    if counted:
        _stolen, version, flags = _STOLEN.unpack(memory.read(_STEAL, _STOLEN.size))
        true("the stolen time's version", version > 0 and version % 2 == 0, version, "even and not 0")
        equal("the stolen time's flags", flags, 0)
    _disabled(lists, counted=counted)


def _disabled(lists: ListGuest, *, counted: bool) -> None:
    """Without the lowest bit nothing is written any more."""
    vcpu, memory = lists.guest.vcpu, lists.guest.memory
    _set(vcpu, Msr.KVM_SYSTEM_TIME_NEW, _CLOCK)
    if counted:
        _set(vcpu, Msr.KVM_STEAL_TIME, _STEAL)
    for address in (_CLOCK, _STEAL):
        memory.write(address, _POISON)
    # Every vCPU's clock is written anew for that.
    lists.guest.vm.ioctl(lib.KVM_SET_CLOCK, ffi.new("struct kvm_clock_data *", {"clock": 10**9}))
    _run(lists)
    equal("where the clock was", memory.read(_CLOCK, 64), _POISON)
    equal("where the stolen time was", memory.read(_STEAL, 64), _POISON)


@clause("world.kvm-features", arch="x86", needs=(STRICT_MSRS,))
def features(context: Context) -> None:
    """With KVM_CAP_ENFORCE_PV_FEATURE_CPUID a vCPU has those of KVM's MSRs for which its CPUID has a feature.

    Source: Documentation/virt/kvm/api.rst, KVM_CAP_ENFORCE_PV_FEATURE_CPUID; arch/x86/kvm/x86.c, guest_pv_has.
    """
    if not context.kvm.check_extension(lib.KVM_CAP_ENFORCE_PV_FEATURE_CPUID):
        context.skip("needs KVM_CAP_ENFORCE_PV_FEATURE_CPUID: it is 0")
    table = context.host.facts.cpuid
    offered = [bit for bit in _FEATURES if table.get(_LEAF).eax >> bit & 1]
    for had in (sum(1 << bit for bit in offered[::2]), sum(1 << bit for bit in offered[1::2])):
        lists = ListGuest(context, table.edit(_LEAF, eax=had))
        vcpu = lists.guest.vcpu
        enforce = {"cap": lib.KVM_CAP_ENFORCE_PV_FEATURE_CPUID, "args": [1]}
        vcpu.ioctl(lib.KVM_ENABLE_CAP, ffi.new("struct kvm_enable_cap *", enforce))
        pairs = {pair: had >> bit & 1 for bit in offered for pair in _FEATURES[bit]}
        for (index, value), there in pairs.items():
            if index != Msr.KVM_ASYNC_PF_EN:  # which needs a local APIC in the kernel as well
                what = f"{msr.name(index)} = {value:#x} taken with the features {had:#x}"
                equal(what, msr.set_msr(vcpu, index, value), bool(there))
        reads = lists.read_msrs([index for index, _ in pairs])
        for (index, _), answer, there in zip(pairs, reads, pairs.values(), strict=True):
            what = f"RDMSR of {msr.name(index)} with the features {had:#x}"
            equal(what, answer.vector, -1 if there else GP)
        writes = lists.write_msrs([(index, 0) for index, _ in pairs])
        for (index, _), answer, there in zip(pairs, writes, pairs.values(), strict=True):
            equal(f"WRMSR of {msr.name(index)} with the features {had:#x}", answer, Answer(0, -1 if there else GP))


@clause("world.hyperv-pages", arch="x86")
def hyperv_pages(context: Context) -> None:
    """Hyper-V's hypercall page has a hypercall and a return; of the assist page KVM clears four bytes alone.

    Source: Hyper-V TLFS, 3.13, 10.3.4; arch/x86/kvm/hyperv.c, kvm_hv_set_msr_pw, kvm_hv_set_msr.
    """
    lists = ListGuest(context, context.host.facts.cpuid)
    vcpu, memory = lists.guest.vcpu, lists.guest.memory
    if msr.try_get(vcpu, 0x4000_0000) is None:
        context.skip("needs Hyper-V's MSRs: KVM does not let GUEST_OS_ID be read")
    memory.write(_PAGE, _POISON)
    memory.write(_CLOCK, _POISON)
    _set(vcpu, 0x4000_0000, 0x8100_0000_0000_0001)
    _set(vcpu, 0x4000_0001, _PAGE | 1)
    _set(vcpu, 0x4000_0073, _CLOCK | 1)
    code = memory.read(_PAGE, 8)
    true("the hypercall", code[:3] in (_VMCALL, _VMMCALL), code[:3], "VMCALL or VMMCALL")
    equal("what is behind the hypercall", code[3], _RET)
    equal("the assist page", memory.read(_CLOCK, 64), bytes(4) + _POISON[4:])
    _set(vcpu, 0x4000_0000, 0)
    equal("HYPERCALL once there is no identity", msr.get_msr(vcpu, 0x4000_0001), _PAGE)
