# SPDX-License-Identifier: Apache-2.0
"""MSRs: those that every KVM lists, and what either side wrote as the other one reads it."""

from __future__ import annotations

import struct

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged
from vmm.conformance.needs import Need
from vmm.conformance.registry import clause
from vmm.conformance.x86.lists import ANSWERS, LIST, Answer, ListGuest, answers
from vmm.kvm.vcpu import Vcpu
from vmm.probe.host import Host
from vmm.x86 import boot, msr
from vmm.x86.cpuid import Cpuid, set_cpuid
from vmm.x86.cpuid_names import PLACES
from vmm.x86.guest import Guest
from vmm.x86.msr_names import KNOWN, Msr
from vmm.x86.registers import get_regs, get_sregs, set_regs

_SMM = "KVM_CAP_X86_SMM"
# What each Linux from 6.1 to 7.2 lists, by what it takes: nothing, or one of these features in what KVM supports.
# Source: arch/x86/kvm/x86.c, msrs_to_save_base (msrs_to_save_all in 6.1), emulated_msrs_all, kvm_probe_msr_to_save;
# vmx_has_emulated_msr, svm_has_emulated_msr; the lists in tests/data/probes.
_ALWAYS = (
    Msr.SYSENTER_CS, Msr.SYSENTER_ESP, Msr.SYSENTER_EIP, Msr.STAR, Msr.LSTAR, Msr.CSTAR, Msr.SYSCALL_MASK,
    Msr.KERNEL_GS_BASE, Msr.TSC, Msr.PAT, Msr.TSC_ADJUST, Msr.TSC_DEADLINE, Msr.ARCH_CAPABILITIES, Msr.MISC_ENABLE,
    Msr.MCG_STATUS, Msr.MCG_CTL, Msr.SMI_COUNT, Msr.PLATFORM_INFO, Msr.MISC_FEATURES_ENABLES, Msr.UCODE_REV,
    0x1FC, 0xC001_0015, Msr.KVM_WALL_CLOCK, Msr.KVM_SYSTEM_TIME, Msr.KVM_WALL_CLOCK_NEW, Msr.KVM_SYSTEM_TIME_NEW,
    Msr.KVM_ASYNC_PF_EN, Msr.KVM_STEAL_TIME, Msr.KVM_PV_EOI_EN, Msr.KVM_POLL_CONTROL, Msr.KVM_ASYNC_PF_INT,
    0x4B56_4D07,
)  # fmt: skip
_BY_FEATURE: dict[tuple[str, ...], tuple[int, ...]] = {
    ("RDTSCP", "RDPID"): (Msr.TSC_AUX,),
    ("WAITPKG",): (Msr.UMWAIT_CONTROL,),
    ("XFD",): (Msr.XFD, Msr.XFD_ERR),
    ("SHSTK", "IBT"): (Msr.U_CET, Msr.S_CET),
    ("SHSTK",): (Msr.PL0_SSP, Msr.PL1_SSP, Msr.PL2_SSP, Msr.PL3_SSP, Msr.INT_SSP_TAB),
    ("SPEC_CTRL", "AMD_IBRS"): (Msr.SPEC_CTRL,),
    ("VMX",): (
        Msr.FEATURE_CONTROL, 0x480, 0x485, 0x486, 0x488, 0x48A, 0x48B, 0x48C, 0x48D, 0x48E, 0x48F, 0x490, 0x491,
    ),
    ("SVM",): (0xC001_0117,),
    ("TSCRATEMSR",): (0xC000_0104,),
}  # fmt: skip
_PMC, _EVENT_SELECT, _MOST_COUNTERS = 0xC1, 0x186, 8

