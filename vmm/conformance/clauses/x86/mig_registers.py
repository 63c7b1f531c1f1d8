# SPDX-License-Identifier: Apache-2.0
"""General, control, segment and debug registers: what was written is what a copied guest finds in them."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from typing import Any

from vmm._kvm import ffi
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, refused, succeeds
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.common import configured
from vmm.kvm.vcpu import Vcpu
from vmm.x86.guest import Guest
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_debugregs, get_regs, get_sregs, set_debugregs, set_regs, set_sregs

_GENERAL = tuple(name for name, _ in ffi.typeof("struct kvm_regs").fields if name not in ("rip", "rflags"))
_STATUS = 0x8D5  # OF SF ZF AF PF CF
# CR0 without WP, CR3 with PWT, CR4 with TSD and DE, EFER with SCE: none of them changes what the payload does.
_WP, _PWT, _TSD_DE, _SCE = 1 << 16, 1 << 3, 0xC, 1
_CR2, _FS, _GS, _LIMIT = 0x7654321000, 0x123456789000, 0xFFFF8FEDCBA98000, 0x3FF
_CR8, _APIC_BASE = 0xA, 0xFED90900
# DR6 with B0 and B2; DR7 with LE and GE, every breakpoint of 4 written bytes and none of them enabled.
_DR6, _DR7 = 0xFFFF0FF5, 0xDDDD0700
_BREAKPOINTS = (0x1111000, 0xFFFF800000002228, 0x123456789ABC, 0x4444444)
_HIGH = 1 << 32


def _guest(context: Context, entry: str, *, privilege: int = 0) -> Guest:
    guest = context.own(Guest(context.kvm, "state", cpuid=context.host.facts.cpuid))
    guest.prepare(entry, privilege=privilege)
    return guest


def _finish(context: Context, guest: Guest, what: str) -> None:
    with judged(f"the run of a guest with {what}", "an end without a fault"):
        guest.finish(guest.resume(context.timeout), f"state.{what}")


@clause("mig.regs-in-guest", arch="x86")
def regs_in_guest(context: Context) -> None:
    """Every general register, RIP and the status flags of RFLAGS come over, and the guest finds them there.

    Source: Documentation/virt/kvm/api.rst, 4.11, 4.12; arch/x86/kvm/x86.c, __set_regs.
    """
    guest = _guest(context, "registers", privilege=3)
    regs = get_regs(guest.vcpu)
    meant = {name: 0x0123456789ABCD00 + 0x0E11000000000011 * at for at, name in enumerate(_GENERAL)}
    for name, value in meant.items():
        setattr(regs, name, value)
    regs.rflags |= _STATUS
    meant = {**meant, "rip": guest.payload.symbol("registers"), "rflags": int(regs.rflags)}
    succeeds("KVM_SET_REGS", set_regs, guest.vcpu, regs)
    copy = state.twin(context, guest, state.capture(guest.vcpu, (), ("SREGS", "REGS")), "REGS")
    state.hold("in the copy", get_regs(copy.vcpu), meant)
    _finish(context, copy, "registers")
    seen = copy.memory.read(copy.payload.symbol("general"), 8 * (len(_GENERAL) + 1))
    *general, flags = struct.unpack(f"<{len(_GENERAL) + 1}Q", seen)
    # A back end that runs CPL3 natively may have flags of its own beside those.
    _same("in the guest", dict(zip(_GENERAL, general, strict=True)), {name: meant[name] for name in _GENERAL})
    equal("status flags of RFLAGS in the guest", flags & _STATUS, _STATUS)


def _same(where: str, seen: dict[str, int], meant: dict[str, int]) -> None:
    for name, value in meant.items():
        equal(f"{name} {where}", seen[name], value)


@clause("mig.sregs-in-guest", arch="x86")
def sregs_in_guest(context: Context) -> None:
    """Control registers, EFER, IA32_APIC_BASE, FS and GS bases, selectors and descriptor tables come over.

    The guest reads them. Its CR8 is that of struct kvm_run, which has it again after the run: there is no local APIC
    in the kernel here (mig.cr8-in-guest).

    Source: Documentation/virt/kvm/api.rst, 4.13, 4.14, 5 ("Only valid if in-kernel local APIC is not used");
    arch/x86/kvm/x86.c, __set_sregs_common (regs.c in 7.2), kvm_arch_vcpu_ioctl_run.
    """
    guest = _guest(context, "control")
    sregs = get_sregs(guest.vcpu)
    sregs.cr0 &= ~_WP
    sregs.cr3 |= _PWT
    sregs.cr4 |= _TSD_DE
    sregs.efer |= _SCE
    sregs.cr2, sregs.fs.base, sregs.gs.base = _CR2, _FS, _GS
    sregs.cr8, sregs.apic_base = _CR8, _APIC_BASE
    sregs.gdt.limit = sregs.idt.limit = _LIMIT
    meant = _control(sregs)
    succeeds("KVM_SET_SREGS", set_sregs, guest.vcpu, sregs)
    copy = state.twin(context, guest, state.capture(guest.vcpu, (), ("SREGS", "REGS")), "SREGS")
    _same("in the copy", _control(get_sregs(copy.vcpu)), meant)
    copy.vcpu.kvm_run.cr8 = _CR8
    _finish(context, copy, "control")
    values = copy.mailbox.values
    seen = dict(zip(("CR0", "CR2", "CR3", "CR4", "TR", "CS", "SS", "DS", "ES", "FS", "GS"), values, strict=False))
    for name in ("gdt", "idt"):
        limit, base = struct.unpack("<HQ", copy.memory.read(copy.payload.symbol(name), 10))
        seen |= {f"{name.upper()} limit": limit, f"{name.upper()} base": base}
    seen |= _rdmsrs(context, copy) | {"CR8": state.read_cr8(context, copy)}
    _same("in the guest", seen, meant)
    equal("cr8 of kvm_run after the run", int(copy.vcpu.kvm_run.cr8), _CR8)


def _control(sregs: Any) -> dict[str, int]:
    """What of SREGS a guest can read, by its name."""
    found = {name.upper(): int(getattr(sregs, name)) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")}
    for name in ("tr", "cs", "ss", "ds", "es", "fs", "gs"):
        found[name.upper()] = int(getattr(sregs, name).selector)
    for name in ("gdt", "idt"):
        table = getattr(sregs, name)
        found |= {f"{name.upper()} limit": int(table.limit), f"{name.upper()} base": int(table.base)}
    bases = {"FS base": int(sregs.fs.base), "GS base": int(sregs.gs.base), "APIC base": int(sregs.apic_base)}
    return found | bases


def _rdmsrs(context: Context, guest: Guest) -> dict[str, int]:
    """What is of SREGS and the guest reads by RDMSR."""
    names = {"EFER": Msr.EFER, "FS base": Msr.FS_BASE, "GS base": Msr.GS_BASE, "APIC base": Msr.APIC_BASE}
    return dict(zip(names, state.rdmsrs(context, guest, names.values()), strict=True))


@clause("mig.debugregs", arch="x86")
def debugregs(context: Context) -> None:
    """KVM_SET_DEBUGREGS sets DR0 to DR3, DR6 and DR7, and refuses flags and high halves of DR6 and DR7 with EINVAL.

    What is refused changes nothing.

    Source: Documentation/virt/kvm/api.rst, 4.34, 4.35 ("The flags field is unused yet and must be cleared on entry");
    arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_debugregs (regs.c in 7.2).
    """
    vcpu = configured(context)
    meant = _debug_values(_BREAKPOINTS, _DR6, _DR7)
    _set_debug(vcpu, _BREAKPOINTS, _DR6, _DR7)
    _same("by KVM_GET_DEBUGREGS", _debug(get_debugregs(vcpu)), meant)
    equal("flags by KVM_GET_DEBUGREGS", get_debugregs(vcpu).flags, 0)
    others = [value + 0x100 for value in _BREAKPOINTS]
    for what, dr6, dr7, flags in (
        ("flags 1", _DR6 ^ 4, _DR7 ^ 0x100, 1),
        ("flags 1 << 63", _DR6 ^ 4, _DR7 ^ 0x100, 1 << 63),
        ("DR6 with bit 32", _DR6 ^ 4 | _HIGH, _DR7 ^ 0x100, 0),
        ("DR6 with bit 63", _DR6 ^ 4 | 1 << 63, _DR7 ^ 0x100, 0),
        ("DR7 with bit 32", _DR6 ^ 4, _DR7 ^ 0x100 | _HIGH, 0),
        ("DR7 with bit 63", _DR6 ^ 4, _DR7 ^ 0x100 | 1 << 63, 0),
    ):
        refused(what, errno.EINVAL, _set_debug, vcpu, others, dr6, dr7, flags)
        _same(f"after the refused {what}", _debug(get_debugregs(vcpu)), meant)


def _set_debug(vcpu: Vcpu, breakpoints: Iterable[int], dr6: int, dr7: int, flags: int = 0) -> None:
    value = get_debugregs(vcpu)
    for number, address in enumerate(breakpoints):
        value.db[number] = address
    value.dr6, value.dr7, value.flags = dr6, dr7, flags
    set_debugregs(vcpu, value)


def _debug_values(breakpoints: Iterable[int], dr6: int, dr7: int) -> dict[str, int]:
    return {**{f"DR{number}": value for number, value in enumerate(breakpoints)}, "DR6": dr6, "DR7": dr7}


def _debug(value: Any) -> dict[str, int]:
    return _debug_values((int(address) for address in value.db), int(value.dr6), int(value.dr7))


@clause("mig.debugregs-in-guest", arch="x86")
def debugregs_in_guest(context: Context) -> None:
    """DR0 to DR3, DR6 and DR7 come over, and the guest finds them by MOV from them.

    Source: Documentation/virt/kvm/api.rst, 4.35; arch/x86/kvm/x86.c, kvm_update_dr0123; Intel SDM volume 3, 18.2.
    """
    guest = _guest(context, "debug")
    meant = _debug_values(_BREAKPOINTS, _DR6, _DR7)
    succeeds("KVM_SET_DEBUGREGS", _set_debug, guest.vcpu, _BREAKPOINTS, _DR6, _DR7)
    saved = state.capture(guest.vcpu, (), ("SREGS", "REGS", "DEBUGREGS"))
    copy = state.twin(context, guest, saved, "DEBUGREGS")
    _same("in the copy", _debug(get_debugregs(copy.vcpu)), meant)
    _finish(context, copy, "debug")
    *breakpoints, dr6, dr7 = copy.mailbox.values[:6]
    _same("in the guest", _debug_values(breakpoints, dr6, dr7), meant)
