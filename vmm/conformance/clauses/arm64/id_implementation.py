# SPDX-License-Identifier: Apache-2.0
"""What a VMM may say of a guest's CPU beyond its features: which one it is, and its caches."""

from __future__ import annotations

import errno

from vmm._kvm import lib
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.guest import Guest
from vmm.arm64.registers import SYSTEM, Register, cache
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.common import GUEST_RUNS, again, call, plain_guest, plain_vcpu
from vmm.conformance.arm64.instructions import mrs, msr
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, refused_indicative, succeeds
from vmm.conformance.needs import capability, kernel
from vmm.conformance.registry import clause

_WRITABLE = capability("KVM_CAP_ARM_WRITABLE_IMP_ID_REGS")
# Any will do: none of them is a CPU's.
_IDENTITIES = {"MIDR_EL1": 0x7A5F1230, "REVIDR_EL1": 0x1122334455667788, "AIDR_EL1": 0x99AABBCCDDEEFF00}
_CACHES = range(14)
_CSSELR, _CCSIDR = (3, 2, 0, 0, 0), (3, 1, 0, 0, 0)
# In CCSIDR_EL1 some bits of NumSets and Associativity, in CLIDR_EL1 one of ICB.
_GEOMETRY, _BOUNDARY = 0x5 << 13 | 0x3 << 3, 1 << 30
_IDC = 1 << 28
_NO_CACHE = 0


class _Named(Guest):
    """A guest whose VMM may say which CPU it has."""

    def _make_processors(self, vcpus: int) -> None:
        self.vm.enable_cap(lib.KVM_CAP_ARM_WRITABLE_IMP_ID_REGS)
        super()._make_processors(vcpus)


def _in_guest(context: Context, guest: Guest, register: Register, value: int) -> None:
    call(context, guest, f"MRS {register}", "execute", mrs(*register.encoding))
    equal(f"faults of MRS {register}", guest.mailbox.values[15], 0)
    equal(f"{register} in the guest", guest.mailbox.values[0], value)


@clause("id.implementation-writable", arch="arm64", needs=(_WRITABLE, GUEST_RUNS))
def implementation(context: Context) -> None:
    """With KVM_CAP_ARM_WRITABLE_IMP_ID_REGS MIDR_EL1, REVIDR_EL1 and AIDR_EL1 take any value before the first run.

    The VM's vCPUs share them and the guest reads them; bits above MIDR_EL1's 32 are EINVAL. After the first run
    another value is EBUSY.

    Source: arch/arm64/kvm/sys_regs.c, set_imp_id_reg; Documentation/virt/kvm/api.rst, 7.42; Linux 6.15.
    """
    guest = context.own(_Named(context.kvm, "hello", features=(Feature.PSCI_0_2,)))
    second = guest.vm.create_vcpu(1)
    vcpus.init(second, Feature.PSCI_0_2)
    start = {name: read(guest.vcpu, SYSTEM[name]) for name in _IDENTITIES}
    refused_indicative(context, "bit 32 of MIDR_EL1", errno.EINVAL, write, guest.vcpu, SYSTEM["MIDR_EL1"], 1 << 32)
    for name, value in _IDENTITIES.items():
        succeeds(f"{name} = {value:#x}", write, guest.vcpu, SYSTEM[name], value)
    for name, value in _IDENTITIES.items():
        equal(f"{name} of the other vCPU", read(second, SYSTEM[name]), value)
        _in_guest(context, guest, SYSTEM[name], value)
    for name, value in _IDENTITIES.items():
        succeeds(f"what {name} reads after a run", write, second, SYSTEM[name], value)
        what = f"{name} = {start[name]:#x} after a run"
        refused_indicative(context, what, errno.EBUSY, write, second, SYSTEM[name], start[name])
        equal(f"{name} after a run", read(guest.vcpu, SYSTEM[name]), value)