# What a value may be: any address in the lower half, 32 bits, or any of an MSR's own width.
_VALUES: dict[int, int] = {
    Msr.FS_BASE: 0x0000_7123_4567_8000,
    Msr.GS_BASE: 0xFFFF_8765_4321_0000,
    Msr.KERNEL_GS_BASE: 0x0000_7654_3210_F000,
    Msr.STAR: 0x0023_0010_1234_5678,
    Msr.LSTAR: 0xFFFF_8000_DEAD_B000,
    Msr.CSTAR: 0xFFFF_8000_CAFE_C000,
    Msr.SYSCALL_MASK: 0x0004_7700,
    Msr.SYSENTER_CS: 0x0010,
    Msr.SYSENTER_ESP: 0x7EAD_D000,
    Msr.SYSENTER_EIP: 0x7BAD_E000,
}
# Added once for each further set of values; every one of them stays valid.
_STEP = 0x100


def _has(table: Cpuid, feature: str) -> bool:
    (function, index, register), bit = PLACES[feature]
    return bool(getattr(table.get(function, index), register) >> bit & 1)


def _baseline(context: Context) -> list[int]:
    """The MSRs that this KVM has to list."""
    table = context.host.facts.cpuid
    expected = [int(index) for index in _ALWAYS]
    for features, indices in _BY_FEATURE.items():
        expected += [int(index) for index in indices if any(_has(table, feature) for feature in features)]
    if context.host.facts.capabilities[_SMM]:
        expected.append(Msr.SMBASE)
    if table.xss:
        expected.append(Msr.XSS)
    monitoring = table.get(0xA).eax
    counters = min(monitoring >> 8 & 0xFF, _MOST_COUNTERS) if monitoring & 0xFF else 0
    return expected + [base + number for base in (_PMC, _EVENT_SELECT) for number in range(counters)]


@clause("msr.list-baseline", arch="x86")
def list_baseline(context: Context) -> None:
    """KVM_GET_MSR_INDEX_LIST has, each once, the MSRs that every KVM since Linux 6.1 lists for what it supports.

    A VMM saves what is listed: an MSR that a later kernel leaves out is lost in a migration. Further ones are noted.

    Source: Documentation/virt/kvm/api.rst 4.3; arch/x86/kvm/x86.c, kvm_init_msr_lists.
    """
    listed = msr.index_list(context.kvm)
    missing = [msr.name(index) for index in _baseline(context) if index not in listed]
    equal("MSRs that are missing in the list", missing, [])
    equal("MSRs that are listed twice", sorted(msr.name(one) for one in set(listed) if listed.count(one) > 1), [])
    further = [f"{index:#x}" for index in listed if index not in KNOWN]
    if further:
        context.note(f"listed, and without a name here: {' '.join(further)}")


def _values(step: int) -> dict[int, int]:
    """Values for the MSRs, others for each ``step``."""
    return {index: value + step * _STEP for index, value in _VALUES.items()}


def _judge_host(what: str, vcpu: Vcpu, values: dict[int, int]) -> None:
    """KVM_GET_MSRS and, for the bases, KVM_GET_SREGS have to give these values."""
    read = dict(zip(values, msr.get_msrs(vcpu, values), strict=False))
    for index, value in values.items():
        equal(f"{msr.name(index)} by KVM_GET_MSRS {what}", read.get(index), value)
    sregs = get_sregs(vcpu)
    bases = (sregs.fs.base, sregs.gs.base)
    equal(f"bases of FS and GS by KVM_GET_SREGS {what}", bases, (values[Msr.FS_BASE], values[Msr.GS_BASE]))


def _judge_guest(what: str, read: list[Answer], values: dict[int, int]) -> None:
    for (index, value), answer in zip(values.items(), read, strict=True):
        equal(f"{msr.name(index)} by RDMSR {what}", answer, Answer(value))


def _set(vcpu: Vcpu, values: dict[int, int]) -> None:
    equal("MSRs that KVM_SET_MSRS set", msr.set_msrs(vcpu, values), len(values))


