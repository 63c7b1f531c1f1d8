# SPDX-License-Identifier: Apache-2.0
"""Several vCPUs of one VM: each has its own vector state, and what PSCI and MP states do to one that starts."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.guest import Guest
from vmm.arm64.registers import FPCR, FPSR, PC, SYSTEM, v, x
from vmm.arm64.registers import SVE as SVE_REGISTERS
from vmm.arm64.vcpu import Feature, read, write
from vmm.arm64.vector import VectorState, differences
from vmm.conformance.arm64.common import GUEST_RUNS, SVE, call, lengths, plain_guest, set_image, verify
from vmm.conformance.arm64.psci import CONTEXT, RUNNABLE, STOPPED, switch_on
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, no_difference, succeeds, true
from vmm.conformance.registry import clause
from vmm.guest.processor import Processor
from vmm.kvm.exits import Budget
from vmm.kvm.vcpu import Vcpu

_TURNS = 12
_RDVL = 0x04BF5020
_UNDEFINED = 0x00


def _guest(context: Context, *features: Feature, vcpus: int = 2) -> Guest:
    payload = "sve" if Feature.SVE in features else "fpsimd"
    return context.own(Guest(context.kvm, payload, features=(Feature.PSCI_0_2, *features), vcpus=vcpus))


def _states(context: Context, guest: Guest) -> list[VectorState]:
    """Another state for each vCPU, which it is about to load and to hold for some turns."""
    sve = Feature.SVE in guest.features
    size = lengths(context).size if sve else 16
    found = []
    for index in range(len(guest.processors)):
        state = VectorState.random(size, 1000 * context.options.seed + index, sve=sve)
        shift = guest.own[index - 1].data - (guest.payload.data or 0) if index else 0
        guest.memory.write(guest.payload.symbol("image") + shift, state.image())
        guest.prepare_vcpu(index, "hold", _TURNS + 1)
        found.append(state)
    return found


def _read(vcpu: Vcpu, state: VectorState) -> VectorState:
    return VectorState.get(vcpu, state.size) if state.p else VectorState.get_fpsimd(vcpu)


def _turn(context: Context, processor: Processor) -> None:
    equal("the exit", succeeds("KVM_RUN", processor.run, context.timeout, 1), Budget(1))


def _ends(context: Context, guest: Guest, states: list[VectorState]) -> None:
    """Each vCPU compares its registers with what it loaded, and KVM shows the same of them."""
    for number, (processor, state) in enumerate(zip(guest.processors, states, strict=True)):
        _turn(context, processor)
        exit = succeeds("KVM_RUN", processor.run, context.timeout, 1)
        equal(f"the event of vCPU {number}", guest.event(exit), guest.DONE)
        found = _read(processor.vcpu, state)
        no_difference(f"the registers of vCPU {number}", differences(state.image(), found.image()))


def _alternate(context: Context, guest: Guest) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    states = _states(context, guest)
    for turn in range(_TURNS):
        for number, (processor, state) in enumerate(zip(guest.processors, states, strict=True)):
            _turn(context, processor)
            if turn % 5 == 3:
                what = f"the registers of vCPU {number} between its turns"
                no_difference(what, differences(state.image(), _read(processor.vcpu, state).image()))
    _ends(context, guest, states)


@clause("guest.two-vcpus-sve", arch="arm64", needs=(SVE, GUEST_RUNS), timeout=30)
def two_with_sve(context: Context) -> None:
    """Two vCPUs of one VM that take turns on one CPU keep Z, P, FFR, FPSR and FPCR, each its own.

    Source: arch/arm64/kvm/fpsimd.c, kvm_arch_vcpu_load_fp, kvm_arch_vcpu_put_fp.
    """
    _alternate(context, _guest(context, Feature.SVE))


@clause("guest.two-vcpus-fpsimd", arch="arm64", needs=(GUEST_RUNS,), timeout=30)
def two_without_sve(context: Context) -> None:
    """Two vCPUs of one VM without SVE that take turns on one CPU keep V0 to V31, FPSR and FPCR, each its own.

    Source: arch/arm64/kvm/fpsimd.c, kvm_arch_vcpu_load_fp, kvm_arch_vcpu_put_fp.
    """
    _alternate(context, _guest(context))


@clause("guest.two-vcpus-threads", arch="arm64", needs=(GUEST_RUNS,), timeout=30)
def two_threads(context: Context) -> None:
    """Two vCPUs of one VM in two threads at once keep their vector registers, also when the threads change vCPUs.

    Source: arch/arm64/kvm/fpsimd.c, kvm_arch_vcpu_load_fp (every thread loads its vCPU's).
    """
    sve = (Feature.SVE,) if context.host.facts.capabilities["KVM_CAP_ARM_SVE"] else ()
    guest = _guest(context, *sve)
    states = _states(context, guest)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for turn in range(_TURNS):
            threads = (one, other) if turn % 4 < 2 else (other, one)
            runs = [
                thread.submit(_turn, context, processor)
                for thread, processor in zip(threads, guest.processors, strict=True)
            ]
            for run in runs:
                run.result()
    _ends(context, guest, states)


@clause("guest.sve-undef-keeps-v", arch="arm64", needs=(GUEST_RUNS,))
def undefined_keeps(context: Context) -> None:
    """Without SVE an SVE instruction is undefined and AdvSIMD goes on after it, with V0 to V31 as they were.

    Whether the vector registers were in use when it came or not.

    Source: arch/arm64/kvm/handle_exit.c, handle_sve; arch/arm64/kvm/hyp/include/hyp/switch.h, kvm_hyp_handle_fpsimd.
    """
    guest = plain_guest(context, "fpsimd")
    first, second = (VectorState.random(16, context.options.seed + n, sve=False) for n in range(2))
    first.set_fpsimd(guest.vcpu)
    for what, state in (("that are not in use", first), ("in use", second)):
        if state is second:
            set_image(guest, state)
            call(context, guest, "a guest that loads its registers", "load")
        call(context, guest, "a guest's RDVL", "execute", _RDVL)
        equal(f"faults of RDVL with registers {what}", guest.mailbox.values[15], 1)
        equal(f"the exception class of RDVL with registers {what}", guest.fault().exception_class, _UNDEFINED)
        verify(context, guest, f"registers {what} after RDVL", state)


def _secondary(guest: Guest) -> Vcpu:
    """A second vCPU of the features of the first, switched off, in whose registers there is something."""
    vcpu = guest.vm.create_vcpu(1)
    vcpus.init(vcpu, Feature.POWER_OFF, *guest.features)
    vectors = SVE_REGISTERS if Feature.SVE in guest.features else tuple(v(number) for number in range(32))
    if Feature.SVE in guest.features:
        vcpus.finalize(vcpu)
        write(vcpu, SYSTEM["ZCR_EL1"], 1)
    for register in vectors:
        vcpu.set_one_reg(register, b"\xa5" * register.size)
    for register in (*(x(number) for number in range(31)), FPSR, FPCR, SYSTEM["CPACR_EL1"]):
        write(vcpu, register, 1)
    return vcpu


def _left_with(context: Context, guest: Guest, vcpu: Vcpu, bits: int) -> None:
    """Run the second vCPU; what it finds in its registers beside X0 are these bits."""
    exit = succeeds("KVM_RUN of the second vCPU", vcpu.run, context.timeout)
    event = guest.event(exit)
    true("where it leaves", event is not None, exit, "the store of its event")
    equal("bits that its registers have, with X0 not the context", (event or 0) ^ CONTEXT, bits)


def _switched_on(context: Context, guest: Guest, entry: str) -> None:
    second = _secondary(guest)
    equal("what CPU_ON answers", switch_on(context, guest, second, entry), 0)
    _left_with(context, guest, second, 0)


@clause("guest.cpu-on-by-run-sve", arch="arm64", needs=(SVE, GUEST_RUNS))
def cpu_on_with_sve(context: Context) -> None:
    """A vCPU that CPU_ON starts finds 0 in Z, P, FFR, ZCR_EL1, FPSR, FPCR and X1 to X30, and the context in X0.

    No call comes between CPU_ON and its first KVM_RUN, which has to do the reset. What lies above 128 bits is not
    seen: the way from LEN 0 may clear it.

    Source: arch/arm64/kvm/arm.c, check_vcpu_requests (KVM_REQ_VCPU_RESET); arch/arm64/kvm/reset.c, kvm_reset_vcpu.
    """
    guest = context.own(Guest(context.kvm, "registers", features=(Feature.PSCI_0_2, Feature.SVE)))
    _switched_on(context, guest, "secondary_sve")


@clause("guest.cpu-on-by-run", arch="arm64", needs=(GUEST_RUNS,))
def cpu_on(context: Context) -> None:
    """A vCPU without SVE that CPU_ON starts finds 0 in V0 to V31, FPSR, FPCR and X1 to X30, and the context in X0.

    No call comes between CPU_ON and its first KVM_RUN, which has to do the reset.

    Source: arch/arm64/kvm/arm.c, check_vcpu_requests (KVM_REQ_VCPU_RESET); arch/arm64/kvm/reset.c, kvm_reset_vcpu.
    """
    _switched_on(context, plain_guest(context, "registers"), "secondary_vectors")


@clause("guest.mp-state-keeps-registers", arch="arm64", needs=(GUEST_RUNS,))
def mp_state_keeps(context: Context) -> None:
    """A stopped vCPU that KVM_SET_MP_STATE makes runnable is not reset: it starts with the registers it was given.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vcpu_ioctl_set_mpstate; Documentation/virt/kvm/api.rst, 4.39.
    """
    guest = plain_guest(context, "registers")
    second = guest.vm.create_vcpu(1)
    vcpus.init(second, Feature.POWER_OFF, *guest.features)
    given = {x(0): CONTEXT, x(7): 1 << 4, x(30): 1 << 61, v(9): 1 << 33, FPCR: 1 << 22, FPSR: 1 << 27}
    for register, value in given.items():
        write(second, register, value)
    write(second, PC, guest.payload.symbol("secondary_vectors"))
    equal("MP state", second.mp_state, STOPPED)
    succeeds("MP state RUNNABLE", setattr, second, "mp_state", RUNNABLE)
    bits = sum(value for register, value in given.items() if register != x(0))
    _left_with(context, guest, second, bits)
    equal("X7 afterwards", read(second, x(7)), given[x(7)])
