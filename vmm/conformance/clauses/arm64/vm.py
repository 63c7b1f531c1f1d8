# SPDX-License-Identifier: Apache-2.0
"""What a small VMM on arm64 stands on: exits, their completion, timers, address size, events."""

from __future__ import annotations

import errno

from vmm._kvm import ffi, lib
from vmm.arm64.guest import Guest
from vmm.arm64.registers import PC, SYSTEM, firmware
from vmm.arm64.vcpu import read, write
from vmm.conformance.arm64.common import GUEST_RUNS, call, enter, finish, plain_guest, plain_vcpu
from vmm.conformance.arm64.instructions import mrs
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, refused_indicative, succeeds, true
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.kvm.exits import Exit, MmioRead, MmioWrite

_UNBACKED = 0xD0000000
_MRS_CVAL, _MRS_CNT = mrs(3, 3, 14, 3, 2), mrs(3, 3, 14, 0, 2)
_DEFAULT_IPA, _LEAST_IPA = 40, 32


def _run(context: Context, guest: Guest) -> Exit:
    return succeeds("KVM_RUN", guest.resume, context.timeout)


def _first_exit(context: Context, guest: Guest) -> None:
    guest.prepare("_start")
    equal("the first exit", _run(context, guest), MmioWrite(_UNBACKED, 8, 0x1122334455667788))


@clause("vm.mmio-exit", arch="arm64", needs=(GUEST_RUNS,))
def mmio_exit(context: Context) -> None:
    """A store to memory that is not there leaves with its address, size and value, and PC still at the store.

    KVM_RUN with immediate_exit moves PC on and runs nothing: a VMM that saves without it stores twice.

    Source: arch/arm64/kvm/mmio.c, io_mem_abort, kvm_handle_mmio_return; Documentation/virt/kvm/api.rst, 5.
    """
    guest = plain_guest(context)
    _first_exit(context, guest)
    place = read(guest.vcpu, PC)
    guest.complete()
    equal("PC after KVM_RUN with immediate_exit", read(guest.vcpu, PC), place + 4)
    equal("the second exit", _run(context, guest), MmioRead(_UNBACKED + 8, 4))
    guest.vcpu.reply(0xCAFEBABE)
    equal("the third exit", _run(context, guest), MmioWrite(_UNBACKED + 16, 1, ord("H")))
    equal("the event", finish(context, guest, "the rest of the run"), guest.DONE)
    equal("what the guest read", guest.mailbox.values[0], 0xCAFEBABE)


@clause("vm.mmio-read-signext", arch="arm64", needs=(GUEST_RUNS,))
def sign_extension(context: Context) -> None:
    """A load from memory that is not there extends the VMM's answer as its instruction says.

    Source: arch/arm64/kvm/mmio.c, kvm_handle_mmio_return.
    """
    guest = plain_guest(context)
    value = 0xF1E2D3C4B5A69788
    for size in (1, 2, 4, 8):
        for signed in (0, 1):
            if size == 8 and signed:
                continue
            guest.prepare("load", _UNBACKED + 0x40, size, signed)
            equal("the exit", _run(context, guest), MmioRead(_UNBACKED + 0x40, size))
            guest.vcpu.reply(value)
            finish(context, guest, f"a guest that loaded {size} bytes")
            low = value & (1 << 8 * size) - 1
            expected = low | ((1 << 64) - (1 << 8 * size)) * (signed and low >> 8 * size - 1)
            equal(f"{size} bytes {'with' if signed else 'without'} sign", guest.mailbox.values[0], expected)


@clause("vm.immediate-exit", arch="arm64", needs=(GUEST_RUNS,))
def immediate_exit(context: Context) -> None:
    """KVM_RUN with immediate_exit set returns EINTR and executes no instruction.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vcpu_ioctl_run; Documentation/virt/kvm/api.rst, 5.
    """
    guest = plain_guest(context)
    guest.prepare("_start")
    guest.vcpu.kvm_run.immediate_exit = 1
    for _ in range(2):
        refused("KVM_RUN", errno.EINTR, guest.vcpu.ioctl_value, lib.KVM_RUN)
        equal("PC", read(guest.vcpu, PC), guest.payload.symbol("_start"))
    guest.vcpu.kvm_run.immediate_exit = 0
    _first_exit(context, guest)


def _make(context: Context, size: int) -> None:
    context.kvm.create_vm(size).close()


@clause("vm.ipa-size", arch="arm64", needs=(capability("KVM_CAP_ARM_VM_IPA_SIZE"),))
def ipa_size(context: Context) -> None:
    """KVM_CREATE_VM takes the size of the guest's address space, 32 bits to KVM_CAP_ARM_VM_IPA_SIZE; 0 means 40.

    Source: arch/arm64/kvm/mmu.c, kvm_init_ipa_range; Documentation/virt/kvm/api.rst, 4.2.
    """
    limit = context.kvm.check_extension(lib.KVM_CAP_ARM_VM_IPA_SIZE)
    context.note(f"KVM_CAP_ARM_VM_IPA_SIZE is {limit}")
    for size in sorted({_LEAST_IPA, 36, _DEFAULT_IPA, limit}):
        if size <= limit:
            succeeds(f"{size} bits", _make, context, size)
    if limit >= _DEFAULT_IPA:
        succeeds("the default", _make, context, 0)
    else:
        refused("the default of 40 bits", errno.EINVAL, _make, context, 0)
    for size in (1, _LEAST_IPA - 1, limit + 1, 64):
        refused(f"{size} bits", errno.EINVAL, _make, context, size)


