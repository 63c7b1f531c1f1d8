# SPDX-License-Identifier: Apache-2.0
"""States that nobody captured, but such as a vCPU could have. The synthetic files in tests/data/streams are these.

``python -m tests.state.state_samples FOLDER`` writes them, for a new format; files of an old format are never made
again.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

from vmm.arm64 import registers as arm64
from vmm.arm64.vls import VectorLengths
from vmm.state.stream.files import save
from vmm.state.value import Extent, MemoryState, Part, PayloadIdentity, VcpuState, VmState
from vmm.x86.cpuid import Cpuid, Entry
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import Layout, XsaveArea

__all__ = ["SAMPLES", "arm64_state", "explain", "tiny_state", "x86_parts", "x86_state"]

PAYLOAD = PayloadIdentity("xstate", hashlib.sha256(b"no payload's bytes").digest())
XFD, TSC, TSC_AUX, U_CET = 0x1C4, 0x10, 0xC0000103, 0x6A0
GUEST_SSP = 0x2030_0003_0000_0000


def explain(arch: str, name: str, parts: Mapping[str, Part]) -> dict[str, str | int]:
    """What an architecture's explanation looks like: names to numbers or text."""
    part = parts[name]
    if isinstance(part, bytes):
        return {"bytes": len(part), "begins": part[:8].hex()}
    return {f"{arch} {number:#x}": int.from_bytes(value[:8], "little") for number, value in part.items()}


def leaf_d(*, tiles: bool) -> Cpuid:
    """CPUID with leaf 0xD as Sapphire Rapids gives it, with or without AMX."""
    xcr0 = 0x602E7 if tiles else 0x2E7
    rows = [Entry(1, 0, 0, eax=0x806F8, ecx=1 << 26), Entry(0xD, 0, 1, eax=xcr0), Entry(0xD, 1, 1, eax=0x1F)]
    components = [(2, 256, 576), (5, 64, 1088), (6, 512, 1152), (7, 1024, 1664), (9, 8, 2688)]
    components += [(17, 64, 2752), (18, 8192, 2816)] if tiles else []
    return Cpuid(rows + [Entry(0xD, number, 1, eax=size, ebx=offset) for number, size, offset in components])


def _xsave(table: Cpuid) -> bytes:
    layout = Layout.from_cpuid(table, table.xcr0)
    area = XsaveArea.initial(max(4096, layout.size()), layout)
    for number in (XFeature.SSE, XFeature.YMM, XFeature.PKRU, XFeature.XTILEDATA):
        if number in layout:
            data = bytearray((number + index) % 251 for index in range(layout[number].size))
            if number == XFeature.SSE:
                data[:8] = struct.pack("<II", 0x1F80, 0x2FFFF)
            area.set_component(number, bytes(data))
    return bytes(area.data)


def x86_parts(*, tiles: bool = True) -> dict[str, Part]:
    """The parts of an x86 vCPU."""
    table = leaf_d(tiles=tiles)
    return {
        "CPUID": table.packed,
        "TSC_KHZ": (2_400_000).to_bytes(4, "little"),
        "SREGS": bytes(range(256)) + bytes(64),
        "XCRS": struct.pack("<II IIQ", 1, 0, 0, 0, table.xcr0) + bytes(392 - 24),
        "XFD": {XFD: bytes(8), 0x1C5: bytes(8)},
        "XSAVE": _xsave(table),
        "MSRS": {TSC_AUX: (3).to_bytes(8, "little"), U_CET: bytes(8), 0x174: bytes(8), 0x4B564D01: bytes(8)},
        "ONE_REGS": {GUEST_SSP: bytes(8)},
        "TSC": {TSC: (1 << 40).to_bytes(8, "little")},
        "REGS": struct.pack("<18Q", *range(100, 118)),
        "DEBUGREGS": struct.pack("<6Q", 0, 0, 0, 0, 0xFFFF0FF0, 0x400) + bytes(80),
        "MP_STATE": bytes(4),
        "EVENTS": bytes(64),
    }