@clause("id.implementation-needs-enabling", arch="arm64", needs=(_WRITABLE,))
def too_late(context: Context) -> None:
    """KVM_CAP_ARM_WRITABLE_IMP_ID_REGS is refused once there is a vCPU, and says nothing of other VMs.

    Source: arch/arm64/kvm/arm.c, kvm_vm_ioctl_enable_cap; Documentation/virt/kvm/api.rst, 7.42.
    """
    enabled = context.vm()
    succeeds("enabling it without a vCPU", enabled.enable_cap, lib.KVM_CAP_ARM_WRITABLE_IMP_ID_REGS)
    vm = context.vm()
    vcpu = vm.create_vcpu()
    refused("enabling it with a vCPU", errno.EINVAL, vm.enable_cap, lib.KVM_CAP_ARM_WRITABLE_IMP_ID_REGS)
    vcpus.init(vcpu)
    for name, value in _IDENTITIES.items():
        start = read(vcpu, SYSTEM[name])
        refused_indicative(context, f"{name} = {value:#x}", errno.EINVAL, write, vcpu, SYSTEM[name], value)
        equal(f"{name} afterwards", read(vcpu, SYSTEM[name]), start)


@clause("id.clidr-writable", arch="arm64", needs=(kernel("6.3"), GUEST_RUNS))
def clidr(context: Context) -> None:
    """CLIDR_EL1 is each vCPU's own, takes another value, which the guest reads, and refuses reserved bits.

    No cache at all is refused where the CPU's data caches have to be cleaned for instructions (CTR_EL0.IDC 0).

    Source: arch/arm64/kvm/sys_regs.c, set_clidr, access_clidr; Linux 6.3.
    """
    guest, register = plain_guest(context), SYSTEM["CLIDR_EL1"]
    second = guest.vm.create_vcpu(1)
    vcpus.init(second, Feature.PSCI_0_2)
    start, idc = read(guest.vcpu, register), read(guest.vcpu, SYSTEM["CTR_EL0"]) & _IDC
    refused_indicative(context, "a reserved bit", errno.EINVAL, write, guest.vcpu, register, start | 1 << 63)
    if not idc:
        refused_indicative(context, "no cache at all", errno.EINVAL, write, guest.vcpu, register, _NO_CACHE)
    equal("CLIDR_EL1 after what was refused", read(guest.vcpu, register), start)
    succeeds("another CLIDR_EL1", write, guest.vcpu, register, start ^ _BOUNDARY)
    _in_guest(context, guest, register, start ^ _BOUNDARY)
    equal("CLIDR_EL1 of the other vCPU", read(second, register), start)


@clause("id.ccsidr-by-level", arch="arm64", needs=(kernel("6.3"), GUEST_RUNS))
def ccsidr(context: Context) -> None:
    """CCSIDR_EL1 of every level takes another geometry, which the guest reads for this level and no other.

    Lines that are shorter than the shortest that CTR_EL0 tells of are refused. It is each vCPU's own.

    Source: arch/arm64/kvm/sys_regs.c, set_ccsidr, get_ccsidr, access_ccsidr; Linux 6.3.
    """
    guest = plain_guest(context)
    sizes = read(plain_vcpu(context), SYSTEM["CTR_EL0"])
    second = guest.vm.create_vcpu(1)
    vcpus.init(second, Feature.PSCI_0_2)
    start = {number: read(guest.vcpu, cache(number)) for number in _CACHES}
    for number, value in start.items():
        register = cache(number)
        # DminLine, for a cache of instructions IminLine: the number of words as a power of two; LineSize is 2 less.
        if shortest := max((sizes >> (0 if number & 1 else 16) & 0xF) - 2, 0):
            what, short = f"{register} with lines that are too short", value & ~7 | shortest - 1
            refused_indicative(context, what, errno.EINVAL, write, guest.vcpu, register, short)
            equal(f"{register} after what was refused", read(guest.vcpu, register), value)
        succeeds(f"another {register}", write, guest.vcpu, register, value ^ _GEOMETRY ^ number << 20)
    call(context, guest, "the first run", "ticks", 1)
    for number, value in start.items():
        again(context, guest, f"MSR CSSELR_EL1, {number}", "execute", msr(*_CSSELR), number)
        again(context, guest, "MRS CCSIDR_EL1", "execute", mrs(*_CCSIDR), 0)
        equal(f"{cache(number)} in the guest", guest.mailbox.values[0], value ^ _GEOMETRY ^ number << 20)
        equal(f"{cache(number)} of the other vCPU", read(second, cache(number)), value)
