# SPDX-License-Identifier: Apache-2.0
"""Hypercalls by the SMC calling convention: what is offered, what a VMM takes back, and whose that is."""

from __future__ import annotations

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.guest import Guest
from vmm.arm64.registers import Register, firmware
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.common import GUEST_RUNS, call, plain_guest
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, succeeds, true
from vmm.conformance.registry import clause

_NOT_SUPPORTED = (1 << 64) - 1
_STANDARD, _HYPERVISOR, _VENDOR = (firmware(number, bitmap=True) for number in range(3))
_VERSION, _ARCH_FEATURES, _PSCI_FEATURES = 0x80000000, 0x80000001, 0x8400000A
_TRNG_VERSION, _PV_TIME = 0x84000050, 0xC5000020
_VENDOR_FEATURES, _VENDOR_UID, _PTP = 0x86000000, 0x8600FF01, 0x86000001
# KVM's UUID, 28b46fb6-2ec5-11e9-a9ca-4b564d003a74, as its four words.
_UID = [0xB66FB428, 0xE911C52E, 0x564BCAA9, 0x743A004D]
# Firmware registers and the call whose answer they tell of, by level: not available, available, not required.
_WORKAROUNDS = {firmware(1): 0x80008000, firmware(3): 0x80003FFF}
_BY_LEVEL = {0: _NOT_SUPPORTED, 1: 0, 2: 1}


def _answer(context: Context, guest: Guest, *numbers: int) -> list[int]:
    """What a call answers, in X0 to X3."""
    call(context, guest, f"a guest that calls {numbers[0]:#x}", "hvc", *numbers)
    return guest.mailbox.values[:4]


def _offered(context: Context) -> Guest:
    """A guest on a KVM that has the bitmaps, with all that KVM offers."""
    guest = plain_guest(context)
    if not {_STANDARD, _HYPERVISOR, _VENDOR} <= set(guest.vcpu.reg_list()):
        context.skip("KVM_GET_REG_LIST does not have the three bitmaps of hypercalls (Linux 6.0)")
    return guest


@clause("vm.hypercalls-offered", arch="arm64", needs=(GUEST_RUNS,))
def offered(context: Context) -> None:
    """A call answers where its bit in a bitmap is 1: random numbers, stolen time, KVM's UUID and its features.

    The features that the guest is told are the bitmap's.

    Source: arch/arm64/kvm/hypercalls.c, kvm_smccc_call_handler; Documentation/virt/kvm/arm/fw-pseudo-registers.rst.
    """
    guest = _offered(context)
    standard, hypervisor, vendor = (read(guest.vcpu, register) for register in (_STANDARD, _HYPERVISOR, _VENDOR))
    equal("the bits of the three bitmaps", [standard & 1, hypervisor & 1, vendor & 1], [1, 1, 1])
    answer = _answer(context, guest, _TRNG_VERSION)[0]
    true("TRNG_VERSION", 0x10000 <= answer < 1 << 31, answer, "1.0 or later")
    equal("ARCH_FEATURES of PV_TIME_FEATURES", _answer(context, guest, _ARCH_FEATURES, _PV_TIME)[0], 0)
    equal("the UUID", _answer(context, guest, _VENDOR_UID), _UID)
    equal("the vendor's features", _answer(context, guest, _VENDOR_FEATURES)[0], vendor)


@clause("vm.hypercalls-taken-back", arch="arm64", needs=(GUEST_RUNS,))
def taken_back(context: Context) -> None:
    """A call whose bit a VMM has cleared answers NOT_SUPPORTED, whichever vCPU's register it was written to.

    The bitmaps are the VM's. Another VM keeps what KVM offers.

    Source: arch/arm64/kvm/hypercalls.c, kvm_smccc_test_fw_bmap, kvm_arm_set_fw_reg_bmap.
    """
    guest = _offered(context)
    second = guest.vm.create_vcpu(1)
    vcpus.init(second, Feature.PSCI_0_2)
    for register in (_STANDARD, _HYPERVISOR, _VENDOR):
        succeeds(f"{register} = 0", write, second, register, 0)
    for register in (_STANDARD, _HYPERVISOR, _VENDOR):
        equal(f"{register} of the other vCPU", read(guest.vcpu, register), 0)
    for numbers in ((_TRNG_VERSION,), (_ARCH_FEATURES, _PV_TIME), (_VENDOR_UID,), (_VENDOR_FEATURES,), (_PTP,)):
        what = " of ".join(f"{number:#x}" for number in numbers)
        equal(f"what {what} answers", _answer(context, guest, *numbers)[0], _NOT_SUPPORTED)
    equal("the UUID in another VM", _answer(context, _offered(context), _VENDOR_UID), _UID)


@clause("vm.smccc-discovery", arch="arm64", needs=(GUEST_RUNS,))
def discovery(context: Context) -> None:
    """A guest finds SMCCC 1.1 by PSCI_FEATURES, and the mitigations are what the firmware registers tell its VMM.

    A mitigation that is not known is NOT_SUPPORTED.

    Source: arch/arm64/kvm/hypercalls.c, kvm_smccc_call_handler, get_kernel_wa_level; Arm DEN0028, 7.
    """
    guest = plain_guest(context)
    equal("PSCI_FEATURES of SMCCC_VERSION", _answer(context, guest, _PSCI_FEATURES, _VERSION)[0], 0)
    version = _answer(context, guest, _VERSION)[0]
    true("SMCCC_VERSION", 0x10001 <= version < 1 << 31, version, "1.1 or later")
    listed: set[Register | int] = set(guest.vcpu.reg_list())
    for register, number in _WORKAROUNDS.items():
        if register in listed:
            level = read(guest.vcpu, register)
            answer = _answer(context, guest, _ARCH_FEATURES, number)[0]
            equal(f"ARCH_FEATURES of {register}, which is {level}", answer, _BY_LEVEL.get(level))
    unknown = _answer(context, guest, _ARCH_FEATURES, 0x80007FFE)[0]
    equal("ARCH_FEATURES of what is not known", unknown, _NOT_SUPPORTED)
