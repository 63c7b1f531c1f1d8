# SPDX-License-Identifier: Apache-2.0
"""Protection keys: PKRU in the XSAVE area, over exits, and beside the VMM's own."""

from __future__ import annotations

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, succeeds
from vmm.conformance.needs import Need
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.common import XSAVE2, untiled_features
from vmm.probe.host import Host
from vmm.x86 import boot
from vmm.x86.cpuid import get_cpuid
from vmm.x86.guest import Guest
from vmm.x86.registers import set_cr4_bits, set_xcr0
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea, get_xsave, set_xsave

_VALUE, _OTHER = 0x55555550, 0xAAAAAAA0  # key 0 stays accessible: every page of the guest has it
_PKRU = int(XFeature.PKRU)
_PAGE = 2 << 20


def _measure(host: Host) -> tuple[bool, str]:
    table = host.facts.cpuid
    offered = table.has("PKU") and bool(table.xcr0 >> _PKRU & 1)
    return offered, f"KVM offers PKU {table.has('PKU')}, XCR0[9] {table.xcr0 >> _PKRU & 1}"


PKU = (Need("PKU for guests", _measure),)


def _guest(context: Context) -> Guest:
    """A guest with CR4.PKE and all of XCR0."""
    guest = context.own(
        Guest(context.kvm, "pku", cpuid=context.host.facts.cpuid, cr4=boot.CR4_OSXSAVE | boot.CR4_PKE)
    )
    set_xcr0(guest.vcpu, untiled_features(context))
    return guest


def _pkru(area: XsaveArea) -> int:
    return int.from_bytes(area.component(_PKRU)[:4], "little")


def _read(context: Context, guest: Guest) -> int:
    succeeds("RDPKRU in the guest", guest.call, "rdpkru", privilege=3, timeout=context.timeout)
    return guest.mailbox.values[0]


def _write(context: Context, guest: Guest) -> None:
    succeeds("WRPKRU in the guest", guest.call, "wrpkru", _VALUE, privilege=3, timeout=context.timeout)


def _churn(context: Context, guest: Guest, exits: int, value: int, privilege: int = 3) -> None:
    succeeds("the guest's run", guest.call, "churn", exits, value, privilege=privilege, timeout=context.timeout)


def _check_area(guest: Guest, value: int) -> None:
    area = get_xsave(guest.vcpu)
    equal("XSTATE_BV[9]", area.xstate_bv >> _PKRU & 1, 1)
    equal("PKRU in the area", _pkru(area), value)


@clause("pku.xsave-slot", arch="x86", needs=(*PKU, XSAVE2))
def xsave_slot(context: Context) -> None:
    """What the guest writes to PKRU is in the XSAVE area, and what is set there is what the guest reads.

    Source: arch/x86/kernel/fpu/xstate.c, __copy_xstate_to_uabi_buf (PKRU), copy_uabi_to_xstate.
    """
    guest = _guest(context)
    _write(context, guest)
    _check_area(guest, _VALUE)
    area = get_xsave(guest.vcpu)
    area.set_component(_PKRU, _OTHER.to_bytes(4, "little") + bytes(area.layout[_PKRU].size - 4))
    succeeds("KVM_SET_XSAVE with another PKRU", set_xsave, guest.vcpu, area)
    equal("RDPKRU in the guest", _read(context, guest), _OTHER)


@clause("pku.survives-exits", arch="x86", needs=PKU)
def survives_exits(context: Context) -> None:
    """PKRU keeps its value over 200 exits, at CPL0 and at CPL3.

    Source: arch/x86/kvm/x86.c, kvm_load_guest_pkru, kvm_load_host_pkru.
    """
    guest = _guest(context)
    for privilege in (0, 3):
        _churn(context, guest, 200, _VALUE + 4 * privilege, privilege)
        equal(f"RDPKRU at CPL{privilege}", guest.mailbox.values[0], _VALUE + 4 * privilege)


@clause("pku.host-pkru-zero", arch="x86", needs=(*PKU, XSAVE2))
def host_pkru_zero(context: Context) -> None:
    """The area has the guest's PKRU also while the VMM thread's own PKRU is 0, its initial value.

    Linux gives threads 0x55555554, which hides it when a kernel takes the bit from the wrong PKRU.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_get_xsave2; arch/x86/kernel/fpu/xstate.c,
    __copy_xstate_to_uabi_buf.
    """
    guest = _guest(context)
    ours = lib.vmm_rdpkru()
    try:
        lib.vmm_wrpkru(0)
        _write(context, guest)
        lib.vmm_wrpkru(0)
        _check_area(guest, _VALUE)
    finally:
        lib.vmm_wrpkru(ours)


