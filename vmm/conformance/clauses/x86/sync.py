# SPDX-License-Identifier: Apache-2.0
"""KVM_CAP_SYNC_REGS: registers that KVM_RUN gives in struct kvm_run when it ends, and takes from there."""

from __future__ import annotations

import errno
from typing import Any

from vmm._kvm import ffi
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, refused
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.kvm.vcpu import Vcpu
from vmm.x86.guest import DONE, EXCEPTION, Guest
from vmm.x86.registers import get_regs, get_sregs, set_regs
from vmm.x86.sync import Sync, synced
from vmm.x86.xsave import POISON

_SYNC = capability("KVM_CAP_SYNC_REGS")
_GET = {Sync.REGS: get_regs, Sync.SREGS: get_sregs, Sync.EVENTS: Vcpu.get_events}
# The fields of struct kvm_sync_regs.
_FIELDS = {Sync.REGS: "regs", Sync.SREGS: "sregs", Sync.EVENTS: "events"}
_RBX, _R15, _MARK = 0x1122334455667788, 0xFEDCBA9876543210, 0x5A5A0F0F3C3C9696
_GP, _ERROR = 13, 0x18
_NO_FLAG, _NO_CR4 = 1 << 31, 1 << 63


def _groups(context: Context) -> tuple[Sync, ...]:
    """The groups of registers that KVM_CAP_SYNC_REGS offers."""
    offered = context.host.facts.capabilities["KVM_CAP_SYNC_REGS"]
    return tuple(group for group in Sync if offered & group)


def _name(group: Sync) -> str:
    return _FIELDS[group].upper()


def _wanted(context: Context, group: Sync) -> None:
    if group not in _groups(context):
        context.skip(f"needs {_name(group)}: KVM_CAP_SYNC_REGS is {sum(_groups(context)):#x}")


def _guest(context: Context) -> Guest:
    """A guest that will report its registers, with values in RBX and R15."""
    guest = context.own(Guest(context.kvm, "sync", cpuid=context.host.facts.cpuid))
    _prepare(guest)
    return guest


def _prepare(guest: Guest) -> None:
    guest.prepare("report")
    regs = get_regs(guest.vcpu)
    regs.rbx, regs.r15 = _RBX, _R15
    set_regs(guest.vcpu, regs)
    for number in range(4):
        guest.mailbox.write("values", POISON, number)


def _run(context: Context, guest: Guest, what: str) -> int | None:
    """Run to the guest's event."""
    with judged(f"KVM_RUN {what}"):
        exit = guest.resume(context.timeout)
    return guest.event(exit)


def _area(guest: Guest) -> Any:
    """The bytes of kvm_run that registers are in, and what may follow them."""
    return ffi.buffer(ffi.addressof(guest.vcpu.kvm_run.s))


def _part(guest: Guest, group: Sync) -> tuple[int, int]:
    """Where a group begins and ends in these bytes."""
    fields = dict(ffi.typeof("struct kvm_sync_regs").fields)
    field = fields[_FIELDS[group]]
    return field.offset, field.offset + ffi.sizeof(field.type)


def _same(what: str, guest: Guest, group: Sync) -> None:
    """A group in kvm_run has to be what its KVM_GET call says, field by field."""
    given, told = getattr(synced(guest.vcpu), _FIELDS[group]), _GET[group](guest.vcpu)
    for name, field in ffi.typeof(told).item.fields:
        size = ffi.sizeof(field.type)
        first, second = (bytes(ffi.buffer(ffi.addressof(one), field.offset + size)) for one in (given, told[0]))
        equal(f"{name} of {_name(group)} in kvm_run {what}", first[-size:], second[-size:])


@clause("sync.unknown-bits-refused", arch="x86", needs=(_SYNC,))
def unknown_bits(context: Context) -> None:
    """A bit in kvm_valid_regs or kvm_dirty_regs that KVM_CAP_SYNC_REGS lacks makes KVM_RUN EINVAL, and nothing runs.

    Source: Documentation/virt/kvm/api.rst 6.74 ("Unused bitfields ... must be set to zero"); arch/x86/kvm/x86.c,
    kvm_arch_vcpu_ioctl_run (sync_valid_fields).
    """
    guest = _guest(context)
    run, known = guest.vcpu.kvm_run, sum(_groups(context))
    for number in (bit for bit in range(64) if not known >> bit & 1):
        for field in ("kvm_valid_regs", "kvm_dirty_regs"):
            setattr(run, field, 1 << number)
            refused(f"KVM_RUN with {field} {1 << number:#x}", errno.EINVAL, guest.vcpu.run, context.timeout)
            setattr(run, field, 0)
    equal("RIP after the refusals", get_regs(guest.vcpu).rip, guest.payload.symbol("report"))
    equal("what the guest has reported", guest.mailbox.values[0], POISON)
    equal("the guest's event without such bits", _run(context, guest, "without such bits"), DONE)


