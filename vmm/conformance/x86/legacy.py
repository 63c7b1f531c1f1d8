# SPDX-License-Identifier: Apache-2.0
"""x87 and SSE state field by field: in an FXSAVE image, in struct kvm_fpu, and in a guest with the fxsave payload."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from vmm._kvm import ffi
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, true
from vmm.conformance.needs import Need
from vmm.conformance.x86.common import judged_call
from vmm.conformance.x86.noise import noise
from vmm.probe.host import Host
from vmm.x86.guest import Guest
from vmm.x86.own import yield_with_registers
from vmm.x86.registers import get_fpu
from vmm.x86.xsave import XsaveArea

__all__ = ["FIELDS", "POINTERS", "Legacy", "agrees", "fxsave_guest", "keeps_pointers", "load", "verify"]

# Field: its offset and length in an FXSAVE image, and where struct kvm_fpu has it. Intel SDM volume 1, table 10-2.
FIELDS = {
    "FCW": (0, 2, "fcw"),
    "FSW": (2, 2, "fsw"),
    "FTW": (4, 1, "ftwx"),
    "FOP": (6, 2, "last_opcode"),
    "FIP": (8, 8, "last_ip"),
    "FDP": (16, 8, "last_dp"),
    **{f"ST{n}": (32 + 16 * n, 16, f"fpr.{n}") for n in range(8)},
    **{f"XMM{n}": (160 + 16 * n, 16, f"xmm.{n}") for n in range(16)},
}
_MXCSR, _SIZE = (24, 4), 512
# An unmasked exception is pending: CPUs that store the pointers only then, or restore them only then, do both.
_PENDING_FCW, _PENDING_FSW = 0x37B, 0x8084
# FSW's TOP is 5, C0 is set.
_FCW, _FSW, _FTW, _MXCSR_VALUE = 0x27F, 0x2900, 0xA7, 0x1FA0
_FOP, _FIP, _FDP = 0x5A5, 0x123456789ABC, 0x7ECDBA987654


class Legacy:
    """One FXSAVE image in the 64-bit format; ``data`` are its 512 bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @classmethod
    def random(cls, seed: int, *, pointers: bool = False, ftw: int = _FTW) -> Legacy:
        """Return an image whose fields are unlike the initial ones, with ``pointers`` an x87 exception pending."""
        source = random.Random(seed)
        image = bytearray(_SIZE)
        numbers = {
            "FCW": _PENDING_FCW if pointers else _FCW,
            "FSW": _FSW | (_PENDING_FSW if pointers else 0),
            "FTW": ftw,
        }
        if pointers:
            numbers |= {"FOP": _FOP, "FIP": _FIP, "FDP": _FDP}
        for name, (at, size, _) in FIELDS.items():
            if name.startswith("ST"):
                value = source.randbytes(10) + bytes(6)
            elif name.startswith("XMM"):
                value = noise(source, size)
            else:
                value = numbers.get(name, 0).to_bytes(size, "little")
            image[at : at + size] = value
        image[_MXCSR[0] : sum(_MXCSR)] = _MXCSR_VALUE.to_bytes(4, "little")
        return cls(bytes(image))

    @property
    def mxcsr(self) -> int:
        """MXCSR."""
        return int.from_bytes(self.data[_MXCSR[0] : sum(_MXCSR)], "little")

    def with_mxcsr(self, value: int) -> Legacy:
        """Return the image with another MXCSR."""
        return Legacy(self.data[: _MXCSR[0]] + value.to_bytes(4, "little") + self.data[sum(_MXCSR) :])

    def field(self, name: str) -> bytes:
        """Return a field of FIELDS as bytes."""
        at, size, _ = FIELDS[name]
        return self.data[at : at + size]

    def fpu(self) -> Any:
        """Return the fields as a ``struct kvm_fpu *``, MXCSR too."""
        made = ffi.new("struct kvm_fpu *")
        for name, (_, _, where) in FIELDS.items():
            array, _, index = where.partition(".")
            if index:
                getattr(made, array)[int(index)] = self.field(name)
            else:
                setattr(made, array, int.from_bytes(self.field(name), "little"))
        made.mxcsr = self.mxcsr
        return made

    def area(self) -> XsaveArea:
        """Return an XSAVE area with these x87 and SSE components, all others in their initial configuration."""
        made = XsaveArea.initial()
        made.data[: _SIZE - 96] = self.data[: _SIZE - 96]
        made.xstate_bv = 3
        return made


def _shown(fpu: Any, name: str) -> bytes:
    """Return a field of a ``struct kvm_fpu *`` as an FXSAVE image has it."""
    _, size, where = FIELDS[name]
    array, _, index = where.partition(".")
    if index:
        return bytes(getattr(fpu, array)[int(index)])
    return int(getattr(fpu, array)).to_bytes(size, "little")


def agrees(what: str, guest: Guest, expected: Legacy, area: XsaveArea | None = None) -> None:
    """KVM_GET_FPU has to show each of the expected fields, and so has ``area`` if there is one."""
    fpu = get_fpu(guest.vcpu)
    for name in FIELDS:
        equal(f"{name} of KVM_GET_FPU {what}", _shown(fpu, name), expected.field(name))
        if area is not None:
            seen = Legacy(bytes(area.data[:_SIZE])).field(name)
            equal(f"{name} in the XSAVE area {what}", seen, expected.field(name))


def fxsave_guest(context: Context) -> Guest:
    """A guest with the fxsave payload."""
    return context.own(Guest(context.kvm, "fxsave", cpuid=context.host.facts.cpuid))


def load(context: Context, guest: Guest, image: Legacy) -> None:
    """Have the guest load an image with FXRSTOR."""
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    guest.call("load", privilege=3, timeout=context.timeout)


def verify(context: Context, guest: Guest, image: Legacy, what: str, entry: str = "verify", ticks: int = 0) -> None:
    """The guest's FXSAVE has to store ``image``, or with ``entry`` churn: it has to keep it over so many ticks."""
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    judged_call(context, guest, entry, ticks, privilege=3)
    count = guest.mailbox.read("differences")
    if not count:
        equal(f"bytes that the guest found different {what}", count, 0)
        return
    offset = guest.mailbox.read("difference")
    seen = guest.memory.read(guest.payload.symbol("observed") + offset, 1)[0]
    where = XsaveArea.initial().where(offset)
    text = f"{seen:#04x} ({count} bytes differ)"
    true(f"{where} in the guest {what}", False, text, f"{image.data[offset]:#04x}")


@cache
def keeps_pointers() -> bool:
    """Whether this CPU gives FOP, FIP and FDP back given with an exception pending: not all emulated ones do."""
    given = Legacy.random(0, pointers=True)
    seen = Legacy(bytes(yield_with_registers(given.area(), 1).data[:_SIZE]))
    return all(seen.field(name) == given.field(name) for name in ("FOP", "FIP", "FDP"))


def _measure_pointers(host: Host) -> tuple[bool, str]:
    kept = keeps_pointers()
    return kept, f"what XRSTOR loads, XSAVE {'stores' if kept else 'does not store'}"


POINTERS = Need("a CPU that keeps FOP, FIP and FDP", _measure_pointers)
