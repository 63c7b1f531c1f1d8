# SPDX-License-Identifier: Apache-2.0
"""Pointer authentication at work: a guest signs with its keys, wherever it runs, and cannot without the feature."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable

from vmm.arm64.guest import Guest
from vmm.arm64.registers import SYSTEM, Register, sysreg
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.common import GUEST_RUNS, PAUTH, again, call, finish, plain_guest
from vmm.conformance.arm64.instructions import mrs, msr
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, succeeds, true
from vmm.conformance.registry import clause
from vmm.guest.processor import Processor
from vmm.kvm.exits import Budget
from vmm.kvm.vcpu import Vcpu

_NEEDS = (PAUTH, GUEST_RUNS)
_INSTRUCTIONS = ("PACIA", "PACIB", "PACDA", "PACDB", "PACGA")
_AUTHENTICATED = range(8, 12)
# The two halves of the key that each of them uses.
_HALVES = dict(zip(_INSTRUCTIONS, [((1, 0), (1, 1)), ((1, 2), (1, 3)), ((2, 0), (2, 1)), ((2, 2), (2, 3)),
                                   ((3, 0), (3, 1))], strict=True))  # fmt: skip
_KEYS = {name: tuple(sysreg(3, 0, 2, *half) for half in halves) for name, halves in _HALVES.items()}
_POINTER, _MODIFIER = 0x0000_0000_0012_3458, 0x1122_3344_5566_7788
_TICKS = 5
_UNDEFINED = 0
# PACGA X0, X0, X0; PACIA, PACIB, PACDA, PACDB, AUTIA X0, X0.
_WITHOUT = {
    "PACGA": 0x9AC03000, "PACIA": 0xDAC10000, "PACIB": 0xDAC10400, "PACDA": 0xDAC10800, "PACDB": 0xDAC10C00,
    "AUTIA": 0xDAC11000,
}  # fmt: skip
_ENABLED = 1 << 31 | 1 << 30 | 1 << 27 | 1 << 13  # SCTLR_EL1.EnIA, EnIB, EnDA, EnDB
# The fields of the ID registers that say which algorithm there is.
_ALGORITHMS = {"ID_AA64ISAR1_EL1": 0xFF << 24 | 0xFF << 4, "ID_AA64ISAR2_EL1": 0xFF << 8}


def _guest(context: Context, vcpus: int = 1) -> Guest:
    chosen = (Feature.PSCI_0_2, Feature.PTRAUTH_ADDRESS, Feature.PTRAUTH_GENERIC)
    return context.own(Guest(context.kvm, "registers", features=chosen, vcpus=vcpus))


def _random_keys(context: Context, number: int = 0) -> dict[Register, int]:
    source = random.Random(1000 * context.options.seed + number)
    return {half: source.getrandbits(64) for halves in _KEYS.values() for half in halves}


def _set_keys(vcpu: Vcpu, keys: dict[Register, int]) -> None:
    for register, value in keys.items():
        succeeds(f"writing {register}", write, vcpu, register, value)


def _signed(processor: Processor) -> dict[str, int]:
    """What the guest's last signatures were."""
    return dict(zip(_INSTRUCTIONS, processor.mailbox.values, strict=False))


def _sign(context: Context, guest: Guest, what: str, run: Callable[..., int] = call) -> dict[str, int]:
    """Have the guest sign; what it authenticates has to be the pointer again."""
    run(context, guest, what, "sign", _POINTER, _MODIFIER)
    _authentic(guest.processors[0], what)
    return _signed(guest.processors[0])


def _authentic(processor: Processor, what: str) -> None:
    values = processor.mailbox.values
    equal(f"what {what} authenticates", [values[at] for at in _AUTHENTICATED], [_POINTER] * 4)


def _distinct(what: str, values: Iterable[int]) -> None:
    found = list(values)
    true(what, len(set(found)) == len(found), found, "one for each key")


@clause("pauth.keys-at-work", arch="arm64", needs=_NEEDS)
def at_work(context: Context) -> None:
    """A guest's pointers, signed with keys that its VMM wrote, are authentic after exits; another key's are not.

    The keys read as they were written.

    Source: arch/arm64/kvm/hyp/include/hyp/switch.h, ptrauth_switch_to_guest; Arm ARM, D8.9.
    """
    guest, keys = _guest(context), _random_keys(context)
    guest.prepare("sign", _POINTER, _MODIFIER, _TICKS)
    _set_keys(guest.vcpu, keys)
    equal("the exits", succeeds("KVM_RUN", guest.resume, context.timeout, _TICKS), Budget(_TICKS))
    finish(context, guest, "a guest that authenticates")
    _authentic(guest.processors[0], "a guest after exits")
    signed = _signed(guest.processors[0])
    _distinct("what PACIA, PACIB, PACDA, PACDB and PACGA make of one pointer", signed.values())
    wrong, faults = guest.mailbox.values[12], guest.mailbox.values[15]
    true("AUTIB of what PACIA signed", faults == 1 or wrong != _POINTER, wrong, "an error code or a fault")
    for register, value in keys.items():
        equal(f"{register} after the run", read(guest.vcpu, register), value)