@clause("sync.given-is-what-get-says", arch="x86", needs=(_SYNC,))
def given(context: Context) -> None:
    """At an exit kvm_run has REGS, SREGS and EVENTS as the KVM_GET calls say, after EINTR too; kvm_valid_regs stays.

    Source: arch/x86/kvm/x86.c, store_regs; arch/x86/kvm/regs.c, kvm_run_sync_regs_to_user.
    """
    guest = _guest(context)
    groups = _groups(context)
    run, asked = guest.vcpu.kvm_run, sum(groups)
    events = guest.vcpu.get_events()
    events.nmi.masked = 1
    guest.vcpu.set_events(events)
    run.kvm_valid_regs = asked
    equal("the guest's event", _run(context, guest, "with kvm_valid_regs"), DONE)
    for what in ("at the exit", "after KVM_RUN with immediate_exit"):
        for group in groups:
            _same(what, guest, group)
        if Sync.REGS in groups:
            equal(f"RBX in kvm_run {what}", synced(guest.vcpu).regs.rbx, _RBX)
        if Sync.EVENTS in groups:
            equal(f"nmi.masked in kvm_run {what}", synced(guest.vcpu).events.nmi.masked, 1)
        equal(f"kvm_valid_regs {what}", run.kvm_valid_regs, asked)
        regs = get_regs(guest.vcpu)
        regs.r15 = _RBX
        set_regs(guest.vcpu, regs)
        guest.vcpu.complete()


@clause("sync.only-what-is-asked", arch="x86", needs=(_SYNC,))
def only_asked(context: Context) -> None:
    """KVM_RUN writes the groups that kvm_valid_regs names, each field, and no byte of the others.

    Source: Documentation/virt/kvm/api.rst 6.74 ("the specific register sets to be copied out on the next exit");
    arch/x86/kvm/x86.c, store_regs.
    """
    guest = _guest(context)
    groups = _groups(context)
    area = _area(guest)
    for asked in ((), *((group,) for group in groups)):
        name = " ".join(_name(group) for group in asked) or "nothing"
        area[:] = bytes([POISON]) * len(area)
        for group in asked:  # the kernel need not write padding inside
            start, end = _part(guest, group)
            area[start:end] = bytes(end - start)
        _prepare(guest)
        guest.vcpu.kvm_run.kvm_valid_regs = sum(asked)
        equal("the guest's event", _run(context, guest, f"that asks for {name}"), DONE)
        rest = bytearray(area[:])
        for group in asked:
            start, end = _part(guest, group)
            rest[start:end] = bytes([POISON]) * (end - start)
            _same(f"when only {_name(group)} is asked for", guest, group)
        guest.vcpu.kvm_run.kvm_valid_regs = 0
        equal(f"bytes of kvm_run written beside {name}", len(rest) - rest.count(POISON), 0)


@clause("sync.dirty-taken", arch="x86", needs=(_SYNC,))
def dirty_taken(context: Context) -> None:
    """The guest goes on with the REGS and SREGS that kvm_dirty_regs names, and kvm_dirty_regs is 0 then.

    Source: Documentation/virt/kvm/api.rst 6.74 ("values that should be copied into the vCPU"); arch/x86/kvm/regs.c,
    kvm_run_sync_regs_from_user.
    """
    for group in (Sync.REGS, Sync.SREGS):
        _wanted(context, group)
    guest = _guest(context)
    run, part = guest.vcpu.kvm_run, synced(guest.vcpu)
    part.regs, part.sregs = get_regs(guest.vcpu)[0], get_sregs(guest.vcpu)[0]
    part.regs.rip, part.regs.rbx, part.regs.r15 = guest.payload.symbol("other"), _R15, _RBX
    part.sregs.gs.base = guest.payload.symbol("marked")
    run.kvm_dirty_regs = Sync.REGS | Sync.SREGS
    equal("the guest's event", _run(context, guest, "with kvm_dirty_regs"), DONE)
    equal("kvm_dirty_regs after KVM_RUN", run.kvm_dirty_regs, 0)
    seen = guest.mailbox.values
    equal("RBX, R15 and what is at GS:0 in the guest", seen[:3], [_R15, _RBX, _MARK])
    equal("whether the guest was at the RIP given", seen[3], 1)
    equal("RBX by KVM_GET_REGS", get_regs(guest.vcpu).rbx, _R15)


