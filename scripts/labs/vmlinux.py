# SPDX-License-Identifier: Apache-2.0
"""Get the kernel proper out of an x86 bzImage, so that a machine can start it without a boot loader.

The kernel's ELF file has a note with its PVH entry point: 32-bit protected mode, EBX pointing at a structure
with what the kernel must know.  Starting there skips the decompressor, which takes seconds when emulated.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from .errors import LabError

__all__ = ["FlatKernel", "flatten", "unpack_bzimage"]

_XEN_ELFNOTE_PHYS32_ENTRY = 18
_PT_LOAD, _PT_NOTE = 1, 4
_FIRST_MEGABYTE = 0x100000


@dataclass(frozen=True)
class FlatKernel:
    """A kernel as one block of memory: where it belongs, where it starts, and its bytes."""

    address: int
    entry: int
    image: bytes


def unpack_bzimage(image: bytes, unpack: Callable[[str, bytes], bytes]) -> bytes:
    """Return the ELF file inside a bzImage; `unpack` runs "zstd" or "lz4" on what Python cannot unpack."""
    if image[0x202:0x206] != b"HdrS":
        raise LabError("The kernel image has no x86 boot header; was another architecture's package fetched?")
    setup_sectors = image[0x1F1] or 4
    payload_offset, payload_length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + payload_offset
    payload = image[start : start + payload_length]
    kernel = _decompress(payload, unpack)
    if kernel[:4] != b"\x7fELF":
        raise LabError("The kernel image holds no ELF file after decompression; is its package damaged?")
    return kernel


def _decompress(payload: bytes, unpack: Callable[[str, bytes], bytes]) -> bytes:
    # The build appends the unpacked size, so a decompressor must stop at the end of its stream.
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31).decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return unpack("zstd", payload[:-4])
    if payload.startswith(b"\x02\x21\x4c\x18"):
        return unpack("lz4", payload[:-4])
    raise LabError(f"The kernel is compressed in a way not known here (it starts with {payload[:6].hex()}).")


def flatten(elf: bytes) -> FlatKernel:
    """Return the loadable segments of a vmlinux as one block with its PVH entry."""
    headers = _program_headers(elf)
    entry = _pvh_entry(elf, headers)
    # Older kernels link the per-CPU data at address zero, with a copy inside the main segments.
    segments = [
        (physical, offset, size)
        for kind, offset, physical, size in headers
        if kind == _PT_LOAD and physical >= _FIRST_MEGABYTE
    ]
    start = min(physical for physical, _, _ in segments)
    end = max(physical + size for physical, _, size in segments)
    block = bytearray(end - start)
    for physical, offset, size in segments:
        block[physical - start : physical - start + size] = elf[offset : offset + size]
    return FlatKernel(start, entry, bytes(block))


def _program_headers(elf: bytes) -> list[tuple[int, int, int, int]]:
    """Return (type, file offset, physical address, file size) of each program header."""
    (table,) = struct.unpack_from("<Q", elf, 32)
    entry_size, count = struct.unpack_from("<HH", elf, 54)
    headers = []
    for index in range(count):
        at = table + index * entry_size
        kind, _flags, offset, _virtual, physical, size = struct.unpack_from("<IIQQQQ", elf, at)
        headers.append((kind, offset, physical, size))
    return headers


def _pvh_entry(elf: bytes, headers: list[tuple[int, int, int, int]]) -> int:
    for kind, offset, _physical, size in headers:
        if kind != _PT_NOTE:
            continue
        position, end = offset, offset + size
        while position < end:
            name_size, value_size, note_kind = struct.unpack_from("<III", elf, position)
            name_at = position + 12
            value_at = name_at + (name_size + 3) // 4 * 4
            name = elf[name_at : name_at + name_size].rstrip(b"\0")
            if name == b"Xen" and note_kind == _XEN_ELFNOTE_PHYS32_ENTRY:
                return int.from_bytes(elf[value_at : value_at + min(value_size, 8)], "little")
            position = value_at + (value_size + 3) // 4 * 4
    raise LabError("The kernel has no PVH entry point (CONFIG_PVH); the machine cannot start it.")