@clause("vm.timer-swapped-ids", arch="arm64", needs=(GUEST_RUNS,))
def swapped_ids(context: Context) -> None:
    """The ids of CNTV_CVAL_EL0 and CNTVCT_EL0 are exchanged: 0xdf02 is the comparator, 0xdf1a the counter.

    Source: arch/arm64/include/uapi/asm/kvm.h, KVM_REG_ARM_TIMER_CVAL; Documentation/virt/kvm/api.rst, 4.68.
    """
    guest = plain_guest(context)
    comparator, counter = SYSTEM["CNTV_CVAL_EL0"], SYSTEM["CNTVCT_EL0"]
    write(guest.vcpu, comparator, 0x123456789A)
    call(context, guest, "MRS CNTV_CVAL_EL0", "execute", _MRS_CVAL)
    equal("CNTV_CVAL_EL0 in the guest", guest.mailbox.values[0], 0x123456789A)
    start = 1 << 40
    write(guest.vcpu, counter, start)
    call(context, guest, "MRS CNTVCT_EL0", "execute", _MRS_CNT)
    value = guest.mailbox.values[0]
    true("CNTVCT_EL0 in the guest", start <= value < start << 1, value, f"from {start:#x} on")
    true("CNTVCT_EL0 counts on", read(guest.vcpu, counter) >= value, read(guest.vcpu, counter), f"{value:#x} or more")
    equal("CNTV_CVAL_EL0", read(guest.vcpu, comparator), 0x123456789A)


@clause("vm.fw-bitmaps", arch="arm64")
def firmware_bitmaps(context: Context) -> None:
    """The hypercalls offered may be reduced before the first run, and after it not be changed: EBUSY.

    A bit that KVM does not offer is EINVAL, and the same value is accepted at any time.

    Source: arch/arm64/kvm/hypercalls.c, kvm_arm_set_fw_reg_bmap; Documentation/virt/kvm/arm/fw-pseudo-registers.rst;
    Linux 6.0.
    """
    listed = set(plain_vcpu(context).reg_list())
    registers = [register for number in range(3) if (register := firmware(number, bitmap=True)) in listed]
    if not registers:
        context.skip("KVM_GET_REG_LIST has no bitmap of hypercalls")
    for register in registers:
        vcpu = plain_vcpu(context)
        offered = succeeds(f"reading {register}", read, vcpu, register)
        true(register.name, offered != 0, offered, "something")
        what = f"{register} with a bit that is not offered"
        refused_indicative(context, what, errno.EINVAL, write, vcpu, register, offered | 1 << 63)
        succeeds(f"{register} = 0", write, vcpu, register, 0)
        equal(register.name, read(vcpu, register), 0)
        enter(vcpu)
        succeeds(f"{register} = 0 after the first run", write, vcpu, register, 0)
        what = f"another {register} after the first run"
        refused_indicative(context, what, errno.EBUSY, write, vcpu, register, offered)
        equal(register.name, read(vcpu, register), 0)


@clause("vm.events", arch="arm64", needs=(capability("KVM_CAP_VCPU_EVENTS"),))
def events(context: Context) -> None:
    """KVM_SET_VCPU_EVENTS keeps a pending SError with its syndrome, and refuses reserved fields with EINVAL.

    Source: arch/arm64/kvm/guest.c, __kvm_arm_vcpu_set_events; Documentation/virt/kvm/api.rst, 4.31, 4.32.
    """
    vcpu = plain_vcpu(context)

    def set_events(**fields: object) -> None:
        vcpu.set_events(ffi.new("struct kvm_vcpu_events *", {"exception": fields}))

    start = succeeds("KVM_GET_VCPU_EVENTS", vcpu.get_events).exception
    equal("a pending SError", start.serror_pending, 0)
    ras = start.serror_has_esr
    context.note(f"serror_has_esr is {ras}")
    pending = {"serror_pending": 1, "serror_has_esr": ras, "serror_esr": 0x1234 * ras}
    succeeds("KVM_SET_VCPU_EVENTS with a pending SError", set_events, **pending)
    found = vcpu.get_events().exception
    equal("a pending SError", found.serror_pending, 1)
    equal("its syndrome", found.serror_esr, 0x1234 * ras)
    equal("ext_dabt_pending", found.ext_dabt_pending, 0)
    reserved = ffi.new("struct kvm_vcpu_events *")
    reserved.reserved[11] = 1
    refused("a reserved field", errno.EINVAL, vcpu.set_events, reserved)
    refused("padding", errno.EINVAL, set_events, pad=[0, 0, 0, 0, 1])
    if ras:
        refused("a syndrome of more than an ISS", errno.EINVAL, set_events, serror_pending=1, serror_has_esr=1,
                serror_esr=1 << 25)  # fmt: skip
