# SPDX-License-Identifier: Apache-2.0
"""The closed world on every way through KVM: what a vCPU was given it has afterwards."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from vmm.arm64.guest import Guest
from vmm.arm64.vcpu import Feature
from vmm.conformance.arm64.common import GUEST_RUNS, enter
from vmm.conformance.arm64.ways import give, look, still, tables
from vmm.conformance.arm64.world import GROUND
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, refused, true
from vmm.conformance.needs import capability
from vmm.conformance.neighbour import Neighbour
from vmm.conformance.registry import clause
from vmm.conformance.world.tally import Tally
from vmm.kvm.exits import Budget, Deadline
from vmm.state.arm64.world.identity import IDREGS

_TICKS, _TURNS = 16, 6
_MOMENT = 0.02  # seconds that a guest runs which nothing but a signal ends


def _needs(guest: Guest) -> dict[str, int]:
    """What the payload needs of CORE: where it ticks and where it stores a vector."""
    return {"X30": guest.payload.symbol("TICK_ADDRESS"), "SP_EL1": guest.payload.symbol("room")}


def _entry(guest: Guest) -> str:
    return "still_sve" if Feature.SVE in guest.features else "still_vectors"


def _through(context: Context, entry: str, round: int, where: str, way: Callable[[Guest], None]) -> None:
    """The values of a round have to be there after the way."""
    with Tally(context, "") as tally:
        guest = still(context)
        guest.prepare(entry or _entry(guest))
        held = give(guest.vcpu, round, tables(guest.vcpu), _needs(guest))
        with judged(f"KVM_RUN {where}"):
            way(guest)
            guest.complete()
        look(guest.vcpu, held, tally, where)


def _ticks(context: Context, guest: Guest) -> None:
    equal("the exit", guest.resume(context.timeout, _TICKS), Budget(_TICKS))


def _moment(context: Context, guest: Guest) -> None:
    exit = guest.resume(_MOMENT * context.options.time_scale)
    true("the end of a run that a signal ends", isinstance(exit, Deadline), str(exit), "the signal")


@clause("world.way-exits", arch="arm64", needs=(GUEST_RUNS,), timeout=60)
def exits(context: Context) -> None:
    """What all registers were given they have after exits of a guest that changes none, with vector registers in use.

    Source: Documentation/virt/kvm/api.rst, 4.10 KVM_RUN; arch/arm64/kvm/hyp/include/hyp/sysreg-sr.h.
    """
    _through(context, "", 0, "after exits", lambda guest: _ticks(context, guest))


@clause("world.way-kicked", arch="arm64", needs=(GUEST_RUNS,), timeout=60)
def kicked(context: Context) -> None:
    """What all registers were given they have after a signal has ended the run of a guest that changes none.

    Source: Documentation/virt/kvm/api.rst, 4.10 KVM_RUN; arch/arm64/kvm/arm.c, kvm_arch_vcpu_ioctl_run.
    """
    _through(context, "spin", 1, "after a signal", lambda guest: _moment(context, guest))


@clause("world.way-asleep", arch="arm64", needs=(GUEST_RUNS,), timeout=60)
def asleep(context: Context) -> None:
    """What all registers were given they have after a signal has ended the WFI of a guest.

    Source: arch/arm64/kvm/arm.c, kvm_vcpu_wfi.
    """
    _through(context, "asleep", 0, "after WFI", lambda guest: _moment(context, guest))


def _busy() -> Callable[[], object]:
    data = bytearray(range(256)) * 16
    return lambda: data[:] != data


@clause("world.way-preempted", arch="arm64", needs=(GUEST_RUNS,), timeout=60)
def preempted(context: Context) -> None:
    """What all registers were given they have after another process has had the CPU in the middle of the run.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vcpu_put, kvm_arch_vcpu_load.
    """
    cpu = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    neighbour = context.own(Neighbour(cpu, _busy))
    neighbour.wait(context.timeout)

    def beside(guest: Guest) -> None:
        # The guest runs before the other process has the CPU, and behind it.
        _ticks(context, guest)
        done = neighbour.operations
        while not neighbour.has_worked_since(done):
            _ticks(context, guest)
        _ticks(context, guest)

    _through(context, "", 1, "after another process has run", beside)


@clause("world.way-cpus", arch="arm64", needs=(GUEST_RUNS,), timeout=60)
def cpus(context: Context) -> None:
    """What all registers were given they have after the vCPU has gone from one CPU of the host to another.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vcpu_load.
    """
    own = sorted(os.sched_getaffinity(0))
    if len(own) < 2:
        context.skip(f"this process may run on CPU {own[0]} only")

    def both(guest: Guest) -> None:
        for cpu in (own[0], own[-1], own[0]):
            os.sched_setaffinity(0, {cpu})
            _ticks(context, guest)

    _through(context, "", 0, "on another CPU", both)


@clause("world.way-turns", arch="arm64", needs=(GUEST_RUNS,), timeout=60)
def turns(context: Context) -> None:
    """Two vCPUs that take turns on a CPU each have what all their registers were given.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vcpu_put, kvm_arch_vcpu_load.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    guest = still(context, 2)
    guest.prepare(_entry(guest))
    held = [
        give(one.vcpu, round, tables(one.vcpu, alone=False), _needs(guest))
        for round, one in enumerate(guest.processors)
    ]
    for _ in range(_TURNS):
        for one in guest.processors:
            with judged("KVM_RUN of one of two vCPUs"):
                equal("the exit", one.run(context.timeout, 1), Budget(1))
    with Tally(context, "") as tally:
        for one, own in zip(guest.processors, held, strict=True):
            one.vcpu.complete()
            look(one.vcpu, own, tally, f"of vCPU {one.vcpu.identifier} after turns")


@clause("world.way-refused", arch="arm64", needs=(capability("KVM_CAP_ARM_PMU_V3"),), timeout=60)
def refused_run(context: Context) -> None:
    """What all registers were given they have after a KVM_RUN that was refused, as of a PMU that was not set up.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vcpu_run_pid_change; arch/arm64/kvm/pmu-emul.c, kvm_arm_pmu_v3_enable.
    """
    vcpu = GROUND.vcpu(context)
    with Tally(context, "") as tally:
        # Other ID registers would take registers away that have values.
        chosen = [table for table in tables(vcpu) if table is not IDREGS]
        held = give(vcpu, 1, chosen, {}, running=False)
        refused("KVM_RUN", errno.EINVAL, enter, vcpu)
        look(vcpu, held, tally, "after a refused KVM_RUN")