@clause("msr.host-writes", arch="x86")
def host_writes(context: Context) -> None:
    """What KVM_SET_MSRS writes the guest reads by RDMSR, and its FS and GS have the bases that were written.

    The bases of segments, and the MSRs of SYSCALL and SYSENTER.

    Source: arch/x86/kvm/x86.c, do_set_msr, kvm_set_msr_common; arch/x86/kvm/vmx/vmx.c, vmx_set_msr;
    arch/x86/kvm/svm/svm.c, svm_set_msr.
    """
    lists = ListGuest(context, context.host.facts.cpuid)
    guest, vcpu = lists.guest, lists.guest.vcpu
    for step in range(2):
        values = _values(step)
        lists.prepare("rdmsr_list", struct.pack(f"<{len(values)}Q", *values), len(values))
        _set(vcpu, values)
        _judge_guest("after KVM_SET_MSRS", answers(lists.finish("RDMSR")), values)
        _judge_host("behind the guest", vcpu, values)
    guest.memory.write(ANSWERS, struct.pack("<QQ", 0x0F50_0F50, 0x6050_6050))
    guest.prepare("based", privilege=guest.USER)
    _set(vcpu, {Msr.FS_BASE: ANSWERS, Msr.GS_BASE: ANSWERS + 8})
    with judged("loads by FS and GS in the guest"):
        guest.finish(guest.resume(context.timeout))
    equal("words at FS:0 and GS:0", guest.mailbox.values[:2], [0x0F50_0F50, 0x6050_6050])


@clause("msr.guest-writes", arch="x86")
def guest_writes(context: Context) -> None:
    """What the guest writes by WRMSR KVM_GET_MSRS gives, and KVM_GET_SREGS for the bases of FS and GS.

    Source: arch/x86/kvm/x86.c, kvm_emulate_wrmsr, do_get_msr; arch/x86/kvm/vmx/vmx.c, vmx_get_msr;
    arch/x86/kvm/svm/svm.c, svm_get_msr.
    """
    lists = ListGuest(context, context.host.facts.cpuid)
    for step in range(2):
        values = _values(step)
        written = lists.write_msrs(list(values.items()))
        for index, answer in zip(values, written, strict=True):
            equal(f"WRMSR of {msr.name(index)}, and an exception", answer, Answer(0))
        _judge_host("after WRMSR", lists.guest.vcpu, values)


def _offers_aux(host: Host) -> tuple[bool, str]:
    features = [name for name in ("RDTSCP", "RDPID") if _has(host.facts.cpuid, name)]
    return "RDTSCP" in features, f"KVM offers {' and '.join(features) or 'neither RDTSCP nor RDPID'}"


@clause("msr.tsc-aux", arch="x86", needs=(Need("RDTSCP for guests", _offers_aux),))
def tsc_aux(context: Context) -> None:
    """TSC_AUX is what either side wrote, for KVM_GET_MSRS, RDMSR and RDTSCP, and each vCPU of a VM has its own.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_setup_uret_msrs; arch/x86/kvm/svm/svm.c, svm_set_msr, tsc_aux_uret_slot;
    Intel SDM volume 2, RDTSCP.
    """
    guest, vcpus = _three(context)
    operand = struct.pack("<Q", Msr.TSC_AUX)
    for number, vcpu in enumerate(vcpus):
        _set(vcpu, {Msr.TSC_AUX: 0x0102_0304 + number})
    for number, vcpu in enumerate(vcpus):
        expected = 0x0102_0304 + number
        _start(guest, vcpu, "rdmsr_list", operand, 1)
        equal(f"RDMSR of vCPU {number}", _finish(context, guest, vcpu, 1), [Answer(expected)])
        _start(guest, vcpu, "aux", operand, 1)
        _finish(context, guest, vcpu, 1)
        equal(f"RDTSCP of vCPU {number}", guest.mailbox.values[0], expected)
    for number, vcpu in enumerate(vcpus):
        _start(guest, vcpu, "wrmsr_list", struct.pack("<QQ", Msr.TSC_AUX, 0x8070_6050 + number), 1)
        equal(f"WRMSR of vCPU {number}", _finish(context, guest, vcpu, 1), [Answer(0)])
    for number, vcpu in enumerate(vcpus):
        expected = 0x8070_6050 + number
        equal(f"KVM_GET_MSRS of vCPU {number}", msr.get_msrs(vcpu, [Msr.TSC_AUX]), [expected])
        _start(guest, vcpu, "aux", operand, 1)
        _finish(context, guest, vcpu, 1)
        equal(f"RDTSCP of vCPU {number} after WRMSR", guest.mailbox.values[0], expected)


