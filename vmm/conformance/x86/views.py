# SPDX-License-Identifier: Apache-2.0
"""Which calls of KVM on x86 show the same state: a view for each, as the property ``shown`` takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from vmm._kvm import ffi, lib
from vmm.conformance.world.properties_views import Expected, View, renamed
from vmm.kvm.ioctl import Refused
from vmm.kvm.vcpu import Vcpu
from vmm.state.world.fields import StructCodec
from vmm.state.world.table import Table
from vmm.x86 import msr
from vmm.x86.sync import Sync, synced

__all__ = ["call", "injected", "interrupt_command", "kvm_run", "msrs", "sync"]


def call(table: Table, name: Callable[[str], str | None], value: Callable[[int], int] = lambda value: value) -> View:
    """The calls of another table; ``name`` gives what a field is called there."""
    return View(table.piece.get, table.read, renamed(name, value), table.write)


# --- struct kvm_run -------------------------------------------------------------------------------

_STRUCTS = {
    Sync.REGS: ("regs", "kvm_regs"), Sync.SREGS: ("sregs", "kvm_sregs"), Sync.EVENTS: ("events", "kvm_vcpu_events")
}  # fmt: skip
_GET = {Sync.REGS: lib.KVM_GET_REGS, Sync.SREGS: lib.KVM_GET_SREGS, Sync.EVENTS: lib.KVM_GET_VCPU_EVENTS}


def sync(group: Sync, *missing: str) -> View:
    """The registers in kvm_run, which KVM_RUN gives and takes; ``missing`` begin the names that they lack."""

    def name(field: str) -> str | None:
        return None if field.startswith(missing) else field

    read, write = partial(_read_synced, group), partial(_write_synced, group)
    return View(f"kvm_run.s.regs.{_STRUCTS[group][0]}", read, renamed(name), write)


def _read_synced(group: Sync, vcpu: Vcpu) -> Mapping[str, int]:
    field, kind = _STRUCTS[group]
    vcpu.kvm_run.kvm_valid_regs = int(group)
    vcpu.complete()
    vcpu.kvm_run.kvm_valid_regs = 0
    return StructCodec(field, kind).split(bytes(ffi.buffer(ffi.addressof(synced(vcpu), field))))


def _write_synced(group: Sync, vcpu: Vcpu, values: Mapping[str, int]) -> None:
    field, kind = _STRUCTS[group]
    now = bytes(ffi.buffer(vcpu.get(_GET[group], kind)))
    part = StructCodec(field, kind).join(now, values)
    assert isinstance(part, bytes)
    ffi.buffer(ffi.addressof(synced(vcpu), field))[:] = part
    vcpu.kvm_run.kvm_dirty_regs = int(group)
    vcpu.complete()


# What kvm_run has of RFLAGS; of SMM it has KVM_RUN_X86_SMM, which is 1, and no other of its flags is there.
_SHOWN: Mapping[str, Callable[[int], int]] = {"if_flag": lambda rflags: rflags >> 9 & 1}


def kvm_run(**fields: str) -> View:
    """The fields of kvm_run itself that KVM_RUN leaves there, such as cr8: each with the table's field that it is."""

    def read(vcpu: Vcpu) -> Mapping[str, int]:
        vcpu.complete()
        return {name: int(getattr(vcpu.kvm_run, name)) for name in fields}

    def expects(meant: Mapping[str, int]) -> Expected:
        return {field: (name, _SHOWN.get(name, int)(meant[field])) for name, field in fields.items()}

    return View("kvm_run", read, expects)


# --- other calls ----------------------------------------------------------------------------------


def msrs(indices: Mapping[str, int], *, written: bool = True) -> View:
    """KVM_GET_MSRS and, if they may be ``written``, KVM_SET_MSRS, of the MSRs that fields are."""
    names = {msr.name(index): index for index in indices.values()}

    def read(vcpu: Vcpu) -> Mapping[str, int]:
        return {msr.name(index): value for index, value in msr.get_readable(vcpu, names.values()).items()}

    def write(vcpu: Vcpu, values: Mapping[str, int]) -> None:
        pairs = [(names[name], value) for name, value in values.items()]
        done = msr.set_msrs(vcpu, pairs)
        if done < len(pairs):
            raise Refused(f"KVM_SET_MSRS took {done} of {len(pairs)} MSRs: {msr.name(pairs[done][0])} was refused")

    name = {field: msr.name(index) for field, index in indices.items()}.get
    return View("KVM_GET_MSRS", read, renamed(name), write if written else None)


def interrupt_command(index: int) -> View:
    """ICR and ICR2 of the APIC's page as the one MSR that they are in x2APIC mode."""

    def expects(meant: Mapping[str, int]) -> Expected:
        value = meant["ICR"] | meant["ICR2"] << 32
        return {"ICR": ("ICR", value), "ICR2": ("ICR", value)}

    return View("KVM_GET_MSRS", lambda vcpu: {"ICR": msr.get_msr(vcpu, index)}, expects)


def injected(sregs: Table) -> View:
    """The interrupt that is injected, as the bitmap of SREGS's first version has it."""

    def read(vcpu: Vcpu) -> Mapping[str, int]:
        found = sregs.read(vcpu)
        bitmap = sum(found[f"interrupt_bitmap[{at}]"] << 64 * at for at in range(4))
        return {"injected": int(bitmap != 0), "bitmap": bitmap}

    def expects(meant: Mapping[str, int]) -> Expected:
        number = 1 << meant["interrupt.nr"] if meant["interrupt.injected"] else 0
        return {"interrupt.injected": ("injected", meant["interrupt.injected"]), "interrupt.nr": ("bitmap", number)}

    return View(sregs.piece.get, read, expects)
