# SPDX-License-Identifier: Apache-2.0
"""The rows of CPUID: each register of each entry that KVM supports, kept as given but for what is KVM's own.

Source: arch/x86/kvm/cpuid.c, kvm_vcpu_ioctl_set_cpuid2, kvm_update_cpuid_runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.state.architecture import pieces
from vmm.state.piece import raw
from vmm.state.value import Part
from vmm.state.world.row import Free, Number, Row, Values
from vmm.state.world.table import Table
from vmm.x86 import cpuid
from vmm.x86.cpuid import REGISTERS, Cpuid, Entry
from vmm.x86.xsave import MINIMUM

__all__ = ["CPUID", "CpuidCodec", "cpuid_fields"]

_WORD = 0xFFFF_FFFF
_FIELDS = (*REGISTERS, "flags")


def _name(entry: Entry, field: str) -> str:
    return f"{entry.function:#x}.{entry.index}.{field}"


def cpuid_fields(table: Cpuid) -> Iterator[tuple[str, int]]:
    """Yield the registers and flags of a table's entries by name."""
    for entry in table:
        for field in _FIELDS:
            yield _name(entry, field), getattr(entry, field)


class CpuidCodec:
    """The part CPUID: which entries it has, and in which order, stays."""

    def names(self) -> Iterable[str]:
        """None is known: which leaves there are is the CPU's and KVM's."""
        return ()

    def bits(self, field: str) -> int:
        """Return how wide a register is."""
        return 32

    def split(self, part: Part) -> dict[str, int]:
        """Return the registers by leaf and subleaf."""
        return dict(cpuid_fields(Cpuid.unpack(raw("CPUID", part))))

    def join(self, part: Part, values: Mapping[str, int]) -> Part:
        """Return the table."""
        return Cpuid(_changed(entry, values) for entry in Cpuid.unpack(raw("CPUID", part))).packed


def _changed(entry: Entry, values: Mapping[str, int]) -> Entry:
    return replace(entry, **{field: values[name] for field in _FIELDS if (name := _name(entry, field)) in values})


@cache
def _supported() -> Mapping[str, int]:
    """What KVM supports, asked once a process: after that has the permissions it wants."""
    with Kvm() as kvm:
        return dict(cpuid_fields(cpuid.supported(kvm)))


@dataclass(frozen=True, slots=True)
class Within:
    """Some of the bits that KVM supports, then the others; ``own`` are KVM's, and stay as they are in ``base``."""

    own: int = 0
    base: int = 0
    rounds: int = 2

    def value(self, field: str, round: int) -> int:
        """Return the value of a round."""
        return self.base | Free(_WORD, rounds=2).value(field, round) & _supported().get(field, 0) & ~self.own


class _Supported:
    """What KVM supports."""

    rounds = 1

    def value(self, field: str, round: int) -> int:
        """Return the value of a round."""
        return _supported().get(field, 0)


_SET = "arch/x86/kvm/cpuid.c, kvm_set_cpuid, kvm_vcpu_ioctl_get_cpuid2"
_RUNTIME = "arch/x86/kvm/cpuid.c, kvm_update_cpuid_runtime"
_OSXSAVE, _MWAIT, _APIC, _OSPKE = 1 << 27, 1 << 3, 1 << 9, 1 << 4


def _compacted(vcpu: Vcpu) -> int:
    """The size by XSAVEC of an area with XCR0 1, where there is XSAVEC or XSAVES; else what was written."""
    return MINIMUM if cpuid.given(vcpu).get(0xD, 1).eax & 0xA else _WRITTEN


_WRITTEN = 0x1234


def _row(fields: str, values: Values | None, source: str = _SET, masked: Sequence[tuple[int, Number]] = ()) -> Row:
    """A register that an entry has; INIT leaves CPUID as it is."""
    return Row(fields, source, fresh=None, values=values, init=None, masked=masked)


CPUID = Table(
    "cpuid",
    pieces("x86")["CPUID"],
    CpuidCodec(),
    [
        _row("0x1.0.ecx", Within(own=_OSXSAVE | _MWAIT), f"{_RUNTIME}: OSXSAVE is CR4's, MWAIT that of MISC_ENABLE"),
        _row("0x1.0.edx", Within(own=_APIC, base=_APIC), f"{_RUNTIME}: APIC is that of IA32_APIC_BASE",
             masked=[(0, _APIC)]),
        _row("0x7.0.ecx", Within(own=_OSPKE), f"{_RUNTIME}: OSPKE is CR4's"),
        _row("0xd.0.ebx", None, f"{_RUNTIME}: the size for XCR0", masked=[(_WRITTEN, MINIMUM)]),
        _row("0xd.1.ebx", None, f"{_RUNTIME}: the compacted size for XCR0 and IA32_XSS",
             masked=[(_WRITTEN, _compacted)]),
        _row("0xd.*.e?x 0x7.0.eax", _Supported(), f"{_SET}; components and their places decide what else is legal"),
        _row("0x1.0.e[ab]x 0x2.* 0x4.*.e?x 0x8000000[234].0.e?x", Free(_WORD, rounds=2),
             f"{_SET}; Intel SDM volume 2A, CPUID: signature, caches, brand"),
        _row("0x0.0.* 0x80000000.0.* 0x400000??.0.*", _Supported(), f"{_SET}; who made the CPU, and KVM's signature"),
        _row("0x80000008.0.eax", _Supported(), f"{_SET}; kvm_check_cpuid: 48 or 57 bits of virtual addresses"),
        _row("0x12.*", None, f"{_RUNTIME} of Linux 6.1: SGX's XFRM is within XCR0", masked=[(0, 0)]),
        _row("*.flags", _Supported(), f"{_SET}; Documentation/virt/kvm/api.rst, KVM_CPUID_FLAG_SIGNIFCANT_INDEX"),
        _row("*", Within(), _SET),
    ],
)  # fmt: skip
