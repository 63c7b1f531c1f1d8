# SPDX-License-Identifier: Apache-2.0
"""The closed world: every field of every piece of a vCPU's state, over ways through KVM that leave it as it is.

The guest changes nothing but RIP, which is looked at as well.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from vmm._kvm import ffi
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, true
from vmm.conformance.needs import CPUS, capability
from vmm.conformance.neighbour import Neighbour
from vmm.conformance.registry import clause
from vmm.conformance.world.tally import Tally
from vmm.conformance.world.ways import Traveller
from vmm.conformance.x86.common import stay_on_one_cpu
from vmm.conformance.x86.own import SPIN, competing
from vmm.conformance.x86.still import WAYS, still_guest, tick, traveller
from vmm.kvm.exits import Deadline, Stopped
from vmm.state.world.row import After, OneOf
from vmm.state.world.table import Table
from vmm.state.x86.world.cpuid import CPUID
from vmm.state.x86.world.modes import SREGS
from vmm.state.x86.world.registers import REGS
from vmm.state.x86.world.tables import SHARED
from vmm.x86.guest import Guest
from vmm.x86.registers import get_regs
from vmm.x86.sync import Sync, synced

_LONGEST = 0.5
_SYNC = capability("KVM_CAP_SYNC_REGS")
_ALL = Sync.REGS | Sync.SREGS | Sync.EVENTS
# Behind APIC_BASE struct kvm_sregs of kvm_run has not what struct kvm_sregs2 has.
_NOT_COMMON = ("flags", "pdptrs")
_WAITING = "PAUSE, or the jump back to it: where the guest was when it was stopped"


@clause("world.way-none", arch="x86", needs=WAYS)
def none(context: Context) -> None:
    """A vCPU that has not run has every field as written, beside all others, and after a KVM_RUN that enters none.

    Source: Documentation/virt/kvm/api.rst, 4 (the KVM_SET calls), 5 (immediate_exit).
    """
    with Tally(context) as tally:
        way = traveller(still_guest(context).vcpu, tally)
        for round in range(2):
            way.settle(round)
            way.judge_settled(SHARED)
        way.vcpu.complete()
        way.judge("after KVM_RUN with immediate_exit", {"REGS.rip": After.KEPT})


@clause("world.way-exits", arch="x86", needs=WAYS)
def exits(context: Context) -> None:
    """A guest that leaves and goes on, in another thread and back in this one, has every field as it was, but RIP.

    Source: Documentation/virt/kvm/api.rst, 2, 4.10 KVM_RUN, 5; virt/kvm/kvm_main.c, kvm_vcpu_ioctl (vcpu->pid).
    """
    guest = still_guest(context)
    with Tally(context) as tally:
        way = traveller(guest.vcpu, tally, CPUID)
        way.settle(0)
        with ThreadPoolExecutor(1) as other:
            for thread in ("this", "another", "this"):
                run = partial(tick, context, guest.vcpu, f"a guest in {thread} thread")
                other.submit(run).result() if thread == "another" else run()
        way.judge("after exits in two threads", {"REGS.rip": guest.payload.symbol("ticked")})


def _until(guest: Guest, stop: Callable[[float], None], done: Callable[[], bool]) -> None:
    """Run a guest that waits, and stop it, ever later, until it has come to where it waits and all is ``done``.

    On a busy host that takes longer; if it never is, the clause runs into its time limit.
    """
    seconds = SPIN
    while get_regs(guest.vcpu).rip == guest.payload.symbol("wait") or not done():
        stop(seconds)
        seconds = min(2 * seconds, _LONGEST)


def _waits(guest: Guest) -> OneOf:
    where = guest.payload.symbol("waiting")
    return OneOf((where, where + 2), _WAITING)


@clause("world.way-kicked", arch="x86", needs=WAYS)
def kicked(context: Context) -> None:
    """A guest that another thread stops in its midst has every field as it was, but RIP.

    Source: Documentation/virt/kvm/api.rst, 4.10 KVM_RUN (EINTR).
    """
    guest = still_guest(context, "wait")

    def stop(seconds: float) -> None:
        kicker = threading.Timer(seconds, guest.vcpu.kick)
        kicker.start()
        exit = guest.vcpu.run(context.timeout)
        kicker.join()
        equal("the exit of a guest that was kicked", exit, Stopped())

    with Tally(context) as tally:
        way = traveller(guest.vcpu, tally)
        way.settle(1)
        _until(guest, stop, lambda: True)
        way.judge("after a kick", {"REGS.rip": _waits(guest)})


@clause("world.way-neighbour", arch="x86", needs=WAYS, timeout=30)
def neighbour(context: Context) -> None:
    """A guest that another process preempts, which uses all registers that the CPU has, has every field as it was.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_load, kvm_arch_vcpu_put; arch/x86/include/asm/fpu/sched.h, switch_fpu.
    """
    stay_on_one_cpu()
    with Neighbour(min(os.sched_getaffinity(0)), competing) as company, Tally(context) as tally:
        company.wait(context.timeout)
        guest = still_guest(context, "wait")
        way = traveller(guest.vcpu, tally)
        way.settle(0)
        worked = company.operations

        def stop(seconds: float) -> None:
            exit = guest.vcpu.run(seconds)
            true("the exit of a guest that waits", exit == Deadline(), exit, "none but a deadline's")

        _until(guest, stop, lambda: company.has_worked_since(worked))
        way.judge("after a neighbour had its turn", {"REGS.rip": _waits(guest)})


@clause("world.way-turns", arch="x86", needs=WAYS)
def turns(context: Context) -> None:
    """Two vCPUs of a VM that take turns on one thread have every field as it was, each its own.

    Source: Documentation/virt/kvm/api.rst, 2 (one thread may run several vCPUs); virt/kvm/kvm_main.c, vcpu_load.
    """
    guest = still_guest(context, vcpus=2)
    with Tally(context) as tally:
        ways = [traveller(one.vcpu, tally) for one in guest.processors]
        for round, way in enumerate(ways):
            way.settle(round)
        ways[0].before = ways[0].read()  # with what a VM has once, which the other has written since
        for way in ways * 2:
            tick(context, way.vcpu, "a vCPU whose turn it is")
        for way in ways:
            way.judge(f"of vCPU {way.vcpu.identifier} after two turns", {"REGS.rip": guest.payload.symbol("ticked")})


@clause("world.way-other-cpu", arch="x86", needs=(*WAYS, CPUS))
def other_cpu(context: Context) -> None:
    """A vCPU that runs on another CPU of the host and comes back has every field as it was.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_load; vmx/vmx.c, vmx_vcpu_load_vmcs; svm/svm.c, svm_vcpu_load.
    """
    here, there, *_ = sorted(os.sched_getaffinity(0))
    guest = still_guest(context)
    with Tally(context) as tally:
        way = traveller(guest.vcpu, tally)
        way.settle(0)
        for cpu in (here, there, here):
            os.sched_setaffinity(0, {cpu})
            tick(context, guest.vcpu, f"a guest on CPU {cpu}")
            way.judge(f"after a run on CPU {cpu}", {"REGS.rip": guest.payload.symbol("ticked")})


def _size(table: Table) -> int:
    return table.piece.shape.largest


def _common(table: Table) -> int:
    """How many bytes of a table's structure are in kvm_run as well."""
    return ffi.offsetof("struct kvm_sregs2", _NOT_COMMON[0]) if table is SREGS else _size(table)


