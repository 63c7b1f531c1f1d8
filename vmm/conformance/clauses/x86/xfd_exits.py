# SPDX-License-Identifier: Apache-2.0
"""What IA32_XFD and IA32_XFD_ERR cost: how many VM exits the guest's use of them takes, by KVM's own count."""

from __future__ import annotations

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, true
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import TILE_GUESTS, TILEDATA, judged_call
from vmm.conformance.x86.tiles import TileImage, tile_guest
from vmm.kvm.stats import Stats
from vmm.x86.guest import Guest
from vmm.x86.msr import name, set_msr
from vmm.x86.msr_names import Msr

_COUNTED = (*TILE_GUESTS, capability("KVM_CAP_BINARY_STATS_FD"))
_ARMED = 1 << TILEDATA
_MANY = 200
# Each run is one of these: only exits that nothing else caused belong to what is looked at.
_RUNS = 5


def _exits(context: Context, guest: Guest, stats: Stats, entry: str, *parameters: int) -> int:
    """Run an entry point and return how many VM exits it took, without those of the host's interrupts."""
    before = stats.read("exits") - stats.read("irq_exits")
    judged_call(context, guest, entry, *parameters)
    return stats.read("exits") - stats.read("irq_exits") - before


def _cost(context: Context, guest: Guest, stats: Stats, entry: str, *parameters: int) -> int:
    """The VM exits of an entry point beyond those of one that does nothing, the fewest of some runs.

    Whatever else the host does, such as bringing in a page, can only add to one of them.
    """
    runs = range(_RUNS)
    spent = min(_exits(context, guest, stats, entry, *parameters) for _ in runs)
    return spent - min(_exits(context, guest, stats, "_start") for _ in runs)


def _counted(context: Context, payload: str) -> tuple[Guest, Stats]:
    guest = tile_guest(context, payload=payload)
    return guest, context.own(Stats(guest.vcpu))


def _trapped(context: Context, guest: Guest, stats: Stats) -> None:
    """Skipped unless a register whose writes KVM has to see is seen to cost exits."""
    spent = _cost(context, guest, stats, "wrmsrs", _MANY, Msr.XFD_ERR, 0, 0)
    if spent < 2 * _MANY:
        context.skip(
            f"needs a count that shows the exits of a guest: {2 * _MANY} writes of IA32_XFD_ERR show {spent}"
        )


@clause("xfd.interception-ends", arch="x86", needs=_COUNTED)
def interception_ends(context: Context) -> None:
    """After the first write of IA32_XFD that is not 0, by guest or host, arming and disarming it costs no VM exit.

    The control are as many writes of IA32_XFD_ERR, which KVM has to see and which cost an exit each.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_set_msr (MSR_IA32_XFD).
    """
    guest, stats = _counted(context, "amx_os")
    _trapped(context, guest, stats)
    never = _cost(context, guest, stats, "wrmsrs", _MANY, Msr.XFD, 0, 0)
    context.note(f"exits of {2 * _MANY} writes of 0 before any other: {never}")
    judged_call(context, guest, "wrmsr", Msr.XFD, _ARMED)
    _passes_through(context, guest, stats, "the guest")
    other = tile_guest(context, guest.cpuid, permit=False, payload="amx_os")
    equal("IA32_XFD accepted from the host", set_msr(other.vcpu, Msr.XFD, _ARMED), True)
    _passes_through(context, other, context.own(Stats(other.vcpu)), "the host")


def _passes_through(context: Context, guest: Guest, stats: Stats, who: str) -> None:
    spent = _cost(context, guest, stats, "wrmsrs", _MANY, Msr.XFD, _ARMED, 0)
    equal(f"VM exits of {2 * _MANY} writes of IA32_XFD once {who} armed it", spent, 0)
    spent = _cost(context, guest, stats, "rdmsrs", _MANY, Msr.XFD)
    equal(f"VM exits of {_MANY} reads of IA32_XFD once {who} armed it", spent, 0)


@clause("xfd.err-read-costs-nothing", arch="x86", needs=_COUNTED)
def error_is_read_without_exit(context: Context) -> None:
    """Reading IA32_XFD_ERR costs no VM exit, and shows what was written last.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_recalc_msr_intercepts (before 6.18 vmx_vcpu_after_set_cpuid).
    """
    guest, stats = _counted(context, "amx_os")
    _trapped(context, guest, stats)
    for value in (0, _ARMED):
        judged_call(context, guest, "wrmsr", Msr.XFD_ERR, value)
        spent = _cost(context, guest, stats, "rdmsrs", _MANY, Msr.XFD_ERR)
        equal(f"VM exits of {_MANY} reads of {name(Msr.XFD_ERR)} {value:#x}", spent, 0)
        judged_call(context, guest, "rdmsrs", 1, Msr.XFD_ERR)
        equal(f"{name(Msr.XFD_ERR)} in the guest", guest.mailbox.values[0], value)


@clause("xfd.nm-two-exits", arch="x86", needs=_COUNTED)
def first_use_costs_two_exits(context: Context) -> None:
    """A guest's #NM by XFD and all that its operating system does for it costs two VM exits at most.

    They are the #NM itself and the write that clears IA32_XFD_ERR: reading that, and IA32_XFD, cost none.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_update_exception_bitmap, vmx_set_msr (MSR_IA32_XFD).
    """
    guest, stats = _counted(context, "amx")
    TileImage.random(31).load(guest)
    spent = _cost(context, guest, stats, "demand", 0)
    equal("faults", guest.mailbox.read("values", 15), 1)
    equal("the vector", guest.mailbox.read("values", 3), 7)
    true("VM exits of an #NM and its handler", spent <= 2, spent, "2 at most")
    context.note(f"exits: {spent}")


@clause("xfd.nm-costs-nothing-unused", arch="x86", needs=_COUNTED)
def other_faults_cost_nothing(context: Context) -> None:
    """An #NM because of CR0.TS costs no VM exit in a guest that has never written an IA32_XFD other than 0.

    KVM traps #NM only from such a write on. What that makes of them is a note.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_update_exception_bitmap (xfd_no_write_intercept).
    """
    guest, stats = _counted(context, "amx_os")
    _trapped(context, guest, stats)
    judged_call(context, guest, "wrmsr", Msr.XFD, 0)
    equal(f"VM exits of {_MANY} #NM before IA32_XFD was used", _exits_of_faults(context, guest, stats), 0)
    judged_call(context, guest, "wrmsr", Msr.XFD, _ARMED)
    judged_call(context, guest, "wrmsr", Msr.XFD, 0)
    context.note(f"exits of {_MANY} #NM by CR0.TS once it was used: {_exits_of_faults(context, guest, stats)}")


def _exits_of_faults(context: Context, guest: Guest, stats: Stats) -> int:
    """The VM exits of #NM by CR0.TS, without those of setting and clearing it."""
    switching = _cost(context, guest, stats, "task_switched", 0)
    spent = _cost(context, guest, stats, "task_switched", _MANY)
    equal("faults", guest.mailbox.read("values", 15), _MANY)
    equal("the vector", guest.mailbox.read("values", 3), 7)
    return spent - switching
