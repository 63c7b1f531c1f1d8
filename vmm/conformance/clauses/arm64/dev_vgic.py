# SPDX-License-Identifier: Apache-2.0
"""The virtual GICv3 as a VMM makes it, places it, and saves and restores it."""

from __future__ import annotations

import errno

from vmm._kvm import ffi, lib
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.guest import Guest
from vmm.conformance.arm64.common import GUEST_RUNS, call, enter, plain_guest
from vmm.conformance.arm64.instructions import mrs
from vmm.conformance.arm64.vgic import (
    CONTROL,
    COUNT,
    CPU,
    DIST,
    DIST_AT,
    DISTRIBUTOR,
    INIT,
    PLACES,
    REDIST,
    REDIST_AT,
    REDISTRIBUTOR,
    V2,
    V3,
    get,
    has,
    initialise,
    place,
    put,
    vgic,
    where,
)
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.kvm.device import Device

_FRAME, _UNDEFINED, _UNKNOWN, _NOWHERE = 0x10000, (1 << 64) - 1, 1 << 30, 0x10
_LDR_W0 = 0xB9400000
_PMR = (3, 0, 4, 6, 0)
_PMR_ID = 3 << 14 | 4 << 7 | 6 << 3
# The vCPU that a register belongs to, by its affinity, is in the upper half of its attribute: all are vCPU 0's.
_OTHER_VCPU = 7 << 32
# Registers of interrupts 32 to 63 and of 0 to 31, where the guest has them, and values that any GICv3 keeps.
_REGISTERS = {
    "GICD_ISENABLER1": (DISTRIBUTOR, 0x104, DIST_AT + 0x104, 0x5000F00F),
    "GICD_IPRIORITYR8": (DISTRIBUTOR, 0x420, DIST_AT + 0x420, 0x20406080),
    "GICR_IPRIORITYR0": (REDISTRIBUTOR, 0x10400, REDIST_AT + 0x10400, 0x80A0C0E0),
}


@clause("dev.vgic-once", arch="arm64", needs=(has(V3),))
def once(context: Context) -> None:
    """A VM has one vGIC, made before a vCPU of it first runs: a second one is EEXIST, one too late EBUSY.

    Source: arch/arm64/kvm/vgic/vgic-init.c, kvm_vgic_create; Documentation/virt/kvm/devices/arm-vgic-v3.rst.
    """
    vm = context.vm()
    device = succeeds("a GICv3", vm.create_device, V3)
    refused("a second GICv3", errno.EEXIST, vm.create_device, V3)
    other = errno.EEXIST if V2 in context.host.facts.devices else errno.ENODEV
    refused("a GICv2 beside it", other, vm.create_device, V2)
    succeeds("HAS of an attribute of the first", device.has_attribute, CONTROL, INIT)
    succeeds("a GICv3 of another VM", context.vm().create_device, V3)
    late = context.vm()
    vcpu = late.create_vcpu()
    vcpus.init(vcpu)
    enter(vcpu)
    refused("a GICv3 after a vCPU has run", errno.EBUSY, late.create_device, V3)


