# SPDX-License-Identifier: Apache-2.0
"""Vector guests that are switched: turns on one CPU, threads, CPUs, signals, and neighbours on the vCPU's CPU."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, succeeds
from vmm.conformance.needs import CPUS
from vmm.conformance.neighbour import KERNEL_VECTORS, Step, encrypting
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import (
    GUEST_XSAVE,
    XSAVE2,
    judged_call,
    plain_features,
    stay_on_one_cpu,
    vector_guest,
    vector_level,
)
from vmm.conformance.x86.image import Image
from vmm.conformance.x86.own import beside, competing, filled_guest, keeps
from vmm.kvm.exits import Budget, Deadline
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import cpuid, xfeature
from vmm.x86.guest import Guest
from vmm.x86.registers import get_regs, get_sregs, set_regs, set_sregs, set_xcr0
from vmm.x86.xsave import get_xsave

_NEEDS = (GUEST_XSAVE, XSAVE2)
_ROUNDS = 16
_SIGNALS = 6
_XCR0 = {"sse": 3, "avx": 7, "avx512": 7 | xfeature.AVX512}


@dataclass(frozen=True, slots=True)
class _Turn:
    """A guest that holds an image in the registers of a level, and ticks."""

    guest: Guest
    image: Image
    level: str

    def start(self, ticks: int) -> None:
        """Have it load the image at its next run and tick so often before it looks at its registers."""
        self.guest.memory.write(self.guest.payload.symbol("expected"), self.image.data)
        self.guest.prepare(f"churn_{self.level}", ticks, privilege=3)

    def step(self, context: Context, ticks: int = 1) -> None:
        """Let it run to its next ticks."""
        equal("the exit", succeeds("KVM_RUN", self.guest.resume, context.timeout, ticks), Budget(ticks))

    def look(self, what: str) -> None:
        """The XSAVE area has to hold the image."""
        self.image.check_area(what, get_xsave(self.guest.vcpu), self.level)

    def finish(self, context: Context) -> None:
        """Run it to its end: it has to find its registers as it left them."""
        with judged("the guest's last run"):
            self.guest.finish(self.guest.resume(context.timeout))
        self.image.check(self.guest)


def _turn(context: Context, seed: int, level: str | None = None) -> _Turn:
    """A guest whose XCR0 has what the level needs; by default all plain components."""
    top = vector_level(context)
    features = plain_features(context) if level is None else plain_features(context) & _XCR0[level]
    guest = vector_guest(context, features)
    return _Turn(guest, Image.random(random.Random(seed)), level or top)


@clause("xsave.two-vms-same-cpu", arch="x86", needs=_NEEDS, timeout=30)
def two_vms(context: Context) -> None:
    """Guests that take turns on one CPU, with all vector registers in XCR0, with fewer, with SSE, keep their state.

    Each is read between its turns, and finds its own registers at the end.

    Source: arch/x86/kernel/fpu/core.c, fpu_swap_kvm_fpstate; arch/x86/kvm/x86.c, kvm_load_xfeatures.
    """
    stay_on_one_cpu()
    rounds = _ROUNDS * (10 if context.options.exhaustive else 1)
    levels = list(_XCR0)[: list(_XCR0).index(vector_level(context)) + 1]
    turns = [_turn(context, 70 + number, level) for number, level in enumerate((*reversed(levels), None))]
    for one in turns:
        one.start(rounds + 1)
    for number in range(rounds):
        for one in turns:
            one.step(context)
            if number % 8 == 3:
                one.look("between its turns")
    for one in turns:
        one.step(context)
        one.finish(context)


def _enter(guest: Guest, vcpu: Vcpu, entry: str) -> None:
    """Point another vCPU of a guest's VM at an entry point, with all else as the first has it."""
    vcpu.complete()
    set_sregs(vcpu, get_sregs(guest.vcpu))
    regs = get_regs(guest.vcpu)
    regs.rip = guest.payload.symbol(entry)
    set_regs(vcpu, regs)


