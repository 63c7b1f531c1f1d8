# SPDX-License-Identifier: Apache-2.0
"""The guest: that it runs, and that the vector state it loads is what KVM keeps and shows, whoever else runs."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor

from vmm._kvm import lib
from vmm.arm64 import boot
from vmm.arm64.guest import MEMORY_SIZE, Guest
from vmm.arm64.registers import FFR, FPCR, FPSR, PC, SYSTEM, x, z
from vmm.arm64.registers import SVE as SVE_REGISTERS
from vmm.arm64.vcpu import read, write
from vmm.arm64.vector import VectorState, differences
from vmm.conformance.arm64.common import (
    GUEST_RUNS,
    SEVERAL,
    SVE,
    call,
    compare,
    finish,
    hold,
    in_time,
    lengths,
    lengths_to_try,
    plain_guest,
    plain_vcpu,
    set_image,
    sve_guest,
    verify,
)
from vmm.conformance.arm64.instructions import mrs, msr
from vmm.conformance.arm64.psci import CONTEXT, RUNNABLE, STOPPED, secondary, switch_on
from vmm.conformance.context import Context
from vmm.conformance.expect import Violation, equal, no_difference, refused, succeeds, true
from vmm.conformance.needs import CPUS, capability
from vmm.conformance.registry import clause
from vmm.kvm.exits import Budget, Exit, MmioWrite, Unsupported
from vmm.probe.arm64.first_exit import FIRST_EXIT, first_exit

_NO_GRANULE = 0xF  # ID_AA64MMFR0_EL1.TGran4
_UNDEFINED, _SVE_TRAP = 0x00, 0x19
_UNBACKED = 0xD0000000
_ZCR = (3, 0, 1, 2, 0)
_RDVL = 0x04BF5020
# RDVL X0, #1; PTRUE P0.B; LDR Z0, [X0]; WRFFR P0.B; RDFFR P0.B.
_SVE_INSTRUCTIONS = {
    "RDVL": _RDVL, "PTRUE": 0x2518E3E0, "LDR Z0": 0x85804000, "WRFFR": 0x25289000, "RDFFR": 0x2519F000,
    "MRS ZCR_EL1": mrs(*_ZCR), "MSR ZCR_EL1": msr(*_ZCR),
}  # fmt: skip
_MOVI_V0 = 0x4F00E6A0  # MOVI V0.16B, #5
_ROUNDS = 60


def _state(context: Context, size: int, number: int = 0) -> VectorState:
    return VectorState.random(size, 1000 * context.options.seed + number)


def _equal_states(what: str, found: VectorState, expected: VectorState) -> None:
    """Two states have to be equal; the registers and bytes that differ are the evidence."""
    no_difference(what, differences(expected.image(), found.image()))


@clause("guest.runs", arch="arm64")
def guest_runs(context: Context) -> None:
    """A guest that has just switched its MMU on gets to its first exit, a store to addresses without memory.

    On its way KVM resolves faults at stage 2 for its page tables, its instructions and the store. Where no guest gets
    so far this is the one finding: every other clause that runs a guest is left out.

    Source: arch/arm64/kvm/mmu.c, kvm_handle_guest_abort; arch/arm64/kvm/hyp/include/hyp/fault.h, __get_fault_info.
    """
    granule = read(plain_vcpu(context), SYSTEM["ID_AA64MMFR0_EL1"]) >> 28 & 0xF
    if granule == _NO_GRANULE:
        context.skip("ID_AA64MMFR0_EL1.TGran4 is 0xf: this CPU has no pages of 4 KiB, which the guests here use")
    equal("the first exit", succeeds("KVM_RUN", first_exit, context.kvm, context.timeout), FIRST_EXIT)


@clause("guest.sve-undef-without", arch="arm64", needs=(GUEST_RUNS,))
def undefined_without(context: Context) -> None:
    """Without SVE every SVE instruction, and ZCR_EL1, is undefined for the guest although its own traps are off.

    AdvSIMD works.

    Source: arch/arm64/kvm/handle_exit.c, handle_sve; arch/arm64/kvm/hyp/include/hyp/switch.h, kvm_hyp_handle_fpsimd.
    """
    guest = plain_guest(context)
    for name, instruction in _SVE_INSTRUCTIONS.items():
        call(context, guest, f"a guest's {name}", "execute", instruction, guest.payload.symbol("stack_top"))
        equal(f"faults of {name}", guest.mailbox.values[15], 1)
        fault = guest.fault()
        equal(f"the exception class of {name}", fault.exception_class, _UNDEFINED)
        equal(f"where {name} faulted", fault.elr, guest.payload.symbol("slot"))
    call(context, guest, "a guest's AdvSIMD instruction", "execute", _MOVI_V0)
    equal("faults of an AdvSIMD instruction", guest.mailbox.values[15], 0)


@clause("guest.sve-own-trap", arch="arm64", needs=(SVE, GUEST_RUNS))
def own_trap(context: Context) -> None:
    """With CPACR_EL1.ZEN 0 an SVE instruction traps to the guest's own EL1, and KVM does not see it.

    Source: Arm ARM, D23 "CPACR_EL1".
    """
    guest = sve_guest(context, payload="hello")
    for zen, faults in ((0, 1), (3, 0), (0, 1)):
        guest.prepare("execute", _RDVL, 0)
        write(guest.vcpu, SYSTEM["CPACR_EL1"], boot.CPACR & ~(3 << 16) | zen << 16)
        finish(context, guest, f"a guest with ZEN {zen}")
        equal(f"faults with ZEN {zen}", guest.mailbox.values[15], faults)
        if faults:
            equal("the exception class", guest.fault().exception_class, _SVE_TRAP)


@clause("guest.load-user-state", arch="arm64", needs=(SVE, GUEST_RUNS), timeout=30)
def load_user_state(context: Context) -> None:
    """Z, P, FFR, FPSR and FPCR as KVM_SET_ONE_REG wrote them are what the guest finds, at every vector length.

    Also when they are written between two runs of a guest that uses them.

    Source: arch/arm64/kvm/hyp/include/hyp/switch.h, __hyp_sve_restore_guest; arch/arm64/kvm/fpsimd.c.
    """
    for wanted in lengths_to_try(context):
        guest = sve_guest(context, wanted)
        for number in range(3):
            state = _state(context, wanted.size, number)
            succeeds("writing Z, P, FFR, FPSR and FPCR", state.set, guest.vcpu)
            verify(context, guest, f"the guest's registers with {wanted}, time {number + 1}", state)
        guest.close()


@clause("guest.save-guest-state", arch="arm64", needs=(SVE, GUEST_RUNS), timeout=30)
def save_guest_state(context: Context) -> None:
    """What the guest loads into Z, P, FFR, FPSR and FPCR is what KVM_GET_ONE_REG reads, at every vector length.

    And reading changes nothing.

    Source: arch/arm64/kvm/fpsimd.c, kvm_arch_vcpu_put_fp; arch/arm64/kvm/guest.c, get_sve_reg.
    """
    for wanted in lengths_to_try(context):
        guest = sve_guest(context, wanted)
        state = _state(context, wanted.size)
        set_image(guest, state)
        call(context, guest, f"a guest that loads its registers with {wanted}", "load")
        for time in ("first", "second"):
            what = f"the {time} reading with {wanted}"
            _equal_states(what, succeeds(what, VectorState.get, guest.vcpu, wanted.size), state)
        verify(context, guest, f"the guest's registers after it with {wanted}", state)
        guest.close()


@clause("guest.kept-over-exits", arch="arm64", needs=(SVE, GUEST_RUNS), timeout=30)
def kept_over_exits(context: Context) -> None:
    """The guest's registers survive exits that its VMM answers without looking at them.

    Source: arch/arm64/kvm/fpsimd.c, kvm_arch_vcpu_load_fp, kvm_arch_vcpu_put_fp.
    """
    for wanted in lengths_to_try(context):
        guest = sve_guest(context, wanted)
        hold(context, guest, f"the guest's registers with {wanted}", _state(context, wanted.size))
        guest.close()


@clause("guest.untouched-fp", arch="arm64", needs=(SVE, GUEST_RUNS))
def untouched(context: Context) -> None:
    """A guest that uses no vector register leaves the state as it was written.

    Source: arch/arm64/kvm/fpsimd.c (the state is loaded at the first use).
    """
    size = lengths(context).size
    guest = sve_guest(context)
    state = _state(context, size)
    state.set(guest.vcpu)
    call(context, guest, "a guest without vectors", "ticks", 20)
    _equal_states("the state after a run", VectorState.get(guest.vcpu, size), state)


def _faulted(ffr: bytes, available: int) -> int:
    """Return how many elements a first-fault load of bytes loaded by its FFR: a run of ones."""
    value = int.from_bytes(ffr, "little")
    loaded = value.bit_length()
    if value != (1 << loaded) - 1 or not 1 <= loaded <= available:
        raise Violation("FFR", f"1 to {available} ones from bit 0", f"{value:#x}")
    return loaded


@clause("guest.ffr-preserved", arch="arm64", needs=(SVE, GUEST_RUNS))
def ffr_preserved(context: Context) -> None:
    """FFR as a first-fault load over the end of memory leaves it survives exits, and a restore into another VM.

    Source: arch/arm64/kernel/entry-fpsimd.S, sve_save, sve_load; arch/arm64/kvm/guest.c, get_sve_reg.
    """
    size = lengths(context).size
    for available in sorted({1, 5, size // 2 + 1, size - 1}):
        guest = sve_guest(context)
        data = bytes(range(1, available + 1))
        guest.memory.write(MEMORY_SIZE - available, data)
        call(context, guest, "a first-fault load", "first_fault", MEMORY_SIZE - available)
        loaded = _faulted(guest.vcpu.get_one_reg(FFR)[: size // 8], available)
        equal("what was loaded", guest.vcpu.get_one_reg(z(0))[:loaded], data[:loaded])
        state = VectorState.get(guest.vcpu, size)
        verify(context, guest, f"after {loaded} bytes were loaded", state)
        guest.close()
        other = sve_guest(context)
        state.set(other.vcpu)
        verify(context, other, f"in another VM after {loaded} bytes were loaded", state)
        other.close()


@clause("guest.zcr-shrink-full-width", arch="arm64", needs=(SVE, SEVERAL, GUEST_RUNS))
def shrink(context: Context) -> None:
    """A smaller ZCR_EL1.LEN of the guest leaves each register's upper bytes as they were or 0, never anything else.

    They are read at the full length, and a guest that goes back to it finds what was read.

    Source: Arm ARM, D23 "ZCR_EL1" (bits above a reduced length); arch/arm64/kvm/hyp/include/hyp/switch.h.
    """
    full = lengths(context)
    for small in sorted(full - {full.maximum}):
        guest = sve_guest(context)
        state = _state(context, full.size, small)
        set_image(guest, state)
        call(context, guest, f"a guest that shortens its vectors to {16 * small} bytes", "load_zcr", small - 1)
        found = VectorState.get(guest.vcpu, full.size)
        keep = 16 * small
        for number, (value, old) in enumerate(zip(found.z, state.z, strict=True)):
            equal(f"Z{number} within {keep} bytes", value[:keep], old[:keep])
            upper, was = value[keep:], old[keep:]
            true(f"Z{number} above {keep} bytes", upper in (was, bytes(len(was))), upper, f"{was.hex()} or 0")
        for number, (value, old) in enumerate(zip(found.p, state.p, strict=True)):
            equal(f"P{number} within {2 * small} bytes", value[: 2 * small], old[: 2 * small])
            upper, was = value[2 * small :], old[2 * small :]
            true(f"P{number} above it", upper in (was, bytes(len(was))), upper, f"{was.hex()} or 0")
        write(guest.vcpu, SYSTEM["ZCR_EL1"], 0xF)
        verify(context, guest, f"back from {keep} bytes", found)
        guest.close()


def _vector_store(guest: Guest, timeout: float) -> Exit:
    guest.prepare("store_vector", _UNBACKED + 0x20)
    return in_time(guest.resume(timeout))


@clause("guest.mmio-vector-nisv", arch="arm64", needs=(capability("KVM_CAP_ARM_NISV_TO_USER"), GUEST_RUNS))
def vector_mmio(context: Context) -> None:
    """A vector store to memory that is not there ends KVM_RUN with ENOSYS, or KVM_EXIT_ARM_NISV if it was asked for.

    Its syndrome does not say what was to be stored. PC stays at the instruction.

    Source: arch/arm64/kvm/mmio.c, io_mem_abort; Documentation/virt/kvm/api.rst, KVM_EXIT_ARM_NISV.
    """
    guest = plain_guest(context)
    refused("KVM_RUN", errno.ENOSYS, _vector_store, guest, context.timeout)
    equal("PC", read(guest.vcpu, PC), guest.payload.symbol("at_store_vector"))
    guest.vm.enable_cap(lib.KVM_CAP_ARM_NISV_TO_USER)
    exit = succeeds("KVM_RUN with KVM_CAP_ARM_NISV_TO_USER", _vector_store, guest, context.timeout)
    equal("the exit", exit, Unsupported(lib.KVM_EXIT_ARM_NISV))
    equal("the address", guest.vcpu.kvm_run.arm_nisv.fault_ipa, _UNBACKED + 0x20)
    equal("PC", read(guest.vcpu, PC), guest.payload.symbol("at_store_vector"))


def _step(context: Context, guest: Guest, ticks: int = 1) -> None:
    equal("the exit", succeeds("KVM_RUN", guest.resume, context.timeout, ticks), Budget(ticks))


def _finish(context: Context, guest: Guest, what: str, state: VectorState) -> None:
    compare(guest, what, finish(context, guest, what), state)


def _start(guest: Guest, state: VectorState, ticks: int) -> None:
    set_image(guest, state)
    guest.prepare("hold", ticks)


@clause("guest.two-vms-same-cpu", arch="arm64", needs=(SVE, GUEST_RUNS), timeout=60)
def two_vms(context: Context) -> None:
    """Guests that take turns on one CPU, with the longest vectors, the shortest and without SVE, keep their state.

    No byte of one appears in another, and each is read between its turns.

    Source: arch/arm64/kvm/fpsimd.c, kvm_arch_vcpu_load_fp, kvm_arch_vcpu_put_fp.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rounds = _ROUNDS * (10 if context.options.exhaustive else 1)
    full = lengths(context)
    least = full.up_to(min(full))
    runs = [(sve_guest(context, sizes), _state(context, sizes.size, sizes.size)) for sizes in (full, least, full)]
    plain = plain_guest(context, "fpsimd"), VectorState.random(16, context.options.seed, sve=False)
    runs.append(plain)
    for guest, state in runs:
        _start(guest, state, rounds + 1)
    for number in range(rounds):
        for guest, state in runs:
            _step(context, guest)
            if number % 20 == 7:
                size = state.size
                found = VectorState.get(guest.vcpu, size) if state.p else VectorState.get_fpsimd(guest.vcpu)
                _equal_states(f"a guest with vectors of {size} bytes between its turns", found, state)
    for guest, state in runs:
        _step(context, guest)
        _finish(context, guest, f"a guest with vectors of {state.size} bytes", state)


