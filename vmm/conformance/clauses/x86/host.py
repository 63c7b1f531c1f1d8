# SPDX-License-Identifier: Apache-2.0
"""The VMM's own x87, vector and mask registers and PKRU: a guest must neither change them nor show through them."""

from __future__ import annotations

from collections.abc import Callable

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, succeeds, true
from vmm.conformance.neighbour import KERNEL_VECTORS, Step, encrypting
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import vector_level
from vmm.conformance.x86.image import Image
from vmm.conformance.x86.own import (
    SPIN,
    beside,
    competing,
    filled_guest,
    keeps,
    own_registers,
    prepare_spin,
    unchanged,
)
from vmm.kvm.exits import Deadline, IoOut
from vmm.x86 import own
from vmm.x86.guest import Guest
from vmm.x86.own import run_with_registers
from vmm.x86.xsave import XsaveArea

_RUNS = 100
_SIGNALS = 2
_CHUNK = 8
_SWITCHES = 8


def _spun(guest: Guest, given: XsaveArea, what: str, seconds: float = SPIN) -> None:
    """Run a guest that is ready to spin until a signal ends it, while the VMM has ``given`` in its registers."""
    with judged("KVM_RUN of a guest without end"):
        exit, observed = run_with_registers(guest.vcpu, given, seconds)
    equal("the exit of a guest without end", exit, Deadline())
    unchanged(what, given, observed)


@clause("host.vectors-preserved", arch="x86")
def preserved(context: Context) -> None:
    """The VMM's ST, MXCSR, XMM, YMM, ZMM, k and PKRU survive 100 KVM_RUNs in a row of a guest that fills its own.

    All that the host's XCR0 has, whatever the guest may use. Nothing loads them again between the runs.

    Source: arch/x86/kernel/fpu/core.c, fpu_swap_kvm_fpstate; arch/x86/kvm/x86.c, kvm_load_guest_fpu,
    kvm_load_host_pkru.
    """
    guest, image = filled_guest(context, 51)
    for given in (own_registers(52), XsaveArea.initial()):
        guest.prepare("ticks", 2 * _RUNS, privilege=3)
        with judged("KVM_RUN of a VMM with values in its registers"):
            exit, observed = run_with_registers(guest.vcpu, given, context.timeout, calls=_RUNS)
        true("the guest's exit", isinstance(exit, IoOut) and exit.port == guest.vcpu.tick, exit, "a tick")
        unchanged("the VMM's registers", given, observed)
    keeps(context, guest, image)


@clause("host.vectors-over-signal", arch="x86")
def over_signal(context: Context) -> None:
    """The VMM's registers survive a KVM_RUN that a signal with a handler interrupts, and so do the guest's.

    Source: arch/x86/kernel/fpu/signal.c, save_xstate_epilog, restore_fpregs_from_user; arch/x86/kvm/x86.c,
    kvm_put_guest_fpu.
    """
    guest, image = filled_guest(context, 53)
    for seed in range(_SIGNALS):
        prepare_spin(guest)
        _spun(guest, own_registers(54 + seed), f"the VMM's registers after signal {seed + 1}")
    keeps(context, guest, image)


@clause("host.vectors-no-guest-leak", arch="x86")
def no_leak(context: Context) -> None:
    """No register of the VMM that was in its initial state shows anything of what the guest has in its own.

    Source: arch/x86/kernel/fpu/core.c, fpu_swap_kvm_fpstate (restores all that fpu_kernel_cfg has).
    """
    guest, image = filled_guest(context, 60)
    given = XsaveArea.initial()
    for entry, timeout in ((f"fill_{vector_level(context)}", context.timeout), ("spin", SPIN)):
        if entry == "spin":
            prepare_spin(guest)
        else:
            guest.prepare(entry, privilege=3)
        with judged(f"KVM_RUN of {entry}"):
            _, observed = run_with_registers(guest.vcpu, given, timeout)
        shown = bytes(observed.normalised().data)
        for at in range(0, len(image.data), _CHUNK):
            part = image.data[at : at + _CHUNK]
            place = shown.find(part) if len(set(part)) > _CHUNK // 2 else -1
            where = observed.where(place) if place >= 0 else "nowhere"
            true(f"{image.where(at)} of the guest after {entry}", place < 0, where, "nowhere in the VMM's registers")
        unchanged(f"the VMM's initial registers after {entry}", given, observed)
    keeps(context, guest, image)


def _beside(context: Context, begin: Callable[[], Step], seed: int) -> None:
    given = own_registers(seed + 1)
    beside(context, begin, seed, lambda guest, _, seconds: _spun(guest, given, "the VMM's registers", seconds))


@clause("host.vectors-after-run", arch="x86", timeout=30)
def after_run(context: Context) -> None:
    """What the VMM loads into its registers after KVM_RUN survives context switches, and does not become the guest's.

    Source: arch/x86/kernel/fpu/core.c, fpu_swap_kvm_fpstate (fpregs_mark_activate); arch/x86/include/asm/fpu/sched.h,
    switch_fpu (saves to the current fpstate).
    """
    given = own_registers(68)

    def run_and_switch(guest: Guest, _: Image, seconds: float) -> None:
        equal("the exit of a guest without end", succeeds("KVM_RUN", guest.resume, seconds), Deadline())
        unchanged("the VMM's registers after context switches", given, own.yield_with_registers(given, _SWITCHES))

    beside(context, competing, 67, run_and_switch)


@clause("host.vectors-beside-competitor", arch="x86", timeout=30)
def beside_competitor(context: Context) -> None:
    """Where a process with values in its own registers shares the CPU, its, the VMM's and the guest's stay apart.

    Before commit 1811d979c716 (2019) a guest's XCR0 could be live while its VMM was scheduled out.

    Source: arch/x86/include/asm/fpu/sched.h, switch_fpu; arch/x86/kvm/x86.c, kvm_load_xfeatures, kvm_arch_vcpu_put.
    """
    _beside(context, competing, 63)


@clause("host.vectors-beside-kernel-fpu", arch="x86", needs=(KERNEL_VECTORS,), timeout=30)
def beside_kernel(context: Context) -> None:
    """Where the kernel uses vector registers for another process on the CPU, the VMM's and the guest's stay.

    Source: arch/x86/kernel/fpu/core.c, kernel_fpu_begin_mask (saves a loaded guest's state), fpu_swap_kvm_fpstate.
    """
    _beside(context, encrypting, 65)