@clause("sync.dirty-events-taken", arch="x86", needs=(_SYNC,))
def events_taken(context: Context) -> None:
    """An exception in the EVENTS that kvm_dirty_regs names is delivered to the guest, before its next instruction.

    Source: arch/x86/kvm/x86.c, sync_regs, kvm_vcpu_ioctl_x86_set_vcpu_events.
    """
    _wanted(context, Sync.EVENTS)
    guest = _guest(context)
    run, part = guest.vcpu.kvm_run, synced(guest.vcpu)
    part.events = guest.vcpu.get_events()[0]
    part.events.exception.injected, part.events.exception.nr = 1, _GP
    part.events.exception.has_error_code, part.events.exception.error_code = 1, _ERROR
    run.kvm_dirty_regs = Sync.EVENTS
    equal("the guest's event", _run(context, guest, "with kvm_dirty_regs"), EXCEPTION)
    fault = guest.fault()
    equal(
        "vector, error code, RIP",
        (fault.vector, fault.error, fault.rip),
        (_GP, _ERROR, guest.payload.symbol("report")),
    )
    equal("kvm_dirty_regs after KVM_RUN", run.kvm_dirty_regs, 0)


@clause("sync.not-dirty-ignored", arch="x86", needs=(_SYNC,))
def not_dirty_ignored(context: Context) -> None:
    """What is changed in kvm_run without its bit in kvm_dirty_regs does not reach the vCPU.

    Source: Documentation/virt/kvm/api.rst 6.74 ("If the dirty bit is not set, then the register set values will not
    be copied into the vCPU even if they've been modified").
    """
    guest = _guest(context)
    groups = _groups(context)
    before = get_sregs(guest.vcpu)
    guest.vcpu.kvm_run.kvm_valid_regs = sum(groups)
    guest.vcpu.complete()
    part = synced(guest.vcpu)
    part.regs.rip, part.regs.rbx, part.regs.r15 = guest.payload.symbol("other"), 1, 2
    part.sregs.gs.base, part.sregs.cr4 = guest.payload.symbol("marked"), _NO_CR4
    part.events.exception.injected, part.events.exception.nr, part.events.flags = 1, _GP, _NO_FLAG
    equal("the guest's event", _run(context, guest, "with nothing dirty"), DONE)
    seen = guest.mailbox.values
    equal("RBX, R15 and what is at GS:0 in the guest", seen[:3], [_RBX, _R15, 0])
    equal("whether the guest was at the RIP changed", seen[3], 0)
    after = get_sregs(guest.vcpu)
    equal("GS.base and CR4 by KVM_GET_SREGS", (after.gs.base, after.cr4), (before.gs.base, before.cr4))


@clause("sync.invalid-refused", arch="x86", needs=(_SYNC,))
def invalid_refused(context: Context) -> None:
    """Dirty SREGS or EVENTS that the KVM_SET calls refuse make KVM_RUN EINVAL: nothing runs, their bit stays set.

    Source: arch/x86/kvm/regs.c, kvm_run_sync_regs_from_user; arch/x86/kvm/x86.c, sync_regs.
    """
    for group in (Sync.SREGS, Sync.EVENTS):
        _wanted(context, group)
    guest = _guest(context)
    run, part = guest.vcpu.kvm_run, synced(guest.vcpu)
    before = bytes(ffi.buffer(get_sregs(guest.vcpu)))
    part.sregs, part.events = get_sregs(guest.vcpu)[0], guest.vcpu.get_events()[0]
    part.sregs.cr4 |= _NO_CR4
    part.events.flags |= _NO_FLAG
    for group in (Sync.SREGS, Sync.EVENTS):
        run.kvm_dirty_regs = group
        refused(f"KVM_RUN with {_name(group)} that is not valid", errno.EINVAL, guest.vcpu.run, context.timeout)
        equal(f"kvm_dirty_regs after the refused {_name(group)}", run.kvm_dirty_regs, group)
    run.kvm_dirty_regs = 0
    equal("SREGS after the refusals", bytes(ffi.buffer(get_sregs(guest.vcpu))), before)
    equal("RIP after the refusals", get_regs(guest.vcpu).rip, guest.payload.symbol("report"))
    equal("what the guest has reported", guest.mailbox.values[0], POISON)