def _through_kvm_run(way: Traveller, round: int) -> dict[str, int]:
    """Put another round's REGS and SREGS where KVM_RUN takes them from; return these values."""
    part = synced(way.vcpu)
    meant: dict[str, int] = {}
    for table, place in ((REGS, part.regs), (SREGS, part.sregs)):
        values = table.values(table.read(way.vcpu), way.vcpu, round, running=True)
        whole = table.codec.join(table.part(way.vcpu) or b"", values)
        assert isinstance(whole, bytes)
        ffi.memmove(ffi.addressof(place), whole, _common(table))
        meant |= {f"{table.piece.name}.{field}": value for field, value in values.items()}
    part.events = way.vcpu.get_events()[0]
    return meant


@clause("world.way-sync-regs", arch="x86", needs=(*WAYS, _SYNC))
def sync_regs(context: Context) -> None:
    """What KVM_RUN takes from kvm_run and gives there is, field by field, what the KVM_SET and KVM_GET calls have.

    Source: Documentation/virt/kvm/api.rst, KVM_CAP_SYNC_REGS; arch/x86/kvm/x86.c, sync_regs, store_regs.
    """
    guest = still_guest(context)
    groups = context.host.facts.capabilities["KVM_CAP_SYNC_REGS"]
    if _ALL & ~groups:
        context.skip(f"needs REGS, SREGS and EVENTS: KVM_CAP_SYNC_REGS is {groups:#x}")
    run = guest.vcpu.kvm_run
    with Tally(context) as tally:
        way = traveller(guest.vcpu, tally)
        way.settle(0)
        way.before |= _through_kvm_run(way, 1)
        run.kvm_dirty_regs = run.kvm_valid_regs = _ALL
        tick(context, guest.vcpu, "a guest with registers of kvm_run")
        priority = way.before["SREGS.cr8"] << 4
        becomes = {"LAPIC.TPR": priority, "LAPIC.PPR": priority, "REGS.rip": guest.payload.symbol("ticked")}
        way.judge("after a run with registers of kvm_run", becomes)
        given, now = synced(guest.vcpu), way.read()
        for table, place in ((REGS, given.regs), (SREGS, given.sregs)):
            part = bytes(ffi.buffer(ffi.addressof(place), _common(table)))
            for field, value in table.codec.split(part.ljust(_size(table), b"\0")).items():
                if not field.startswith(_NOT_COMMON):
                    name = f"{table.piece.name}.{field}"
                    tally.look(name, "in kvm_run", value, now[name])
