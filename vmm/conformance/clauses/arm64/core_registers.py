# SPDX-License-Identifier: Apache-2.0
"""Core registers as the guest has them: it finds what KVM_SET_ONE_REG wrote, KVM_GET_ONE_REG reads what it leaves."""

from __future__ import annotations

import errno
import random
import struct

from vmm.arm64.guest import Guest
from vmm.arm64.registers import PC, PSTATE, SP, SYSTEM, core, x
from vmm.arm64.vcpu import read, write
from vmm.conformance.arm64.common import GUEST_RUNS, enter, finish, in_time, plain_guest, plain_vcpu
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused_indicative, succeeds
from vmm.conformance.registry import clause
from vmm.kvm.exits import MmioWrite

_SP_EL1, _ELR, _SPSR = core("SP_EL1"), core("ELR_EL1"), core("SPSR_EL1")
# Places in `saved` of the payload, in words: X0 to X30, then these.
_PLACES = {
    "SP": 31,
    "NZCV": 32,
    "DAIF": 33,
    "CurrentEL": 34,
    "SPSel": 35,
    "SP_EL0": 36,
    "ELR_EL1": 37,
    "SPSR_EL1": 38,
}
_WORDS = 39
_EL1H, _EL1T, _ALL_MASKED = 5, 4, 0x3C0
_AA32_USER = 0x10
# NZCV in the first four bits of PSTATE, DAIF in bits 9 to 6; of A, I and F any, since nothing is pending.
_PSTATES = {
    "NZCV, all masked": 0xF0000000 | _ALL_MASKED | _EL1H,
    "N and C, D masked": 0xA0000000 | 0x200 | _EL1H,
    "Z and V, A and F masked": 0x50000000 | 0x140 | _EL1H,
    "no flag, I masked": 0x80 | _EL1H,
    "Z with SP_EL0": 0x40000000 | _ALL_MASKED | _EL1T,
}
_FLAGS, _MASKS = 0xF0000000, 0x3C0


def _random(context: Context, number: int = 0) -> random.Random:
    return random.Random(1000 * context.options.seed + number)


def _seen(context: Context, guest: Guest, what: str) -> list[int]:
    """Run the guest from `seen`; return the words that it stored."""
    finish(context, guest, what)
    return list(struct.unpack(f"<{_WORDS}Q", guest.memory.read(guest.payload.symbol("saved"), 8 * _WORDS)))


def _prepared(context: Context) -> Guest:
    guest = plain_guest(context, "registers")
    guest.prepare("seen")
    write(guest.vcpu, _SP_EL1, guest.payload.symbol("saved"))
    return guest


@clause("core.guest-finds-x", arch="arm64", needs=(GUEST_RUNS,))
def guest_finds(context: Context) -> None:
    """X0 to X30, PC and SP_EL1 as KVM_SET_ONE_REG wrote them are the guest's, in all 64 bits.

    Source: arch/arm64/kvm/guest.c, set_core_reg; Documentation/virt/kvm/api.rst, 4.68.
    """
    guest, source = _prepared(context), _random(context)
    values = [source.getrandbits(64) for _ in range(31)]
    for number, value in enumerate(values):
        succeeds(f"writing X{number}", write, guest.vcpu, x(number), value)
    found = _seen(context, guest, "a guest that stores its registers")
    for number, value in enumerate(values):
        equal(f"X{number} in the guest", found[number], value)
    equal("SP in the guest", found[_PLACES["SP"]], guest.payload.symbol("saved"))
    equal("CurrentEL in the guest", found[_PLACES["CurrentEL"]], 1 << 2)


@clause("core.guest-finds-el1", arch="arm64", needs=(GUEST_RUNS,))
def guest_finds_el1(context: Context) -> None:
    """SP, ELR_EL1 and SPSR_EL1 as KVM_SET_ONE_REG wrote them are what the guest's MRS reads: SP is SP_EL0.

    Source: arch/arm64/kvm/guest.c, core_reg_addr; arch/arm64/include/uapi/asm/kvm.h, struct kvm_regs.
    """
    guest, source = _prepared(context), _random(context, 1)
    wanted = {SP: source.getrandbits(64), _ELR: source.getrandbits(64), _SPSR: 0x80000000 | _ALL_MASKED | _EL1T}
    for register, value in wanted.items():
        succeeds(f"writing {register}", write, guest.vcpu, register, value)
        equal(f"{register} read back", read(guest.vcpu, register), value)
    found = _seen(context, guest, "a guest that stores its registers of EL1")
    for name, register in (("SP_EL0", SP), ("ELR_EL1", _ELR), ("SPSR_EL1", _SPSR)):
        equal(f"{name} in the guest", found[_PLACES[name]], wanted[register])


