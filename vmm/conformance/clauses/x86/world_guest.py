# SPDX-License-Identifier: Apache-2.0
"""The closed world: what KVM was given is what the guest finds in its registers, round by round."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping

from vmm.conformance.context import Context
from vmm.conformance.needs import Need
from vmm.conformance.world.generate import Property, generate_one
from vmm.conformance.world.properties_views import IN_GUEST, Expected, in_guest, renamed
from vmm.conformance.x86 import state
from vmm.conformance.x86.apic import LOCAL_APICS, SPLIT
from vmm.conformance.x86.world import GROUND
from vmm.guest.base import NO_CAPABILITIES, BaseGuest, Capabilities
from vmm.state.world.table import Table
from vmm.state.x86.world.lapic import LAPIC, LOADED
from vmm.state.x86.world.registers import DEBUGREGS, REGS
from vmm.x86.guest import Guest

_STATUS = 0x8D5  # OF SF ZF AF PF CF
# As the payload stores them, and how many bytes an APIC's registers are apart.
_GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{number}" for number in range(8, 16))
)  # fmt: skip
_BREAKPOINTS = ("db[0]", "db[1]", "db[2]", "db[3]", "dr6", "dr7")
_APIC, _CLASS = 0xFEE00000, 0xF0
_SOURCE = "Documentation/virt/kvm/api.rst, "


def _guest(capabilities: Capabilities = NO_CAPABILITIES) -> Callable[[Context], BaseGuest]:
    return lambda context: context.own(
        Guest(context.kvm, "state", cpuid=context.host.facts.cpuid, capabilities=capabilities)
    )


def _enter(entry: str) -> Callable[[BaseGuest], None]:
    return lambda guest: guest.prepare(entry)


def _run(guest: BaseGuest, context: Context) -> None:
    guest.finish(guest.resume(context.timeout), "a guest that reads its registers")


def _general(guest: BaseGuest, context: Context) -> Mapping[str, int]:
    _run(guest, context)
    data = guest.memory.read(guest.payload.symbol("general"), 8 * (len(_GENERAL) + 1))
    *general, flags = struct.unpack(f"<{len(_GENERAL) + 1}Q", data)
    return {**dict(zip(_GENERAL, general, strict=True)), "rflags": flags & _STATUS}


def _status(meant: Mapping[str, int]) -> Expected:
    """A back end that runs its guests natively may have other flags of its own than the status flags."""
    return {field: (field, value & _STATUS if field == "rflags" else value) for field, value in meant.items()}


def _debug(guest: BaseGuest, context: Context) -> Mapping[str, int]:
    _run(guest, context)
    return dict(zip(_BREAKPOINTS, guest.mailbox.values, strict=False))


def _apic(guest: BaseGuest, context: Context) -> Mapping[str, int]:
    assert isinstance(guest, Guest)
    found = dict(zip(LOADED, state.peek(context, guest, [_APIC + at for at in LOADED.values()]), strict=True))
    return {**found, "TPR": found["TPR"] & _CLASS}


def _loaded(meant: Mapping[str, int]) -> Expected:
    """Of TPR a VMCB has the priority class only, as CR8: svm.c, sync_lapic_to_cr8, sync_cr8_to_lapic."""
    return {
        name: (name, value & _CLASS if name == "TPR" else value) for name, value in meant.items() if name in LOADED
    }


def _judge(table: Table, source: str, judge: Property, needs: Iterable[Need] = ()) -> None:
    generate_one(__name__, GROUND, table, f"{_SOURCE}{source}", ("guest", judge, IN_GUEST), needs)


_judge(
    REGS, "4.11, 4.12; arch/x86/kvm/regs.c, __set_regs", in_guest(_guest(), _enter("registers"), _general, _status)
)
_judge(
    DEBUGREGS,
    "4.34, 4.35; arch/x86/kvm/x86.c, kvm_update_dr0123; Intel SDM volume 3, 18.2",
    in_guest(_guest(), _enter("debug"), _debug, renamed(lambda field: field)),
)
# Without RFLAGS.IF a guest takes no interrupt, whatever its APIC has.
_judge(
    LAPIC,
    "4.57, 4.58; arch/x86/kvm/lapic.c, kvm_lapic_reg_read",
    in_guest(_guest(SPLIT), _enter("peek"), _apic, _loaded, running=False),
    (LOCAL_APICS,),
)
