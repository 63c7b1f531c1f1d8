# SPDX-License-Identifier: Apache-2.0
"""The closed world as the guest has it: what the VMM wrote by MRS, what MSR wrote by KVM_GET_ONE_REG, and PSCI."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.guest import Guest
from vmm.arm64.registers import SYSTEM, sysreg
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.common import GUEST_RUNS, call
from vmm.conformance.arm64.psci import CONTEXT, RUNNABLE, STOPPED, switch_on
from vmm.conformance.arm64.ways import give, still
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged
from vmm.conformance.registry import clause
from vmm.conformance.world.properties import after_reset
from vmm.conformance.world.tally import Tally
from vmm.kvm.vcpu import Vcpu
from vmm.state.arm64.world.core import CORE, FPSIMD, VECTORS
from vmm.state.arm64.world.identity import IDREGS
from vmm.state.arm64.world.sysregs import SYSREGS
from vmm.state.world.row import Fresh, Untold
from vmm.state.world.table import Table

_Encoding = tuple[int, int, int, int, int]
# KVM's id of CNTV_CVAL_EL0 is not its encoding: vm.timer-swapped-ids.
_NAMES = {(3, 3, 14, 3, 2): "CNTV_CVAL_EL0"}
_UNLISTED = "this KVM does not list it"
_MOMENT = 0.02
_AFFINITY_INFO, _OFF, _ON = 0xC4000004, 1, 0


def _encodings(guest: Guest, start: str) -> list[_Encoding]:
    """The registers that the payload knows, from a symbol of its list on."""
    at, end = guest.payload.symbol(start), guest.payload.symbol("encodings_end")
    return list(struct.iter_unpack("5B", guest.memory.read(at, end - at)))


def _name(encoding: _Encoding) -> str:
    return _NAMES.get(encoding) or str(sysreg(*encoding))


def _given(guest: Guest) -> dict[str, int]:
    """Give the guest another value of every system register with which it runs; return all that it has."""
    held = dict(give(guest.vcpu, 0, (SYSREGS,), {})[SYSREGS])
    held["VBAR_EL1"] = guest.payload.symbol("vectors")
    write(guest.vcpu, SYSTEM["VBAR_EL1"], held["VBAR_EL1"])
    return held | {name: read(guest.vcpu, SYSTEM[name]) for name in ("MPIDR_EL1", "CLIDR_EL1")}


@clause("world.guest-reads", arch="arm64", needs=(GUEST_RUNS,), timeout=60)
def guest_reads(context: Context) -> None:
    """A guest's MRS of a system register reads what KVM_SET_ONE_REG wrote; what the vCPU has not is undefined.

    Source: arch/arm64/kvm/sys_regs.c, sys_reg_descs; arch/arm64/kvm/hyp/include/hyp/sysreg-sr.h.
    """
    guest = still(context, payload="sysregs")
    guest.prepare("get")
    held, none = _given(guest), guest.payload.symbol("NONE")
    with judged("a guest that reads its system registers"):
        guest.finish(guest.resume(context.timeout))
    found = _encodings(guest, "encodings")
    values = struct.unpack(f"<{len(found)}Q", guest.memory.read(guest.payload.symbol("values"), 8 * len(found)))
    with Tally(context, "SYSREGS") as tally:
        for encoding, value in zip(found, values, strict=True):
            name = _name(encoding)
            if name in held:
                tally.look(name, "in the guest", value, held[name])
            elif encoding[:3] == (3, 0, 2):  # keys, which are there with their feature
                tally.look(name, "in the guest, without the feature", value, none)
            else:
                tally.untold(name, _UNLISTED)


@clause("world.guest-writes", arch="arm64", needs=(GUEST_RUNS,), timeout=60)
def guest_writes(context: Context) -> None:
    """KVM_GET_ONE_REG reads what a guest's MSR wrote to a system register.

    Source: arch/arm64/kvm/sys_regs.c, kvm_sys_reg_get_user; arch/arm64/kvm/hyp/include/hyp/sysreg-sr.h.
    """
    guest = still(context, payload="sysregs")
    guest.prepare("put")
    every, free = (_encodings(guest, start) for start in ("encodings", "free_encodings"))
    meant = SYSREGS.values(SYSREGS.read(guest.vcpu), guest.vcpu, 1, running=True)
    words = [meant.get(_name(encoding), 0) for encoding in every]
    guest.memory.write(guest.payload.symbol("values"), struct.pack(f"<{len(words)}Q", *words))
    with judged("a guest that writes its system registers"):
        guest.finish(guest.resume(context.timeout))
    found = SYSREGS.read(guest.vcpu)
    with Tally(context, "SYSREGS") as tally:
        for name in map(_name, free):
            if name in meant:
                tally.look(name, "as the guest wrote it", found.get(name), meant[name])
            else:
                tally.untold(name, _UNLISTED)


def _second(guest: Guest) -> Vcpu:
    """A second vCPU of the features of the first, switched off."""
    vcpu = guest.vm.create_vcpu(1)
    vcpus.init(vcpu, Feature.POWER_OFF, *guest.features)
    if Feature.SVE in guest.features:
        vcpus.finalize(vcpu)
    return vcpu


def _state(context: Context, guest: Guest, vcpu: Vcpu, mp_state: int, answer: int) -> None:
    """What the MP state is for the VMM, and for another vCPU that asks by PSCI."""
    equal("MP state", vcpu.mp_state, mp_state)
    call(context, guest, "AFFINITY_INFO", "hvc", _AFFINITY_INFO, read(vcpu, SYSTEM["MPIDR_EL1"]) & 0xFF00FFFFFF, 0)
    equal(f"AFFINITY_INFO of MP state {mp_state}", guest.mailbox.values[0], answer)


@clause("world.way-psci", arch="arm64", needs=(GUEST_RUNS,), timeout=60)
def psci(context: Context) -> None:
    """CPU_ON gives its target's registers, but X0 and PC, what a reset does; AFFINITY_INFO tells the MP state.

    Source: arch/arm64/kvm/psci.c, kvm_psci_vcpu_on; arch/arm64/kvm/reset.c, kvm_reset_vcpu; Arm DEN0022, 6.4.
    """
    guest = still(context)
    second = _second(guest)
    chosen = (CORE, VECTORS if Feature.SVE in guest.features else FPSIMD, SYSREGS)
    fresh = {table: table.read(second) for table in (*chosen, IDREGS)}
    held = give(second, 0, chosen, {}, running=False)
    _state(context, guest, second, STOPPED, _OFF)
    equal("what CPU_ON answers", switch_on(context, guest, second, "still"), 0)
    own = {"CORE.X0": CONTEXT, "CORE.PC": guest.payload.symbol("still")}
    with Tally(context, "") as tally:
        for table in chosen:
            _begun(table, second, fresh[table], held[table], own, tally)
    _state(context, guest, second, RUNNABLE, _ON)


def _begun(
    table: Table, vcpu: Vcpu, fresh: Mapping[str, int], held: Mapping[str, int], own: Mapping[str, int], tally: Tally
) -> None:
    found = table.read(vcpu)
    for field, value in fresh.items():
        row, name = table.row(field), f"{table.name}.{field}"
        if row is None:
            continue
        wanted: Fresh = own[name] if name in own else after_reset(row, vcpu, value, held[field])
        if isinstance(wanted, Untold):
            tally.untold(name, wanted.reason)
        elif wanted is not None:
            tally.look(name, "after CPU_ON", found.get(field), wanted)