def _three(context: Context) -> tuple[Guest, list[Vcpu]]:
    """A guest and three vCPUs of it, in long mode at CPL0."""
    table = context.host.facts.cpuid
    guest = context.own(Guest(context.kvm, "lists", cpuid=table))
    vcpus = [guest.vcpu, *(guest.vm.create_vcpu(identifier) for identifier in (1, 2))]
    for identifier, vcpu in enumerate(vcpus):
        if identifier:
            set_cpuid(vcpu, table.with_apic_id(identifier))
        boot.enter(vcpu, privilege=0)
    return guest, vcpus


def _start(guest: Guest, vcpu: Vcpu, entry: str, data: bytes, count: int) -> None:
    """Point a vCPU at an entry point with a list; nothing but RIP and RSP of its registers changes."""
    guest.memory.write(LIST, data)
    for number, value in enumerate((LIST, count, ANSWERS)):
        guest.mailbox.write("params", value, number)
    regs = get_regs(vcpu)
    regs.rip, regs.rsp = guest.payload.symbol(entry), guest.payload.symbol("kernel_stack_top")
    regs.rflags = 2
    set_regs(vcpu, regs)


def _finish(context: Context, guest: Guest, vcpu: Vcpu, count: int) -> list[Answer]:
    exit = vcpu.run(context.timeout)
    equal("how a vCPU leaves", guest.event(exit), guest.DONE)
    vcpu.complete()
    return answers(guest.memory.read(ANSWERS, 16 * count))


@clause("msr.vcpus-keep-their-own", arch="x86")
def vcpus_keep_their_own(context: Context) -> None:
    """Three vCPUs of one VM that run in turn keep their own values of these MSRs, written by the host or the guest.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_prepare_switch_to_guest; arch/x86/kvm/svm/svm.c,
    svm_prepare_switch_to_guest, svm_vcpu_load; arch/x86/kvm/x86.c, kvm_set_user_return_msr.
    """
    guest, vcpus = _three(context)
    own = [_values(number) for number in range(len(vcpus))]
    count = len(own[0])
    reading = struct.pack(f"<{count}Q", *own[0])
    for vcpu, values in zip(vcpus, own, strict=True):
        _set(vcpu, values)

    def judge(how: str) -> None:
        for number, (vcpu, values) in enumerate(zip(vcpus, own, strict=True)):
            _start(guest, vcpu, "rdmsr_list", reading, count)
            _judge_guest(f"of vCPU {number}, {how}", _finish(context, guest, vcpu, count), values)
        for number, (vcpu, values) in enumerate(zip(vcpus, own, strict=True)):
            _judge_host(f"of vCPU {number}, {how}", vcpu, values)

    judge("written by KVM_SET_MSRS")
    own = [_values(number) for number in range(3, 3 + len(vcpus))]
    for number, (vcpu, values) in enumerate(zip(vcpus, own, strict=True)):
        _start(guest, vcpu, "wrmsr_list", b"".join(struct.pack("<QQ", *one) for one in values.items()), count)
        equal(f"faults of WRMSR of vCPU {number}", _finish(context, guest, vcpu, count), [Answer(0)] * count)
    judge("written by WRMSR")