@clause("xsave.two-vcpus-same-vm", arch="x86", needs=_NEEDS)
def two_vcpus(context: Context) -> None:
    """Two vCPUs of one VM that take turns on one CPU, and in threads of their own, keep their registers apart.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_create (fpu_alloc_guest_fpstate: one for each vCPU).
    """
    stay_on_one_cpu()
    level = vector_level(context)
    guest = vector_guest(context)
    guest.prepare("_start", privilege=3)
    other = guest.vm.create_vcpu(1)
    cpuid.set_cpuid(other, guest.cpuid.with_apic_id(1))
    set_xcr0(other, plain_features(context))
    vcpus = [(vcpu, Image.random(random.Random(80 + number))) for number, vcpu in enumerate((guest.vcpu, other))]
    # They share the payload's memory: each loads its image, and looks for it, while the other does not run.
    for vcpu, image in vcpus:
        guest.memory.write(guest.payload.symbol("expected"), image.data)
        _enter(guest, vcpu, f"fill_{level}")
        equal("the exit", guest.event(succeeds("KVM_RUN", vcpu.run, context.timeout)), guest.DONE)
        vcpu.tick = guest.payload.symbol("TICK_PORT_NUMBER")
        guest.mailbox.write("params", _ROUNDS * 4, 0)
        _enter(guest, vcpu, "ticks")
    for _ in range(_ROUNDS):
        for vcpu, _ in vcpus:
            equal("the exit", succeeds("KVM_RUN", vcpu.run, context.timeout, 1), Budget(1))
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(vcpu.run, context.timeout, _ROUNDS) for vcpu, _ in vcpus]
    for run in runs:
        equal("the exit in a thread of its own", succeeds("KVM_RUN", run.result), Budget(_ROUNDS))
    for number, (vcpu, image) in enumerate(vcpus):
        image.check_area(f"of vCPU {number}", get_xsave(vcpu), level)
        guest.memory.write(guest.payload.symbol("expected"), image.data)
        _enter(guest, vcpu, f"verify_{level}")
        succeeds("KVM_RUN", vcpu.run, context.timeout)
        image.check(guest)


@clause("xsave.other-thread", arch="x86", needs=_NEEDS)
def other_thread(context: Context) -> None:
    """A vCPU may be run by one thread after another: its registers go along.

    Source: arch/x86/kvm/x86.c, kvm_load_guest_fpu (every KVM_RUN loads them itself).
    """
    turn = _turn(context, 82)
    turn.start(40)
    for _ in range(8):
        with ThreadPoolExecutor(1) as other:
            other.submit(turn.step, context, 3).result()
        turn.step(context, 2)
    turn.look("after several threads")
    turn.finish(context)


@clause("xsave.cross-cpu", arch="x86", needs=(*_NEEDS, CPUS))
def cross_cpu(context: Context) -> None:
    """A vCPU whose thread goes from CPU to CPU keeps its registers.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_load; arch/x86/kernel/fpu/core.c, fpu_swap_kvm_fpstate.
    """
    turn = _turn(context, 83)
    cpus = sorted(os.sched_getaffinity(0))
    turns = [cpus[number % len(cpus)] for number in range(max(20, 2 * len(cpus)))]
    turn.start(len(turns) + 1)
    for cpu in turns:
        os.sched_setaffinity(0, {cpu})
        turn.step(context)
    turn.look(f"after {len(cpus)} CPUs")
    turn.step(context)
    turn.finish(context)


@clause("xsave.signal-interrupt", arch="x86", needs=_NEEDS, timeout=30)
def interrupted(context: Context) -> None:
    """Signals with handlers that interrupt KVM_RUN lose no register of the guest.

    Source: arch/x86/kvm/x86.c, kvm_put_guest_fpu; arch/x86/kernel/fpu/signal.c.
    """
    guest, image = filled_guest(context, 84)
    handled: list[int] = []
    signal.signal(signal.SIGALRM, lambda number, frame: handled.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        limit = time.monotonic() + context.timeout
        while len(handled) < _SIGNALS and time.monotonic() < limit:
            judged_call(context, guest, "ticks", 100, privilege=3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if len(handled) < _SIGNALS:
        context.skip(
            f"needs {_SIGNALS} signals while the guest runs: {len(handled)} were handled in {context.timeout:g} s"
        )
    image.check_area("after the signals", get_xsave(guest.vcpu), vector_level(context))
    keeps(context, guest, image)


def _beside(context: Context, begin: Callable[[], Step], seed: int) -> None:
    def spin(guest: Guest, image: Image, seconds: float) -> None:
        equal("the exit of a guest without end", succeeds("KVM_RUN", guest.resume, seconds), Deadline())
        image.check_area("beside the neighbour", get_xsave(guest.vcpu), vector_level(context))

    beside(context, begin, seed, spin)


@clause("xsave.beside-competitor", arch="x86", needs=_NEEDS, timeout=30)
def beside_competitor(context: Context) -> None:
    """A guest that shares its CPU with a process that holds values in all of its vector registers keeps its own.

    The process too: no XCR0 of a guest may be live while another task saves or restores its registers.

    Source: arch/x86/include/asm/fpu/sched.h, switch_fpu; arch/x86/kvm/x86.c, kvm_load_xfeatures; commit 1811d979c716.
    """
    _beside(context, competing, 85)


@clause("xsave.beside-kernel-fpu", arch="x86", needs=(*_NEEDS, KERNEL_VECTORS), timeout=30)
def beside_kernel(context: Context) -> None:
    """A guest keeps its registers while the kernel uses the vector registers on its CPU, for another process.

    Source: arch/x86/kernel/fpu/core.c, kernel_fpu_begin_mask, save_fpregs_to_fpstate.
    """
    _beside(context, encrypting, 86)
