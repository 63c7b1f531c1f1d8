# SPDX-License-Identifier: Apache-2.0
"""The option ROM that starts a Linux kernel in Bochs without a boot loader.

The BIOS calls the ROM before it looks for a disk.  The ROM switches to 32-bit protected mode, copies the
PVH start-info structure with its memory map, module list and command line to low memory, and jumps to the
kernel's PVH entry with EBX pointing at the structure.  (The interface is Xen's; Linux has it in
include/xen/interface/hvm/start_info.h.)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ..errors import LabError

__all__ = ["ROM_ADDRESS", "StartInfo", "build_rom"]

#: where Bochs maps the ROM, and where the ROM puts its data
ROM_ADDRESS = 0xD0000
_DATA_ADDRESS = 0x20000
_DATA_OFFSET = 0x200
_MAXIMUM = 0x4000

_START_MAGIC = 0x336EC578
_RAM, _RESERVED, _ACPI = 1, 2, 3


@dataclass(frozen=True)
class StartInfo:
    """What the kernel is told: its RAM in bytes, where its initial file system lies, and its command line."""

    memory: int
    initrd_address: int
    initrd_size: int
    command_line: str

    def pack(self, address: int) -> bytes:
        """Return the structures as they will lie at `address`."""
        ranges = self._memory_map()
        map_at = address + 56
        module_at = map_at + 24 * len(ranges)
        line_at = module_at + 32
        head = struct.pack(
            "<IIIIQQQQII", _START_MAGIC, 1, 0, 1, module_at, line_at, 0, map_at, len(ranges), 0
        )  # fmt: skip
        memory_map = b"".join(struct.pack("<QQII", start, size, kind, 0) for start, size, kind in ranges)
        module = struct.pack("<QQQQ", self.initrd_address, self.initrd_size, 0, 0)
        return head + memory_map + module + self.command_line.encode() + b"\0"

    def _memory_map(self) -> list[tuple[int, int, int]]:
        """Return (start, size, kind); Bochs's BIOS keeps its ACPI tables in the last 64 KiB of RAM."""
        tables = self.memory - 0x10000
        return [
            (0, 0x9FC00, _RAM),
            (0x9FC00, 0x400, _RESERVED),
            (0xE8000, 0x18000, _RESERVED),
            (0x100000, tables - 0x100000, _RAM),
            (tables, 0x10000, _ACPI),
            (0xFFFC0000, 0x40000, _RESERVED),
        ]


def build_rom(entry: int, info: StartInfo) -> bytes:
    """Return the ROM: signature, size in 512-byte blocks, code, data, and a byte that makes the sum zero."""
    data = info.pack(_DATA_ADDRESS)
    code = _code(entry, (len(data) + 3) // 4)
    rom = bytearray(code.ljust(_DATA_OFFSET, b"\0") + data)
    # The BIOS looks for ROMs every 2 KiB.
    rom.extend(b"\0" * (-(len(rom) + 1) % 2048 + 1))
    if len(rom) > _MAXIMUM:
        raise LabError(f"The option ROM became {len(rom)} bytes; shorten the kernel's command line.")
    rom[2] = len(rom) // 512
    rom[-1] = -sum(rom) & 0xFF
    return bytes(rom)


def _code(entry: int, words: int) -> bytes:
    real_mode = b"".join(
        [
            b"\x55\xaa\x00",  # signature; the size is filled in later
            b"\xfa",  # cli
            b"\xfc",  # cld
            b"\xe4\x92",  # in al, 0x92: open the A20 gate without a reset
            b"\x0c\x02",  # or al, 2
            b"\x24\xfe",  # and al, 0xfe
            b"\xe6\x92",  # out 0x92, al
            b"\x66\x2e\x0f\x01\x16%s",  # lgdt cs:[table]
            b"\x0f\x20\xc0",  # mov eax, cr0
            b"\x66\x83\xc8\x01",  # or eax, 1
            b"\x0f\x22\xc0",  # mov cr0, eax
            b"\x66\xea%s\x08\x00",  # jmp 0x08:protected_mode
        ]
    )
    protected_mode = b"".join(
        [
            b"\x66\xb8\x10\x00",  # mov ax, 0x10
            b"\x8e\xd8\x8e\xc0\x8e\xd0\x8e\xe0\x8e\xe8",  # mov ds/es/ss/fs/gs, ax
            b"\xbe" + struct.pack("<I", ROM_ADDRESS + _DATA_OFFSET),  # mov esi, data in the ROM
            b"\xbf" + struct.pack("<I", _DATA_ADDRESS),  # mov edi, data in low memory
            b"\xb9" + struct.pack("<I", words),  # mov ecx, words
            b"\xf3\xa5",  # rep movsd
            b"\xbb" + struct.pack("<I", _DATA_ADDRESS),  # mov ebx, start info
            b"\xb8" + struct.pack("<I", entry),  # mov eax, entry
            b"\xff\xe0",  # jmp eax
        ]
    )
    protected_at = len(real_mode % (b"..", b"...."))
    descriptors_at = (protected_at + len(protected_mode) + 7) // 8 * 8
    table_at = descriptors_at + 24
    code = real_mode % (struct.pack("<H", table_at), struct.pack("<I", ROM_ADDRESS + protected_at)) + protected_mode
    # nothing, then flat 4 GiB code and data
    descriptors = struct.pack("<QQQ", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
    table = struct.pack("<HI", len(descriptors) - 1, ROM_ADDRESS + descriptors_at)
    return code.ljust(descriptors_at, b"\0") + descriptors + table