@clause("pauth.each-key", arch="arm64", needs=_NEEDS)
def each_key(context: Context) -> None:
    """Each half of a key that KVM_SET_ONE_REG writes changes what its own instruction signs, and no other's.

    Source: arch/arm64/kvm/sys_regs.c, PTRAUTH_KEY; arch/arm64/kvm/hyp/include/hyp/switch.h, ptrauth_switch_to_guest.
    """
    guest, keys = _guest(context), _random_keys(context)
    _set_keys(guest.vcpu, keys)
    start = _sign(context, guest, "a guest that signs")
    for name, halves in _KEYS.items():
        for half in halves:
            succeeds(f"writing {half}", write, guest.vcpu, half, keys[half] ^ 0x5A5A_A5A5_5A5A_A5A5)
            signed = _sign(context, guest, f"a guest with another {half}", again)
            changed = [one for one, value in signed.items() if value != start[one]]
            equal(f"what signs otherwise with another {half}", changed, [name])
            write(guest.vcpu, half, keys[half])


@clause("pauth.moved", arch="arm64", needs=_NEEDS)
def moved(context: Context) -> None:
    """Keys that the guest itself wrote are read by KVM_GET_ONE_REG, and sign the same in another VM.

    Source: arch/arm64/kvm/sys_regs.c, PTRAUTH_KEY; arch/arm64/kvm/hyp/include/hyp/sysreg-sr.h; api.rst, 4.68.
    """
    source, keys = _guest(context), _random_keys(context)
    call(context, source, "the first run", "ticks", 1)
    for register, value in keys.items():
        again(context, source, f"MSR {register}", "execute", msr(*register.encoding), value)
        equal(f"faults of MSR {register}", source.mailbox.values[15], 0)
    signed = _sign(context, source, "a guest with its own keys")
    destination = _guest(context)
    for register, value in keys.items():
        equal(f"{register} as the guest wrote it", read(source.vcpu, register), value)
        write(destination.vcpu, register, read(source.vcpu, register))
    equal("the signatures in the other VM", _sign(context, destination, "the moved guest"), signed)
    for register, value in keys.items():
        again(context, destination, f"MRS {register}", "execute", mrs(*register.encoding), 0)
        equal(f"{register} in the moved guest", destination.mailbox.values[0], value)


@clause("pauth.two-vcpus", arch="arm64", needs=_NEEDS)
def two_vcpus(context: Context) -> None:
    """Two vCPUs of one VM that take turns on one CPU sign with the keys of their own.

    Source: arch/arm64/kvm/hyp/include/hyp/switch.h, ptrauth_switch_to_guest (each vCPU's context).
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    guest = _guest(context, vcpus=2)
    every = [_random_keys(context, number) for number in range(2)]
    expected = []
    for keys in every:
        alone = _guest(context)
        _set_keys(alone.vcpu, keys)
        expected.append(_sign(context, alone, "a guest of one vCPU"))
        alone.close()
    guest.prepare("sign", _POINTER, _MODIFIER, _TICKS)
    for processor, keys in zip(guest.processors, every, strict=True):
        _set_keys(processor.vcpu, keys)
    for _ in range(_TICKS):
        for processor in guest.processors:
            equal("the exit", succeeds("KVM_RUN", processor.run, context.timeout, 1), Budget(1))
    for number, processor in enumerate(guest.processors):
        exit = succeeds("KVM_RUN", processor.run, context.timeout, 1)
        equal(f"the event of vCPU {number}", guest.event(exit), guest.DONE)
        _authentic(processor, f"vCPU {number}")
        equal(f"the signatures of vCPU {number}", _signed(processor), expected[number])


@clause("pauth.absent", arch="arm64", needs=(GUEST_RUNS,))
def absent(context: Context) -> None:
    """Without the feature signing, authenticating and the keys are undefined for the guest, and its ID fields 0.

    Although SCTLR_EL1 enables all keys, on a CPU that has them too.

    Source: arch/arm64/kvm/handle_exit.c, kvm_handle_ptrauth; arch/arm64/kvm/sys_regs.c, PTRAUTH_KEY.
    """
    guest = plain_guest(context)
    for name, mask in _ALGORITHMS.items():
        equal(f"the algorithms in {name}", read(guest.vcpu, SYSTEM[name]) & mask, 0)
    keys = {f"MRS {half}": mrs(*half.encoding) for halves in _KEYS.values() for half in halves}
    guest.prepare("ticks", 1)
    write(guest.vcpu, SYSTEM["SCTLR_EL1"], read(guest.vcpu, SYSTEM["SCTLR_EL1"]) | _ENABLED)
    finish(context, guest, "a guest that enables all keys")
    for name, instruction in {**_WITHOUT, **keys}.items():
        again(context, guest, f"a guest's {name}", "execute", instruction, _POINTER)
        equal(f"faults of {name}", guest.mailbox.values[15], 1)
        equal(f"the exception class of {name}", guest.fault().exception_class, _UNDEFINED)
        equal(f"X0 after {name}", guest.mailbox.values[0], _POINTER)
