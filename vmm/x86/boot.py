# SPDX-License-Identifier: Apache-2.0
"""Long mode without a boot loader: descriptor tables, an identity mapping and segment registers.

Guest physical layout, all below the payload at 1 MiB:

    0x1000  GDT      0x2000  IDT (32 vectors, into the payload's `vectors`)
    0x3000  TSS with an I/O bitmap that allows every port, up to 0x5080
    0x6000  PML4     0x7000  PDPT     0x8000..0xbfff  four page directories: 4 GiB in 2 MiB pages,
                                       user-accessible, writable
    0xc000  a page table for 2 to 4 MiB, in use only where pages differ: with shadow stacks the first page is
            a user shadow stack, the second a supervisor shadow stack with its token at the top, the rest is
            ordinary; with memory types the first pages select an entry of IA32_PAT each
    0xd000..  a page directory for each GiB beyond 4 GiB in which there is memory

A vCPU beyond the first has pages of its own (vmm.guest.layout): a PML4, a PDPT, the first page directory, a page
table for 0 to 2 MiB that maps its own copy of what the payload writes, and with shadow stacks a page table for 2 to
4 MiB with both of its stacks.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

from vmm._kvm import ffi
from vmm.guest.layout import Own, end_of_tables
from vmm.guest.payload import Payload
from vmm.kvm.memory import GuestMemory
from vmm.kvm.vcpu import Vcpu
from vmm.x86.registers import get_sregs, set_sregs

__all__ = [
    "CR0",
    "CR4_CET",
    "CR4_OSFXSR",
    "CR4_OSXMMEXCPT",
    "CR4_OSXSAVE",
    "CR4_PKE",
    "DIRECTORIES",
    "HOLE",
    "KERNEL_SHADOW_STACK_TOKEN",
    "OWN_PAGES",
    "PAGE_2M",
    "PML4",
    "TABLES_END",
    "TYPED_PAGES",
    "USER_SHADOW_STACK_TOP",
    "enter",
    "write_own_tables",
    "write_pat_entries",
    "write_shadow_stacks",
    "write_tables",
]

GDT, IDT, TSS, PML4, PDPT, DIRECTORIES, TABLE = 0x1000, 0x2000, 0x3000, 0x6000, 0x7000, 0x8000, 0xC000
TABLES_END = 0xD000
# Where there is no memory: the local APIC and devices of real machines are here.
HOLE = (3 << 30, 4 << 30)
# The pages that may have types of their own, the first of the page table's.
TYPED_PAGES = 0x200000
# Where a shadow stack pointer starts: pushes go down from here (user), the token itself (supervisor).
USER_SHADOW_STACK_TOP = 0x201000
KERNEL_SHADOW_STACK_TOKEN = 0x201FF8

# In the pages that a vCPU beyond the first has for itself.
_OWN_PML4, _OWN_PDPT, _OWN_DIRECTORY, _OWN_LOW, _OWN_TABLE, _OWN_SHADOW = range(0, 0x6000, 0x1000)
OWN_PAGES = 7

# Selectors in the GDT below.
KERNEL_CODE, KERNEL_DATA, USER_DATA, USER_CODE = 0x08, 0x10, 0x1B, 0x23
TASK, ABSENT = 0x28, 0x38

CR0 = 0x80050033  # PG AM WP NE ET MP PE; EM and TS clear, so that no vector instruction traps
CR4_PAE = 1 << 5
CR4_OSFXSR = 1 << 9
CR4_OSXMMEXCPT = 1 << 10
CR4_OSXSAVE = 1 << 18
CR4_PKE = 1 << 22
CR4_CET = 1 << 23
EFER_LONG_MODE = 0xD00  # NXE LMA LME
_IO_BITMAP_AT = 104
_TSS_LIMIT = _IO_BITMAP_AT + 8192
PAGE_2M = 0x87  # present, writable, user, large
_PAGE_4K = 0x07
# Dirty and not writable: that combination is what makes a page a shadow stack. Intel SDM volume 3, 4.6.
_USER_SHADOW, _KERNEL_SHADOW = 0x65, 0x61


def _descriptor(kind: int, dpl: int, *, long: bool = False, present: bool = True) -> int:
    access = present << 7 | dpl << 5 | 1 << 4 | kind
    granularity = 0x8 | (0x2 if long else 0x4)
    return 0xFFFF | access << 40 | 0xF << 48 | granularity << 52


def _gdt() -> bytes:
    low = _TSS_LIMIT | (TSS & 0xFFFFFF) << 16 | 0x8B << 40 | (TSS >> 24) << 56
    entries = [
        0,
        _descriptor(0xB, 0, long=True),
        _descriptor(0x3, 0),
        _descriptor(0x3, 3),
        _descriptor(0xB, 3, long=True),
        low,
        TSS >> 32,
        _descriptor(0x3, 3, present=False),
    ]
    return struct.pack("<8Q", *entries)


def _idt(vectors: int) -> bytes:
    gates = []
    for vector in range(32):
        handler = vectors + 16 * vector
        # A 64-bit interrupt gate; DPL 3, so that INT3 works at CPL3.
        low = handler & 0xFFFF | KERNEL_CODE << 16 | 0xEE << 40 | (handler >> 16 & 0xFFFF) << 48
        gates.append(struct.pack("<QQ", low, handler >> 32))
    return b"".join(gates)


def _tss(kernel_stack: int) -> bytes:
    head = bytearray(_IO_BITMAP_AT)
    struct.pack_into("<Q", head, 4, kernel_stack)
    struct.pack_into("<H", head, 102, _IO_BITMAP_AT)
    return bytes(head) + bytes(8192) + b"\xff"


@cache
def _tables(vectors: int, kernel_stack: int) -> bytes:
    parts = {
        GDT: _gdt(),
        IDT: _idt(vectors),
        TSS: _tss(kernel_stack),
        PML4: struct.pack("<Q", PDPT | 7),
        PDPT: struct.pack("<4Q", *(DIRECTORIES + 0x1000 * n | 7 for n in range(4))),
        DIRECTORIES: struct.pack("<2048Q", *range(PAGE_2M, 4 << 30, 2 << 20)),
    }
    image = bytearray()
    for address, part in parts.items():
        image += bytes(address - GDT - len(image)) + part
    return bytes(image)


def write_tables(memory: GuestMemory, payload: Payload, end: int = 4 << 30) -> None:
    """Write descriptor tables and page tables, for memory up to ``end`` and 4 GiB at least."""
    memory.write(GDT, _tables(payload.symbol("vectors"), payload.symbol("kernel_stack_top")))
    for number, directory in enumerate(range(TABLES_END, end_of_tables(TABLES_END, end), 0x1000), start=4):
        memory.write(PDPT + 8 * number, struct.pack("<Q", directory | 7))
        first = number << 30
        memory.write(directory, struct.pack("<512Q", *range(first | PAGE_2M, first + (1 << 30), 2 << 20)))


def write_own_tables(memory: GuestMemory, payload: Payload, own: Own) -> None:
    """Write the page tables of a vCPU beyond the first, which maps its own copy of what the payload writes."""
    assert payload.data is not None
    pdpt, directory, low = (own.tables + page for page in (_OWN_PDPT, _OWN_DIRECTORY, _OWN_LOW))
    memory.write(own.tables + _OWN_PML4, struct.pack("<Q", pdpt | 7))
    memory.write(pdpt, struct.pack("<Q", directory | 7) + memory.read(PDPT + 8, 0x1000 - 8))
    memory.write(directory, struct.pack("<Q", low | 7) + memory.read(DIRECTORIES + 8, 0x1000 - 8))
    entries = [
        (own.data + page - payload.data if payload.data <= page < payload.end else page) | _PAGE_4K
        for page in range(0, 2 << 20, 0x1000)
    ]
    memory.write(low, struct.pack("<512Q", *entries))


def write_shadow_stacks(memory: GuestMemory, own: Own | None = None) -> None:
    """Make two pages at 2 MiB shadow stacks, one of the user's and one of the supervisor's with its token.

    A vCPU beyond the first maps pages of its ``own`` there.
    """
    first = 2 << 20
    table, directory, shadow = TABLE, DIRECTORIES, first
    if own is not None:
        table, directory, shadow = (own.tables + page for page in (_OWN_TABLE, _OWN_DIRECTORY, _OWN_SHADOW))
    entries = [first + 0x1000 * n | _PAGE_4K for n in range(512)]
    entries[0], entries[1] = shadow | _USER_SHADOW, shadow + 0x1000 | _KERNEL_SHADOW
    memory.write(table, struct.pack("<512Q", *entries))
    memory.write(directory + 8, struct.pack("<Q", table | 7))
    token = struct.pack("<Q", KERNEL_SHADOW_STACK_TOKEN)
    memory.write(shadow + KERNEL_SHADOW_STACK_TOKEN - first, token)


def write_pat_entries(memory: GuestMemory, entries: Sequence[int]) -> None:
    """Have page n from TYPED_PAGES on select entry ``entries[n]`` of IA32_PAT; Intel SDM volume 3, 12.12.3."""
    table = [TYPED_PAGES + 0x1000 * n | _PAGE_4K for n in range(512)]
    for number, entry in enumerate(entries):
        # PWT, PCD and, in a 4 KiB page, bit 7.
        table[number] |= (entry & 3) << 3 | (entry >> 2 & 1) << 7
    memory.write(TABLE, struct.pack("<512Q", *table))
    memory.write(DIRECTORIES + 8, struct.pack("<Q", TABLE | 7))


def _segment(selector: int, *, code: bool, dpl: int) -> dict[str, int]:
    return {
        "base": 0, "limit": 0xFFFFFFFF, "selector": selector, "type": 0xB if code else 0x3, "present": 1,
        "dpl": dpl, "db": 0 if code else 1, "s": 1, "l": 1 if code else 0, "g": 1,
    }  # fmt: skip


@cache
def _segments(privilege: int) -> Any:
    """Return sregs with all that is the same at every entry: the segments and the descriptor tables."""
    sregs = ffi.new("struct kvm_sregs *")
    code, data = (USER_CODE, USER_DATA) if privilege else (KERNEL_CODE, KERNEL_DATA)
    sregs.cs = _segment(code, code=True, dpl=privilege)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, _segment(data, code=False, dpl=privilege))
    sregs.tr = {"base": TSS, "limit": _TSS_LIMIT, "selector": TASK, "type": 0xB, "present": 1}
    sregs.ldt = {"limit": 0xFFFF, "type": 2, "present": 1, "unusable": 1}
    sregs.gdt = {"base": GDT, "limit": 8 * 8 - 1}
    sregs.idt = {"base": IDT, "limit": 32 * 16 - 1}
    return sregs


def enter(vcpu: Vcpu, *, privilege: int, cr4: int = 0, cr0: int = CR0, tables: int = PML4) -> Any:
    """Put the vCPU into long mode at CPL ``privilege`` (0 or 3); return the sregs that were set.

    ``cr4`` is added to PAE, OSFXSR and OSXMMEXCPT. Tables must have been written, the PML4 at ``tables``. RIP and RSP
    are set by the caller.
    """
    sregs = get_sregs(vcpu)
    ffi.memmove(sregs, _segments(privilege), ffi.offsetof("struct kvm_sregs", "cr0"))
    sregs.cr0, sregs.cr3 = cr0, tables
    sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | cr4
    sregs.efer = EFER_LONG_MODE
    set_sregs(vcpu, sregs)
    return sregs