def _memory(size: int, *extents: tuple[int, bytes]) -> MemoryState:
    return MemoryState(0, size, tuple(Extent(gpa, data) for gpa, data in extents))


def x86_state(*, tiles: bool = True) -> VmState:
    """A VM with one vCPU and a few pages: some that compress, some that do not."""
    noise = b"".join(hashlib.sha256(bytes([index])).digest() for index in range(128))
    memory = _memory(1 << 20, (0x1000, b"page table " * 372 + bytes(4)), (0x80000, noise + noise[::-1]))
    about = {"kernel": "6.12.48", "tool": "xstate-vmm, made up"}
    return VmState(
        "x86",
        (VcpuState(x86_parts(tiles=tiles)),),
        (memory,),
        {"CLOCK": (5 << 30).to_bytes(8, "little")},
        PAYLOAD,
        about,
    )


def arm64_parts(*lengths: int) -> dict[str, Part]:
    """The parts of an arm64 vCPU with SVE of some lengths in quadwords, or without."""
    size = 16 * max(lengths, default=0)
    vectors: dict[int, bytes] = {}
    if lengths:
        for register in arm64.SVE:
            used = size if register.size == 256 else size // 8
            vectors[register] = bytes((register + index) % 256 for index in range(used)).ljust(register.size, b"\0")
    else:
        vectors = {arm64.v(number): bytes([number] * 16) for number in range(32)}
    vectors |= {arm64.FPSR: bytes(4), arm64.FPCR: bytes(4)}
    groups: dict[str, Part] = {
        "IDREGS": {arm64.SYSTEM["ID_AA64PFR0_EL1"]: (0x1_0000_0000).to_bytes(8, "little")},
        "FIRMWARE": {arm64.firmware(0): (0x10001).to_bytes(8, "little")},
        "CORE": {**{arm64.x(number): number.to_bytes(8, "little") for number in range(31)}, arm64.PC: bytes(8)},
        "VECTORS": vectors,
        "SYSREGS": {arm64.SYSTEM["SCTLR_EL1"]: bytes(8)},
        "COUNTERS": {arm64.SYSTEM["CNTVCT_EL0"]: bytes(8)},
    }
    sve = {"VLS": VectorLengths(lengths).encode(), "FINALIZE": (16).to_bytes(4, "little")} if lengths else {}
    listed = {number for part in groups.values() for number in part} | ({int(arm64.VLS)} if lengths else set())
    return {
        "INIT": struct.pack("<8I", 5, 0x14 if lengths else 4, *[0] * 6),
        **sve,
        "LIST": struct.pack(f"<{len(listed)}Q", *sorted(map(int, listed))),
        **groups,
        "EVENTS": bytes(64),
        "MP_STATE": bytes(4),
    }


def arm64_state(*lengths: int) -> VmState:
    """A VM with one vCPU."""
    memory = _memory(1 << 20, (0, b"\1" * 4096))
    return VmState("arm64", (VcpuState(arm64_parts(*lengths)),), (memory,), {}, PAYLOAD, {"kernel": "7.2.0"})


def tiny_state() -> VmState:
    """A stream of less than a kilobyte: no vCPU has this, but it has all that a stream can have."""
    vcpu = VcpuState({"REGS": b"registers", "MSRS": {7: b"\1\2", 300: b"\3"}}, 2)
    memory = _memory(0x4000, (0x2000, bytes(range(256)) * 16))
    return VmState("x86", (vcpu,), (memory,), {"CLOCK": bytes(8)}, None, {"a": "b"})


SAMPLES = {
    "x86-tiles": x86_state(),
    "x86": x86_state(tiles=False),
    "arm64-sve": arm64_state(1, 2, 4),
    "arm64": arm64_state(),
}


if __name__ == "__main__":
    for label, sample in SAMPLES.items():
        save(Path(sys.argv[1]) / f"format1-synthetic-{label}.vmst", sample, explain)