@clause("core.guest-finds-pstate", arch="arm64", needs=(GUEST_RUNS,))
def guest_finds_pstate(context: Context) -> None:
    """NZCV, DAIF and SPSel of PSTATE as KVM_SET_ONE_REG wrote it are the guest's.

    Source: arch/arm64/kvm/guest.c, set_core_reg; Arm ARM, C5.2 "NZCV", "DAIF", "SPSel".
    """
    guest = _prepared(context)
    for name, pstate in _PSTATES.items():
        guest.prepare("seen")
        write(guest.vcpu, _SP_EL1, guest.payload.symbol("saved"))
        write(guest.vcpu, SP, guest.payload.symbol("saved"))
        succeeds(f"PSTATE with {name}", write, guest.vcpu, PSTATE, pstate)
        found = _seen(context, guest, f"a guest with {name}")
        equal(f"NZCV in a guest with {name}", found[_PLACES["NZCV"]], pstate & _FLAGS)
        equal(f"DAIF in a guest with {name}", found[_PLACES["DAIF"]], pstate & _MASKS)
        equal(f"SPSel in a guest with {name}", found[_PLACES["SPSel"]], pstate & 1)


@clause("core.guest-leaves", arch="arm64", needs=(GUEST_RUNS,))
def guest_leaves(context: Context) -> None:
    """X0 to X30, SP_EL0, SP_EL1, ELR_EL1, SPSR_EL1 and NZCV as the guest leaves them are what KVM_GET_ONE_REG reads.

    PC is where it left.

    Source: arch/arm64/kvm/guest.c, get_core_reg; arch/arm64/kvm/hyp/include/hyp/sysreg-sr.h.
    """
    guest, source = plain_guest(context, "registers"), _random(context, 2)
    event = guest.payload.symbol("EVENT_ADDRESS")
    words = [source.getrandbits(64) for _ in range(_WORDS)]
    words[30], words[_PLACES["SP"]] = event, source.getrandbits(32) << 4
    words[_PLACES["NZCV"]], words[_PLACES["SPSR_EL1"]] = 0xA0000000, 0x60000000 | _ALL_MASKED | _EL1H
    guest.memory.write(guest.payload.symbol("saved"), struct.pack(f"<{_WORDS}Q", *words))
    guest.prepare("give")
    exit = in_time(succeeds("KVM_RUN", guest.resume, context.timeout))
    equal("the exit", exit, MmioWrite(event, 8, words[29]))
    equal("PC", read(guest.vcpu, PC), guest.payload.symbol("at_give"))
    places = {f"X{number}": (x(number), words[number]) for number in range(31)}
    places |= {
        "SP_EL1": (_SP_EL1, words[_PLACES["SP"]]), "SP_EL0": (SP, words[_PLACES["SP_EL0"]]),
        "ELR_EL1": (_ELR, words[_PLACES["ELR_EL1"]]), "SPSR_EL1": (_SPSR, words[_PLACES["SPSR_EL1"]]),
    }  # fmt: skip
    for name, (register, value) in places.items():
        equal(f"{name} as the guest left it", read(guest.vcpu, register), value)
    pstate = read(guest.vcpu, PSTATE)
    equal("NZCV as the guest left it", pstate & _FLAGS, words[_PLACES["NZCV"]])
    equal("the rest of PSTATE", pstate & (_MASKS | 0x1F), _ALL_MASKED | _EL1H)


@clause("core.aarch32-user", arch="arm64")
def aarch32_user(context: Context) -> None:
    """PSTATE may be AArch32's user mode where EL0 has AArch32, and then X0 to X14 and PC lose their upper halves.

    Elsewhere it is EINVAL and changes nothing. X15 to X30 stay as they are: they are not user mode's.

    Source: arch/arm64/kvm/guest.c, set_core_reg (kvm_supports_32bit_el0).
    """
    vcpu = plain_vcpu(context)
    wide = {register: 0x1111_0000_2222_0000 + number for number, register in enumerate((*map(x, range(31)), PC))}
    for register, value in wide.items():
        write(vcpu, register, value)
    before = read(vcpu, PSTATE)
    if read(vcpu, SYSTEM["ID_AA64PFR0_EL1"]) & 0xF < 2:
        refused_indicative(context, "PSTATE of user mode", errno.EINVAL, write, vcpu, PSTATE, _AA32_USER)
        equal("PSTATE afterwards", read(vcpu, PSTATE), before)
        expected = wide
    else:
        succeeds("PSTATE of user mode", write, vcpu, PSTATE, _AA32_USER)
        equal("PSTATE afterwards", read(vcpu, PSTATE), _AA32_USER)
        narrow = {*(x(number) for number in range(15)), PC}
        expected = {register: value & 0xFFFFFFFF if register in narrow else value for register, value in wide.items()}
    for register, value in expected.items():
        equal(f"{register} afterwards", read(vcpu, register), value)
    succeeds("PSTATE as before", write, vcpu, PSTATE, before)
    succeeds("KVM_RUN", enter, vcpu)
