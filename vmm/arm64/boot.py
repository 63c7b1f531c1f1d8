# SPDX-License-Identifier: Apache-2.0
"""EL1 without a boot loader: an identity mapping and the system registers that go with it.

Guest physical layout, all below the payload at 1 MiB:

    0x1000  level 1: 0 to 1 GiB by level 2, 1 to 2 GiB and 3 to 4 GiB Device, from 4 GiB on memory, the rest unmapped
    0x2000  level 2: blocks of 2 MiB, Normal write-back memory, as far as the guest has memory
    0x3000..  the same for each GiB beyond 4 GiB in which there is memory

A vCPU beyond the first has pages of its own (vmm.guest.layout): level 1, the first level 2, and a level 3 for 0 to
2 MiB that maps its own copy of what the payload writes.

With the MMU off every access would be Device memory, to which vector accesses must be aligned.
"""

from __future__ import annotations

import struct
from functools import cache

from vmm.arm64.registers import PSTATE, SYSTEM
from vmm.arm64.vcpu import write
from vmm.guest.layout import Own, end_of_tables
from vmm.guest.payload import Payload
from vmm.kvm.memory import GuestMemory
from vmm.kvm.vcpu import Vcpu

__all__ = [
    "CPACR",
    "EL1H",
    "HOLE",
    "LEVEL_1",
    "OWN_PAGES",
    "TABLES_END",
    "enter",
    "write_own_tables",
    "write_tables",
]

LEVEL_1, LEVEL_2, TABLES_END = 0x1000, 0x2000, 0x3000
# Where there is no memory: payloads leave by stores here.
HOLE = (1 << 30, 4 << 30)
# In the pages that a vCPU beyond the first has for itself.
_OWN_LEVEL_1, _OWN_LEVEL_2, _OWN_LEVEL_3 = range(0, 0x3000, 0x1000)
OWN_PAGES = 3

EL1H = 0x3C5  # EL1 with its own stack pointer; debug, SError, IRQ and FIQ masked
# RES1 bits, I, SA, C, M. Arm ARM, D23 "SCTLR_EL1".
_SCTLR = 0x30D0180D
# T0SZ 25 (39 bits: tables start at level 1), write-back inner shareable walks, no TTBR1 walks, 4 KiB granule.
_TCR = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23
_MAIR = 0xFF00  # index 0 Device-nGnRnE, index 1 Normal write-back
# SMEN, FPEN and ZEN: neither AdvSIMD nor SVE nor SME traps to EL1, so that a trap is KVM's.
CPACR = 3 << 24 | 3 << 20 | 3 << 16
ZCR = 0xF  # LEN: as long as it gets

_TABLE, _BLOCK, _PAGE = 3, 1, 3
_ACCESSED, _INNER_SHAREABLE, _NORMAL, _NO_EXECUTE = 1 << 10, 3 << 8, 1 << 2, 3 << 53


_DEVICE = _BLOCK | _ACCESSED | _NO_EXECUTE
_MEMORY = _ACCESSED | _INNER_SHAREABLE | _NORMAL


@cache
def _blocks(start: int, end: int) -> bytes:
    addresses = range(start, end, 2 << 20)
    return struct.pack(f"<{len(addresses)}Q", *(address | _BLOCK | _MEMORY for address in addresses))


def write_tables(memory: GuestMemory, end: int = 4 << 30) -> None:
    """Write the tables that map all of ``memory``, which has to start at 0, and what is from 4 GiB up to ``end``.

    Both end at a multiple of 2 MiB; from 4 GiB on whole GiB are mapped.
    """
    level_1 = struct.pack("<4Q", LEVEL_2 | _TABLE, 1 << 30 | _DEVICE, 0, 3 << 30 | _DEVICE)
    memory.write(LEVEL_1, level_1.ljust(LEVEL_2 - LEVEL_1, b"\0") + _blocks(0, memory.size))
    for number, table in enumerate(range(TABLES_END, end_of_tables(TABLES_END, end), 0x1000), start=4):
        memory.write(LEVEL_1 + 8 * number, struct.pack("<Q", table | _TABLE))
        memory.write(table, _blocks(number << 30, number + 1 << 30))


def write_own_tables(memory: GuestMemory, payload: Payload, own: Own) -> None:
    """Write the tables of a vCPU beyond the first, which maps its own copy of what the payload writes."""
    assert payload.data is not None
    level_1, level_2, level_3 = (own.tables + page for page in (_OWN_LEVEL_1, _OWN_LEVEL_2, _OWN_LEVEL_3))
    memory.write(level_1, struct.pack("<Q", level_2 | _TABLE) + memory.read(LEVEL_1 + 8, 0x1000 - 8))
    memory.write(level_2, struct.pack("<Q", level_3 | _TABLE) + memory.read(LEVEL_2 + 8, 0x1000 - 8))
    entries = [
        (own.data + page - payload.data if payload.data <= page < payload.end else page) | _PAGE | _MEMORY
        for page in range(0, 2 << 20, 0x1000)
    ]
    memory.write(level_3, struct.pack("<512Q", *entries))


def _output_size(end: int) -> int:
    """Return TCR_EL1.IPS for memory up to ``end``: tables give addresses of 32, 36 or 40 bits.

    Source: Arm ARM, D23 "TCR_EL1".
    """
    return (0 if end <= 4 << 30 else 1 if end <= 64 << 30 else 2) << 32


def enter(vcpu: Vcpu, vectors: int, tables: int = LEVEL_1, end: int = 4 << 30) -> None:
    """Put the vCPU into EL1 with the MMU on, its tables at ``tables`` and its vector table at ``vectors``.

    ``end`` is where the guest's memory ends.

    Tables must have been written; PC and SP are the caller's.
    """
    values = {
        "MAIR_EL1": _MAIR, "TCR_EL1": _TCR | _output_size(end), "TTBR0_EL1": tables, "VBAR_EL1": vectors,
        "CPACR_EL1": CPACR, "SCTLR_EL1": _SCTLR,
    }  # fmt: skip
    for name, value in values.items():
        write(vcpu, SYSTEM[name], value)
    write(vcpu, PSTATE, EL1H)