@clause("dev.vgic-places", arch="arm64", needs=(capability("KVM_CAP_ARM_VM_IPA_SIZE"), has(V3)))
def places(context: Context) -> None:
    """The frames of a GICv3 are placed once (EEXIST), in units of 64 KiB (EINVAL), below the IPA's end (E2BIG).

    A place that was not given yet reads as all ones.

    Source: arch/arm64/kvm/vgic/vgic-kvm-device.c, kvm_vgic_addr, vgic_check_iorange; vgic-mmio-v3.c,
    vgic_v3_alloc_redist_region; Documentation/virt/kvm/devices/arm-vgic-v3.rst.
    """
    # As large as it gets: protected KVM gives every VM that, whatever was asked for.
    bits = context.kvm.check_extension(lib.KVM_CAP_ARM_VM_IPA_SIZE)
    vm = context.own(context.kvm.create_vm(bits))
    vcpus.init(vm.create_vcpu())
    device = vm.create_device(V3)
    end = 1 << bits
    for what, kind, address in (("distributor", DIST, DIST_AT), ("redistributors", REDIST, REDIST_AT)):
        succeeds(f"HAS of the place of the {what}", device.has_attribute, PLACES, kind)
        equal(f"the place of the {what} at first", where(device, kind), _UNDEFINED)
        for odd in (1, 0x1000, _FRAME // 2):
            refused(f"the {what} at {address + odd:#x}", errno.EINVAL, place, device, kind, address + odd)
        refused(f"the {what} behind the guest's addresses", errno.E2BIG, place, device, kind, end)
        refused(f"the {what} at a bad address", errno.EFAULT, device.set_attribute, PLACES, kind,
                ffi.cast("void *", _NOWHERE))  # fmt: skip
        equal(f"the place of the {what} after the refusals", where(device, kind), _UNDEFINED)
        succeeds(f"the {what} at {address:#x}", place, device, kind, address)
        equal(f"the place of the {what}", where(device, kind), address)
        refused(f"the {what} elsewhere", errno.EEXIST, place, device, kind, address + 16 * _FRAME)
        equal(f"the place of the {what} after that", where(device, kind), address)
    for kind in (0, 1, _UNKNOWN):  # 0 and 1 are the GICv2's
        refused(f"HAS of the place of {kind}", errno.ENXIO, device.has_attribute, PLACES, kind)
        refused(f"the place of {kind}", errno.ENXIO, place, device, kind, DIST_AT)


@clause("dev.vgic-interrupts", arch="arm64", needs=(has(V3),))
def interrupts(context: Context) -> None:
    """The number of interrupts is 64 to 1024 in steps of 32, set once, and before INIT (EBUSY).

    Groups and attributes that there are not are ENXIO.

    Source: arch/arm64/kvm/vgic/vgic-kvm-device.c, vgic_set_common_attr (KVM_DEV_ARM_VGIC_GRP_NR_IRQS);
    Documentation/virt/kvm/devices/arm-vgic-v3.rst.
    """
    device = context.vm().create_device(V3)
    succeeds("HAS of the number of interrupts", device.has_attribute, COUNT, 0)
    for count in (0, 32, 63, 65, 1023, 1025, 1056, 1 << 31):
        refused(f"{count} interrupts", errno.EINVAL, put, device, COUNT, 0, count)
    succeeds("256 interrupts", put, device, COUNT, 0, 256)
    equal("the number of interrupts", get(device, COUNT, 0), 256)
    refused("another number", errno.EBUSY, put, device, COUNT, 0, 128)
    equal("the number of interrupts after that", get(device, COUNT, 0), 256)
    vm = context.vm()
    vcpus.init(vm.create_vcpu())
    initialised = vm.create_device(V3)
    succeeds("INIT", initialise, initialised)
    succeeds("INIT again", initialise, initialised)
    refused("a number after INIT", errno.EBUSY, put, initialised, COUNT, 0, 64)
    for group, attribute in ((CONTROL, _UNKNOWN), (_UNKNOWN, 0)):
        refused(f"HAS of group {group}, attribute {attribute}", errno.ENXIO, device.has_attribute, group, attribute)
        refused(f"SET of group {group}, attribute {attribute}", errno.ENXIO, put, device, group, attribute, 0)


def _seen(context: Context, guest: Guest) -> dict[str, int]:
    """What the guest reads of its GIC."""
    found = {}
    for name, (_, _, address, _) in _REGISTERS.items():
        call(context, guest, f"a load of {name}", "execute", _LDR_W0, address)
        found[name] = guest.mailbox.values[0]
    call(context, guest, "MRS ICC_PMR_EL1", "execute", mrs(*_PMR))
    return {**found, "ICC_PMR_EL1": guest.mailbox.values[0]}


def _state(device: Device) -> dict[str, int]:
    """What the device says of the same."""
    found = {name: get(device, group, offset) for name, (group, offset, _, _) in _REGISTERS.items()}
    return {**found, "ICC_PMR_EL1": get(device, CPU, _PMR_ID, "uint64_t")}


def _restore(device: Device, state: dict[str, int]) -> None:
    for name, (group, offset, _, _) in _REGISTERS.items():
        put(device, group, offset, state[name])
    put(device, CPU, _PMR_ID, state["ICC_PMR_EL1"], "uint64_t")


@clause("dev.vgic-state", arch="arm64", needs=(has(V3), GUEST_RUNS))
def state(context: Context) -> None:
    """What a VMM writes to the registers of a GICv3 the guest sees, and what it reads there restores another VM's.

    Source: arch/arm64/kvm/vgic/vgic-kvm-device.c, vgic_v3_attr_regs_access; vgic-mmio-v3.c, vgic_v3_dist_uaccess;
    Documentation/virt/kvm/devices/arm-vgic-v3.rst.
    """
    expected = {**{name: value for name, (_, _, _, value) in _REGISTERS.items()}, "ICC_PMR_EL1": 0xF0}
    guest = plain_guest(context)
    device = vgic(guest.vm)
    succeeds("writing the registers", _restore, device, expected)
    equal("what the guest sees", _seen(context, guest), expected)
    saved = _state(device)
    equal("the registers after the guest has run", saved, expected)
    twin = plain_guest(context)
    second = vgic(twin.vm)
    equal("GICD_ISENABLER1 of a new vGIC", get(second, DISTRIBUTOR, 0x104), 0)
    succeeds("restoring the registers", _restore, second, saved)
    equal("what the restored guest sees", _seen(context, twin), expected)


@clause("dev.vgic-refusals", arch="arm64", needs=(has(V3),))
def refusals(context: Context) -> None:
    """Registers of a GICv3 are EBUSY before INIT and EINVAL of a vCPU that there is not; HAS tells which there are.

    HAS of others is ENXIO. The distributor and the redistributors read as 0 there, whatever their documentation says.

    Source: arch/arm64/kvm/vgic/vgic-kvm-device.c, vgic_v3_attr_regs_access, vgic_v3_parse_attr;
    Documentation/virt/kvm/devices/arm-vgic-v3.rst.
    """
    vm = context.vm()
    vcpus.init(vm.create_vcpu())
    device = vm.create_device(V3)
    put(device, COUNT, 0, 64)
    for name, (group, offset, _, value) in _REGISTERS.items():
        succeeds(f"HAS of {name} before INIT", device.has_attribute, group, offset)
        refused(f"{name} before INIT", errno.EBUSY, get, device, group, offset)
        refused(f"writing {name} before INIT", errno.EBUSY, put, device, group, offset, value)
    refused("ICC_PMR_EL1 before INIT", errno.EBUSY, get, device, CPU, _PMR_ID, "uint64_t")
    initialise(device)
    for group, offset in ((DISTRIBUTOR, 0xEFF0), (REDISTRIBUTOR, 0x1FF00), (CPU, 0)):
        refused(f"HAS of register {offset:#x} of group {group}", errno.ENXIO, device.has_attribute, group, offset)
    for name, group, offset in (("GICR_IPRIORITYR0", REDISTRIBUTOR, 0x10400), ("ICC_PMR_EL1", CPU, _PMR_ID)):
        refused(
            f"{name} of a vCPU that there is not", errno.EINVAL, get, device, group, _OTHER_VCPU | offset, "uint64_t"
        )
    equal("GICD_ISENABLER1 after the refusals", get(device, DISTRIBUTOR, 0x104), 0)
