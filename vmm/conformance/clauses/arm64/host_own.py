# SPDX-License-Identifier: Apache-2.0
"""The VMM's own state beyond its vector registers: ZA, and registers that a debugger writes."""

from __future__ import annotations

import os
import random
from functools import partial

from vmm._kvm import ffi, lib
from vmm.arm64.guest import Guest
from vmm.arm64.own import When, register_set, run_with_vectors, run_with_za, vectors_of, za_size
from vmm.arm64.vector import VectorState, differences
from vmm.arm64.vls import VectorLengths
from vmm.conformance.arm64.common import GUEST_RUNS, OWN_SVE, SVE, lengths, set_image, sve_guest
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, no_difference, true
from vmm.conformance.needs import Need
from vmm.conformance.neighbour import in_child
from vmm.conformance.registry import clause
from vmm.kvm.exits import Exit, MmioWrite
from vmm.probe.arm64.facts import HWCAP2_SME
from vmm.probe.host import Host

_RUNS = 2


def _own_sme(host: Host) -> tuple[bool, str]:
    has = bool(host.facts.hwcap2 & HWCAP2_SME)
    return has, f"HWCAP2_SME is {int(has)}"


def _traceable(host: Host) -> tuple[bool, str]:
    """Whether a child may be traced: a seccomp filter can forbid it."""
    pid = os.fork()
    if pid == 0:
        os._exit(-lib.vmm_trace_me())
    number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return number == 0, f"PTRACE_TRACEME ends with {os.strerror(number) if number else 'success'}"


_OWN_SME = Need("SME for this process", _own_sme)
_TRACEABLE = Need("children that may be traced", _traceable)


def _guest(context: Context, number: int) -> Guest:
    """A guest that is about to fill its registers."""
    guest = sve_guest(context)
    set_image(guest, VectorState.random(lengths(context).size, 1000 * context.options.seed + number))
    guest.prepare("load")
    return guest


def _left(guest: Guest, exit: Exit) -> None:
    equal("the guest's exit", exit, MmioWrite(guest.payload.symbol("EVENT_ADDRESS"), 8, guest.DONE))


@clause("host.za-preserved", arch="arm64", needs=(SVE, _OWN_SME, GUEST_RUNS))
def za_preserved(context: Context) -> None:
    """ZA of the VMM's thread, and with SME2 ZT0, survive a KVM_RUN whose guest fills its vector registers.

    PSTATE.ZA stays 1.

    Source: Documentation/arch/arm64/sme.rst, "System call behaviour"; arch/arm64/kvm/fpsimd.c, kvm_arch_vcpu_load_fp.
    """
    for number in range(_RUNS):
        guest = _guest(context, number)
        mine = random.Random(1000 * context.options.seed + number).randbytes(za_size())
        with judged("KVM_RUN of a VMM that uses ZA"):
            exit, after = run_with_za(guest.vcpu, mine, context.timeout)
        _left(guest, exit)
        true("PSTATE.ZA after KVM_RUN", any(after), "ZA was not there", "1")
        places = [] if after == mine else [at for at, old in enumerate(mine) if after[at] != old]
        no_difference("ZA and ZT0 of the VMM", [f"byte {at}: {after[at]:#x} and not {mine[at]:#x}" for at in places])
        guest.close()


def _traced(context: Context, written: VectorState, when: When, whole: bool) -> None:
    """In a process that is traced: run a guest; what is there afterwards has to be what the tracer wrote."""
    if number := lib.vmm_trace_me():
        raise RuntimeError(f"this process cannot be traced: {os.strerror(-number)}")
    size = written.size
    with vectors_of(size):
        guest = _guest(context, size)
        before = VectorState.random(size, 7)
        with judged("KVM_RUN of a VMM that is traced"):
            exit, image = run_with_vectors(guest.vcpu, before.image(), context.timeout, when=when)
        _left(guest, exit)
    after = VectorState.from_image(image, size)
    what = f"the registers that the tracer wrote, of {size} bytes"
    if whole:
        no_difference(what, differences(written.image(), after.image()))
        return
    no_difference(what, differences(written.low().image(), after.low().image()))
    upper = {f"Z{n} above 128 bits": (written.z[n][16:], after.z[n][16:]) for n in range(32)}
    upper |= {f"P{n}": (written.p[n], after.p[n]) for n in range(16)} | {"FFR": (written.ffr, after.ffr)}
    for name, (old, new) in upper.items():
        true(f"{name} that the tracer wrote", not any(new) or new == old, new, f"{old.hex(' ', 4)} or 0")


def _tracer(registers: bytes, pid: int) -> int:
    status = int(lib.vmm_trace(pid, ffi.from_buffer("uint8_t[]", registers), len(registers)))
    if status < 0:
        raise RuntimeError(f"the tracer failed: {os.strerror(-status)}")
    return status


def _each_length(context: Context, when: When, *, whole: bool) -> None:
    own = VectorLengths(context.host.facts.host_lengths)
    for vq in sorted({min(own), own.maximum}):
        written = VectorState.random(16 * vq, 1000 * context.options.seed + vq)
        work = partial(_traced, context, written, when, whole)
        in_child(f"a VMM with vectors of {16 * vq} bytes", work, partial(_tracer, register_set(written)))


@clause("host.traced-before-run", arch="arm64", needs=(SVE, OWN_SVE, GUEST_RUNS, _TRACEABLE))
def traced_before(context: Context) -> None:
    """V0 to V31, FPSR and FPCR that a debugger writes into a VMM's thread survive the KVM_RUN that comes next.

    The rest of Z, P and FFR are what it wrote or 0, as after any system call.

    Source: arch/arm64/kernel/ptrace.c, sve_set_common; arch/arm64/kvm/fpsimd.c, kvm_arch_vcpu_load_fp;
    Documentation/arch/arm64/sve.rst, "ptrace extensions".
    """
    _each_length(context, When.TRACED_BEFORE_RUN, whole=False)


@clause("host.traced-after-run", arch="arm64", needs=(SVE, OWN_SVE, GUEST_RUNS, _TRACEABLE))
def traced_after(context: Context) -> None:
    """Z, P, FFR, FPSR and FPCR that a debugger writes into a VMM's thread after a KVM_RUN are what it finds.

    From 6.2 (commit 93ae6b01bafe) to 6.13 (fbc7e61195e2) KVM left SVE enabled for a thread whose SVE state the kernel
    did not have.

    Source: arch/arm64/kernel/ptrace.c, sve_set_common; arch/arm64/kvm/fpsimd.c, kvm_arch_vcpu_put_fp;
    Documentation/arch/arm64/sve.rst, "ptrace extensions".
    """
    _each_length(context, When.TRACED_AFTER_RUN, whole=True)