@clause("guest.other-thread", arch="arm64", needs=(SVE, GUEST_RUNS))
def other_thread(context: Context) -> None:
    """A vCPU may be run by one thread after another: its registers go along.

    Source: arch/arm64/kvm/fpsimd.c, kvm_arch_vcpu_load_fp (every thread loads them itself).
    """
    guest, state = sve_guest(context), _state(context, lengths(context).size)
    _start(guest, state, 60)
    for _ in range(10):
        with ThreadPoolExecutor(1) as other:
            other.submit(_step, context, guest, 3).result()
        _step(context, guest, 2)
    _finish(context, guest, "the guest's registers", state)


@clause("guest.cross-cpu", arch="arm64", needs=(SVE, CPUS, GUEST_RUNS))
def cross_cpu(context: Context) -> None:
    """A vCPU whose thread goes from CPU to CPU keeps its registers.

    Source: arch/arm64/kvm/fpsimd.c, kvm_arch_vcpu_put_fp.
    """
    guest, state = sve_guest(context), _state(context, lengths(context).size)
    cpus = sorted(os.sched_getaffinity(0))
    turns = [cpus[number % len(cpus)] for number in range(max(40, 2 * len(cpus)))]
    _start(guest, state, len(turns) + 1)
    for cpu in turns:
        os.sched_setaffinity(0, {cpu})
        _step(context, guest)
        _equal_states(f"the state after CPU {cpu}", VectorState.get(guest.vcpu, state.size), state)
    _step(context, guest)
    _finish(context, guest, "the guest's registers", state)