@clause("pku.set-clear-bit-keeps", arch="x86", needs=(*PKU, XSAVE2))
def clear_bit_keeps(context: Context) -> None:
    """KVM_SET_XSAVE with XSTATE_BV[9] clear leaves the guest's PKRU as it is, unlike every other component.

    Source: arch/x86/kernel/fpu/core.c, fpu_copy_uabi_to_guest_fpstate ("KVM's odd ABI is to leave PKRU untouched").
    """
    guest = _guest(context)
    _write(context, guest)
    area = get_xsave(guest.vcpu)
    area.xstate_bv &= ~(1 << _PKRU)
    succeeds("KVM_SET_XSAVE with XSTATE_BV[9] clear", set_xsave, guest.vcpu, area)
    equal("RDPKRU in the guest", _read(context, guest), _VALUE)


@clause("pku.new-vm", arch="x86", needs=(*PKU, XSAVE2))
def new_vm(context: Context) -> None:
    """PKRU comes over to a new VM with the XSAVE area.

    Source: Documentation/virt/kvm/api.rst 4.43, 4.134.
    """
    guest = _guest(context)
    _write(context, guest)
    saved = state.capture(guest.vcpu, state.saved_msrs(context.kvm))
    twin = _guest(context)
    with judged("restoring the state"):
        state.restore(twin.vcpu, saved)
    equal("RDPKRU in the copy", _read(context, twin), _VALUE)


@clause("pku.cr4-pke-without-xcr0", arch="x86", needs=PKU)
def without_xcr0(context: Context) -> None:
    """With CR4.PKE and without XCR0[9] the guest still has a PKRU of its own over exits, and so has the VMM.

    Source: arch/x86/kvm/x86.c, kvm_load_guest_pkru (CR4.PKE is enough).
    """
    guest = _guest(context)
    set_xcr0(guest.vcpu, untiled_features(context) & ~(1 << _PKRU))
    ours = lib.vmm_rdpkru()
    _churn(context, guest, 50, _VALUE)
    equal("RDPKRU in the guest", guest.mailbox.values[0], _VALUE)
    equal("RDPKRU of the VMM thread", lib.vmm_rdpkru(), ours)


@clause("pku.host-unchanged", arch="x86", needs=PKU)
def host_unchanged(context: Context) -> None:
    """The VMM thread's own PKRU is the same after runs of a guest that changes its own.

    Source: arch/x86/kvm/x86.c, kvm_load_host_pkru.
    """
    guest = _guest(context)
    ours = lib.vmm_rdpkru()
    try:
        for value in (ours, ours ^ 0xC0000000):
            lib.vmm_wrpkru(value)
            _churn(context, guest, 10, _VALUE)
            seen = lib.vmm_rdpkru()
            equal("RDPKRU of the VMM thread", seen, value)
    finally:
        lib.vmm_wrpkru(ours)


@clause("pku.enforced", arch="x86", needs=PKU)
def enforced(context: Context) -> None:
    """A guest access to a user page whose key PKRU denies is #PF with the protection-key bit.

    Source: Intel SDM volume 3, 4.6.2, 4.7; arch/x86/kvm/mmu.h, permission_fault.
    """
    guest = _guest(context)
    # The 2 MiB page above the payload gets key 1; everything the handler touches keeps key 0.
    guest.memory.write(boot.DIRECTORIES + 8, (_PAGE | boot.PAGE_2M | 1 << 59).to_bytes(8, "little"))
    for pkru, faults in ((1 << 2, 1), (1 << 3, 0), (0, 0)):
        guest.call("denied", pkru, _PAGE, privilege=3, timeout=context.timeout)
        equal(f"faults of a load with PKRU {pkru:#x}", guest.mailbox.read("values", 15), faults)
        if faults:
            equal("the fault", guest.fault().name, "#PF")
            equal("its error code (present, user, protection key)", guest.mailbox.values[0], 0x25)
            equal("its address", guest.fault().cr2, _PAGE)


@clause("pku.ospke-mirror", arch="x86", needs=PKU)
def ospke_mirror(context: Context) -> None:
    """CPUID 7.ECX[4] mirrors CR4.PKE whatever userspace wrote there.

    Source: arch/x86/kvm/cpuid.c, kvm_update_cpuid_runtime.
    """
    guest = _guest(context)
    guest.prepare("_start")
    for enabled in (1, 0, 1):
        set_cr4_bits(guest.vcpu, boot.CR4_PKE, on=bool(enabled))
        equal(f"OSPKE with CR4.PKE={enabled}", get_cpuid(guest.vcpu).get(7).ecx >> 4 & 1, enabled)
