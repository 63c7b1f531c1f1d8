# SPDX-License-Identifier: Apache-2.0
"""The VMM's own vector registers and vector length: a guest must neither change them nor show through them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from vmm.arm64.guest import Guest
from vmm.arm64.own import When, run_with_vectors, vector_length, vectors_of
from vmm.arm64.vector import VectorState, differences
from vmm.arm64.vls import VectorLengths
from vmm.conformance.arm64.common import (
    GUEST_RUNS,
    OWN_SVE,
    SVE,
    call,
    lengths,
    lengths_to_try,
    observed,
    set_image,
    sve_guest,
    warnings,
)
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, no_difference, true
from vmm.conformance.neighbour import KERNEL_VECTORS, Neighbour, encrypting, in_child
from vmm.conformance.registry import clause
from vmm.kvm.exits import Deadline, Exit, MmioWrite

_NEON_WAIT = 0.02  # seconds: several turns of a scheduler that shares the CPU
_SPIN = 0.05
_NEEDS = (SVE, OWN_SVE, GUEST_RUNS)


def _own_lengths(context: Context) -> VectorLengths:
    return VectorLengths(context.host.facts.host_lengths)


def _beside(context: Context, own: int) -> list[VectorLengths]:
    """Sets of a guest that matter to a VMM with vectors of ``own`` quadwords: shorter, the same, longer; or all."""
    every = lengths_to_try(context)
    if context.options.exhaustive:
        return every
    return [sizes for sizes in every if sizes.maximum in (every[0].maximum, own, every[-1].maximum)]


def _combinations(context: Context) -> Iterator[tuple[int, VectorLengths, Guest, VectorState, VectorState]]:
    """Each vector length of the VMM with sets of a guest: its size in bytes, the set, the guest, the state of each.

    The VMM's thread has that length until the next one is asked for. A set has one guest, which runs again and again.
    """
    number = 1000 * context.options.seed
    guests: dict[VectorLengths, Guest] = {}
    for own in _own_lengths(context):
        with vectors_of(16 * own):
            for sizes in _beside(context, own):
                number += 2
                if sizes not in guests:
                    guests[sizes] = sve_guest(context, sizes)
                mine, its = VectorState.random(16 * own, number), VectorState.random(sizes.size, number + 1)
                yield 16 * own, sizes, guests[sizes], mine, its


def _run(context: Context, guest: Guest, its: VectorState, mine: VectorState, when: When) -> VectorState:
    """Have a guest fill its registers with ``its`` while the VMM has ``mine``; return the VMM's afterwards."""
    set_image(guest, its)
    guest.prepare("load")
    with judged("KVM_RUN of a VMM that uses SVE"):
        exit, image = run_with_vectors(guest.vcpu, mine.image(), context.timeout, when=when, wait=_NEON_WAIT)
    _left(guest, exit)
    return VectorState.from_image(image, mine.size)


def _left(guest: Guest, exit: Exit) -> None:
    """The guest has to have left with its event: it did run."""
    equal("the guest's exit", exit, MmioWrite(guest.payload.symbol("EVENT_ADDRESS"), 8, guest.DONE))


@clause("host.v-regs-preserved", arch="arm64", needs=_NEEDS, timeout=30)
def v_preserved(context: Context) -> None:
    """V0 to V31, FPSR and FPCR of the VMM's thread survive a KVM_RUN whose guest fills its own.

    Source: Documentation/arch/arm64/sve.rst, "System call behaviour"; arch/arm64/kvm/fpsimd.c, kvm_arch_vcpu_load_fp.
    """
    for size, sizes, guest, mine, its in _combinations(context):
        after = _run(context, guest, its, mine, When.BEFORE_RUN)
        what = f"the VMM's registers with vectors of {size} bytes, the guest's {sizes}"
        no_difference(what, differences(mine.low().image(), after.low().image()))


@clause("host.no-guest-leak", arch="arm64", needs=_NEEDS, timeout=30)
def no_leak(context: Context) -> None:
    """After KVM_RUN the VMM's Z above 128 bits, P and FFR are its own or 0, never what the guest had in its own.

    Source: Documentation/arch/arm64/sve.rst, "System call behaviour"; arch/arm64/kvm/fpsimd.c.
    """
    for size, sizes, guest, mine, its in _combinations(context):
        after = _run(context, guest, its, mine, When.BEFORE_RUN)
        registers = {f"Z{n} above 128 bits": (mine.z[n][16:], after.z[n][16:]) for n in range(32)}
        registers |= {f"P{n}": (mine.p[n], after.p[n]) for n in range(16)} | {"FFR": (mine.ffr, after.ffr)}
        for name, (old, new) in registers.items():
            what = f"{name} of a VMM with vectors of {size} bytes, the guest's {sizes}"
            true(what, not any(new) or new == old, new, f"{old.hex(' ', 4)} or 0")