@clause("guest.psci-cpu-on-resets-sve", arch="arm64", needs=(SVE, GUEST_RUNS))
def cpu_on_resets(context: Context) -> None:
    """CPU_ON gives the vCPU Z, P, FFR, FPSR, FPCR and ZCR_EL1 of 0, X0 and PC as the call says; all is seen at once.

    KVM_GET_ONE_REG shows the state after the reset although the vCPU has not run yet.

    Source: arch/arm64/kvm/reset.c, kvm_reset_vcpu; arch/arm64/kvm/arm.c, kvm_arch_vcpu_ioctl (KVM_REQ_VCPU_RESET).
    """
    guest = sve_guest(context, payload="hello")
    second = secondary(guest)
    for register in SVE_REGISTERS:
        second.set_one_reg(register, b"\xa5" * register.size)
    for register in (FPSR, FPCR, SYSTEM["ZCR_EL1"]):
        write(second, register, 1)
    equal("MP state before CPU_ON", second.mp_state, STOPPED)
    equal("what CPU_ON answers", switch_on(context, guest, second), 0)
    for register in (*SVE_REGISTERS, FPSR, FPCR, SYSTEM["ZCR_EL1"]):
        equal(register.name, second.get_one_reg(register), bytes(register.size))
    equal("X0", read(second, x(0)), CONTEXT)
    equal("PC", read(second, PC), guest.payload.symbol("secondary"))
    equal("MP state after CPU_ON", second.mp_state, RUNNABLE)
    event = MmioWrite(guest.payload.symbol("EVENT_ADDRESS"), 8, CONTEXT)
    equal("its first exit", succeeds("its KVM_RUN", second.run, context.timeout), event)
