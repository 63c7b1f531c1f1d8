# SPDX-License-Identifier: Apache-2.0
"""The parts of an x86 vCPU's state that are MSRs, by KVM_GET_MSRS or, those it lists, by KVM_GET_ONE_REG."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import KvmError, Refused
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.state.errors import StateRefused, StreamError
from vmm.state.piece import Follows, OneRegs, Reading, RegisterSet, Row, registers
from vmm.state.shape import Shape
from vmm.state.value import Packed, Part, Registers, VcpuState
from vmm.state.x86.structures import Lapic
from vmm.x86 import msr
from vmm.x86.fields import describe_msr
from vmm.x86.msr_names import STATELESS, Msr, saved_name

__all__ = ["NOT_IN_MSRS", "XFD", "ListedRegs", "Msrs", "allowed_msrs", "allowed_plain_msrs", "saved_msrs"]

_U64 = 8
XFD = (Msr.XFD, Msr.XFD_ERR)
# What has a piece of its own, no meaning outside of the host it was read on (see volatile.toml), or keeps nothing.
NOT_IN_MSRS = STATELESS | {*XFD, Msr.TSC, Msr.TSC_DEADLINE, Msr.HV_VP_RUNTIME, Msr.HV_TIME_REF_COUNT}
_LAPIC_MSRS = frozenset({Msr.KVM_ASYNC_PF_INT})
_MOST, _ROW = msr.MAX_BATCH - 1, Packed.ROW.size
_BATCH = _MOST * _ROW
_PERF_CAPABILITIES = (0x345).to_bytes(4, "little") + bytes(4)  # how its row begins
# The highest 24 bits of an id (KVM_REG_X86, 64 bits), then its type: arch/x86/include/uapi/asm/kvm.h, KVM_X86_REG_ID.
_ONE_REG, _TYPE_MSR, _TYPE_KVM = 0x20_3000, 2, 3
_GUEST_SSP = 0


@cache
def allowed_msrs() -> frozenset[int]:
    """Return the indices in msrs.toml: what a state from a stranger may hold."""
    found: set[int] = set()
    for entry in tomllib.loads(Path(__file__).with_name("msrs.toml").read_text())["msr"]:
        for indices in entry["indices"]:
            first, last = (indices, indices) if isinstance(indices, int) else indices
            found |= set(range(first, last + 1))
    return frozenset(found)


def allowed_plain_msrs() -> frozenset[int]:
    """Return those of them that have no piece of their own."""
    return allowed_msrs() - {*XFD, Msr.TSC}


@cache
def _index_list(lapic: bool) -> tuple[int, ...]:
    """KVM_GET_MSR_INDEX_LIST, once a process: it does not depend on the VM."""
    excluded = NOT_IN_MSRS if lapic else NOT_IN_MSRS | _LAPIC_MSRS
    with Kvm() as kvm:
        return tuple(sorted(index for index in msr.index_list(kvm) if index not in excluded))


def saved_msrs(vcpu: Vcpu) -> tuple[int, ...]:
    """Return the MSRs that belong to the part MSRS of this vCPU, whether its CPUID lets them be read or not."""
    return _index_list(Lapic.present(vcpu))


# The MSRs that KVM lets be read, by the list asked and the guest's CPUID: each refusal costs a call.
_READABLE: dict[tuple[tuple[int, ...], bytes], tuple[int, ...]] = {}


def _readable(vcpu: Vcpu, asked: tuple[int, ...]) -> tuple[int, ...]:
    key = asked, vcpu.chosen.get("CPUID", b"")
    if key not in _READABLE:
        _READABLE[key] = tuple(msr.get_readable(vcpu, asked))
    return _READABLE[key]


def _calls(request: int, rows: bytes) -> list[Row]:
    """Return the calls for packed registers, as many at a time as KVM takes."""
    found = []
    for start in range(0, len(rows), _BATCH):
        data = rows[start : start + _BATCH]
        count = len(data) // _ROW
        value = ffi.new("struct kvm_msrs *", {"nmsrs": count, "entries": count})
        ffi.memmove(value.entries, data, len(data))
        found.append((request, value, count))
    return found


class Msrs(RegisterSet):
    """MSRs. ``indices`` says which belong to a vCPU, ``allowed`` which may be in a state at all."""

    def __init__(
        self,
        name: str,
        indices: Callable[[Vcpu], tuple[int, ...]],
        allowed: Callable[[], frozenset[int]],
        *after: Follows,
        required: bool = True,
    ) -> None:
        super().__init__(name, ("KVM_GET_MSRS", "KVM_SET_MSRS"), Shape(register=_U64, required=required), *after)
        self._indices, self._allowed = indices, allowed

    def register_name(self, number: int) -> str:
        """Return the name that saved states have for an MSR."""
        return saved_name(number)

    def known(self) -> Iterable[int]:
        """Return those that may be in a state."""
        return self._allowed()

    def text(self, number: int, value: bytes) -> str:
        """Return the value, with the names of its bits where they have some."""
        return describe_msr(number, int.from_bytes(value, "little"))

    def read(self, vcpu: Vcpu) -> Reading | None:
        """One call for all that KVM lets be read."""
        readable = _readable(vcpu, self._indices(vcpu))
        if not readable:
            return None
        calls = _calls(lib.KVM_GET_MSRS, b"".join(Packed.ROW.pack(index, 0, 0) for index in readable))
        held = [ffi.buffer(value.entries, count * _ROW) for _, value, count in calls]
        return Reading(calls, lambda made: Packed(b"".join([data[:] for data in held])))

    def unreadable(self, vcpu: Vcpu, row: int, result: int) -> None:
        """KVM answered for fewer than before."""
        if result < 0:
            super().unreadable(vcpu, row, result)
        index = _readable(vcpu, self._indices(vcpu))[row * _MOST + result]
        raise Refused(f"KVM no longer lets {msr.name(index)} be read, although it did earlier")

    def write(self, part: Part) -> list[Row]:
        """One call for all of them, or as many as KVM takes."""
        return _calls(lib.KVM_SET_MSRS, self._rows(part))

    def refused(self, vcpu: Vcpu, state: VcpuState, row: int, result: int) -> list[tuple[str, str]]:
        """Return each MSR that KVM refused of one call; those that follow it are written."""
        if result < 0:
            return super().refused(vcpu, state, row, result)
        left = self._rows(state.parts[self.name])[row * _BATCH : (row + 1) * _BATCH]
        found: list[tuple[str, str]] = []
        while True:
            left = left[result * _ROW :]
            if not left:
                return found
            index, _, value = Packed.ROW.unpack_from(left)
            found.append((f"{self.name}.{saved_name(index)}", f"KVM refused the value {describe_msr(index, value)}"))
            left = left[_ROW:]
            result = vcpu.ioctl(lib.KVM_SET_MSRS, _calls(lib.KVM_SET_MSRS, left)[0][1]) if left else 0

    def _rows(self, part: Part) -> bytes:
        values = registers(self.name, part)
        return _in_order(values.rows if isinstance(values, Packed) else _packed(self.name, values))

    def check(self, where: str, parts: Mapping[str, Part]) -> None:
        """Only what may be in a saved state."""
        values, allowed = registers(self.name, parts[self.name]), self._allowed()
        if stray := [index for index in values if index not in allowed]:
            names = ", ".join(msr.name(index) for index in stray[:8])
            raise StreamError(where, f"not allowed in this part of a saved state: {names}")


def _in_order(rows: bytes) -> bytes:
    """Put PERF_CAPABILITIES before all others: another value of it resets the counters and what they count.

    Source: arch/x86/kvm/x86.c, kvm_set_msr_common; arch/x86/kvm/pmu.c, kvm_pmu_refresh.
    """
    at = rows.find(_PERF_CAPABILITIES)
    while at > 0 and at % _ROW:  # a value that looks like it
        at = rows.find(_PERF_CAPABILITIES, at + 1)
    return rows if at <= 0 else rows[at : at + _ROW] + rows[:at] + rows[at + _ROW :]


def _packed(name: str, values: Registers) -> bytes:
    if any(len(value) != _U64 for value in values.values()):
        raise StateRefused(f"{name}: an MSR has {_U64} bytes, the state is damaged")
    return b"".join(Packed.ROW.pack(index, 0, int.from_bytes(value, "little")) for index, value in values.items())


class ListedRegs(OneRegs):
    """The registers of KVM_GET_REG_LIST, from Linux 6.18 on."""

    def identifiers(self, vcpu: Vcpu) -> Sequence[int]:
        """Ask KVM once a CPUID."""
        key = vcpu.chosen.get("CPUID", b"")
        if key not in _LISTED:
            _LISTED[key] = tuple(_listed(vcpu))
        return _LISTED[key]

    def register_name(self, number: int) -> str:
        """Return GUEST_SSP or an MSR's name."""
        kind, index = _kind(number)
        if kind == _TYPE_KVM:
            return "GUEST_SSP" if index == _GUEST_SSP else f"KVM_{index:#x}"
        return saved_name(index)

    def check(self, where: str, parts: Mapping[str, Part]) -> None:
        """Only 64-bit registers of x86 that may be in a saved state."""
        for identifier, value in registers(self.name, parts[self.name]).items():
            kind, index = _kind(identifier)
            if identifier >> 40 != _ONE_REG or len(value) != _U64:
                raise StreamError(where, f"{identifier:#x} with {len(value)} bytes is not an x86 register of 64 bits")
            known = index in allowed_msrs() if kind == _TYPE_MSR else kind == _TYPE_KVM and index == _GUEST_SSP
            if not known:
                raise StreamError(where, f"register {identifier:#x} is not allowed in a saved state")


# The registers of KVM_GET_REG_LIST by the guest's CPUID.
_LISTED: dict[bytes, tuple[int, ...]] = {}


def _listed(vcpu: Vcpu) -> Iterable[int]:
    try:
        return vcpu.reg_list()
    except KvmError as error:
        if error.errno_name in ("ENOTTY", "EINVAL"):  # before Linux 6.18
            return ()
        raise


def _kind(identifier: int) -> tuple[int, int]:
    """Return the type of an x86 register id and the index within it."""
    return identifier >> 32 & 0xFF, identifier & 0xFFFFFFFF