@clause("host.sve-after-run-signal", arch="arm64", needs=_NEEDS, timeout=30)
def after_run_signal(context: Context) -> None:
    """A VMM that uses SVE after KVM_RUN keeps its registers, predicates and all, over a signal.

    From 6.2 (commit 93ae6b01bafe) to 6.13 KVM left SVE enabled for a thread whose SVE state the kernel did not save.

    Source: arch/arm64/kvm/fpsimd.c, kvm_arch_vcpu_load_fp; Documentation/arch/arm64/sve.rst, "Signal handling".
    """
    for size, sizes, guest, mine, its in _combinations(context):
        after = _run(context, guest, its, mine, When.AFTER_RUN_SIGNAL)
        what = f"the VMM's registers with vectors of {size} bytes over a signal, the guest's {sizes}"
        no_difference(what, differences(mine.image(), after.image()))


@clause("host.vl-unchanged", arch="arm64", needs=_NEEDS, timeout=30)
def length_unchanged(context: Context) -> None:
    """Neither the VMM's vector length nor the guest's depends on the other: each keeps its own over KVM_RUN.

    Source: arch/arm64/kvm/hyp/include/hyp/switch.h, fpsimd_lazy_switch_to_host, fpsimd_lazy_switch_to_guest.
    """
    for own in _own_lengths(context):
        with vectors_of(16 * own):
            equal("the VMM's vector length", vector_length(), (16 * own, 16 * own))
            for sizes in _beside(context, own):
                guest = sve_guest(context, sizes)
                for last in (0, sizes.maximum - 1, 15):
                    call(context, guest, f"a guest with {sizes}", "lengths", last)
                    equal(f"the VMM's after a guest with {sizes}", vector_length(), (16 * own, 16 * own))
                    expected = [16 * sizes.granted(number + 1) for number in range(16)]
                    equal(f"RDVL of a guest with {sizes}", guest.mailbox.values, expected)
                guest.close()


@clause("host.sve-after-run-kernel-neon", arch="arm64", needs=(*_NEEDS, KERNEL_VECTORS), timeout=60)
def after_run_kernel_neon(context: Context) -> None:
    """A VMM that uses SVE after KVM_RUN keeps its registers while the kernel uses AdvSIMD on the same CPU.

    Source: arch/arm64/kernel/fpsimd.c, kernel_neon_begin, fpsimd_thread_switch; arch/arm64/kvm/fpsimd.c.
    """
    cpu = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    with Neighbour(cpu, encrypting) as neighbour:
        neighbour.wait(context.timeout)
        for size, sizes, guest, mine, its in _combinations(context):
            done = neighbour.operations
            while not neighbour.has_worked_since(done):
                after = _run(context, guest, its, mine, When.AFTER_RUN_WAIT)
                what = f"the VMM's registers with vectors of {size} bytes, the guest's {sizes}"
                no_difference(what, differences(mine.image(), after.image()))


def _beside_kernel_neon(context: Context, own: int) -> None:
    """Run a guest with short vectors while the kernel uses AdvSIMD, and look at the registers of both."""
    with vectors_of(16 * own):
        guest = sve_guest(context)
        state = VectorState.random(lengths(context).size, 1000 * context.options.seed + own)
        set_image(guest, state)
        call(context, guest, "a guest that shortens its vectors", "load_zcr", 0)
        guest.prepare("spin")
        with judged("KVM_RUN of a guest without end"):
            equal("the exit of a guest without end", guest.resume(_SPIN), Deadline())
        equal("the VMM's vector length", vector_length(), (16 * own, 16 * own))
        call(context, guest, "the guest afterwards", "store")
        low = VectorState.from_image(observed(guest), 16)
        no_difference("the guest's registers", differences(state.low(predicates=True).image(), low.image()))
        guest.close()


@clause("host.no-sigkill-kernel-neon", arch="arm64", needs=(*_NEEDS, KERNEL_VECTORS), timeout=60)
def no_sigkill(context: Context) -> None:
    """A VMM whose guest has made its vectors short lives on while the kernel uses AdvSIMD on its CPU.

    From 5.13 to 6.13 (fixed by commit 59419f10045b) the kernel could meet the guest's ZCR_EL1 when it saved state
    for a user of its own: a warning, and SIGKILL for the VMM. Where the log can be read it has no such warning.
    The VMM has its shortest vectors and its longest (each of its lengths with --exhaustive).

    Source: arch/arm64/kernel/fpsimd.c, fpsimd_save_user_state; arch/arm64/kvm/hyp/include/hyp/switch.h.
    """
    cpu = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    no_warnings = warnings(context)
    with Neighbour(cpu, encrypting) as neighbour:
        neighbour.wait(context.timeout)
        every = sorted(_own_lengths(context))
        for own in every if context.options.exhaustive else sorted({every[0], every[-1]}):
            done = neighbour.operations
            # On a busy host the neighbour may not have its turn in one go.
            while not neighbour.has_worked_since(done):
                in_child(f"a VMM with vectors of {16 * own} bytes", partial(_beside_kernel_neon, context, own))
    no_warnings()
