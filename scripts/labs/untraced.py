# SPDX-License-Identifier: Apache-2.0
"""Modules of x86 kernels of which ftrace does not know that it could trace them.

For each function that could be traced the kernel goes through all symbols of its module, which takes amx longer
than all else that inserting KVM does. Here the functions' calls of ftrace become the no-ops that ftrace would make of
them, and the section that lists them gets another name. Source: kernel/trace/ftrace.c, test_for_valid_rec;
kernel/module/main.c, find_module_sections.
"""

from __future__ import annotations

import struct

from .errors import LabError

__all__ = ["untraced"]

_ELF64_X86 = (b"\x7fELF\x02\x01", 62)  # EI_CLASS and EI_DATA after the magic; EM_X86_64
_SYMTAB, _RELA = 2, 4
_CALLED = b"__fentry__\0"
_CALL, _NO_OP = b"\xe8", b"\x0f\x1f\x44\x00\x00"
#: the end of a section's name, and another of the same length
_LISTED, _UNLISTED = b"__mcount_loc\0", b"__unused_loc\0"

_SECTION = struct.Struct("<II8x8xQQIIQQ")  # name, type, offset, size, link, info, alignment, size of an entry
_SYMBOL = struct.Struct("<I20x")
_RELOCATION = struct.Struct("<QQq")  # offset, type and above it symbol, addend
_SYMBOL_AT = 12  # where in a relocation


def untraced(module: bytes) -> bytes:
    """Return a module as ftrace leaves it where it traces nothing; one of another architecture as it is.

    Source: System V Application Binary Interface, "Object Files"; its AMD64 supplement, "Relocation".
    """
    machine = struct.unpack_from("<H", module, 18)[0] if len(module) > 64 else 0
    if (module[:6], machine) != _ELF64_X86:
        return module
    data = bytearray(module)
    first, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    sections = [_SECTION.unpack_from(data, first + index * _SECTION.size) for index in range(count)]
    for _, kind, offset, size, link, target, _, _ in sections:
        if kind == _RELA:
            called = _symbol(data, sections, link)
            _leave_out_calls(data, offset, size, called, sections[target][2])
    return bytes(data.replace(_LISTED, _UNLISTED))


def _symbol(data: bytearray, sections: list[tuple[int, ...]], table: int) -> int:
    """Return the number of the symbol that is called in a table of symbols; 0, that of none, where it is not."""
    _, _, offset, size, names, *_ = sections[table]
    start, length = sections[names][2:4]
    text = bytes(data[start : start + length])
    symbols = _SYMBOL.iter_unpack(data[offset : offset + size])
    return next((number for number, (name,) in enumerate(symbols) if text.startswith(_CALLED, name)), 0)


def _leave_out_calls(data: bytearray, offset: int, size: int, called: int, base: int) -> None:
    """Replace the calls that the relocations at an offset are of, in the section at `base`, and the relocations."""
    number = struct.pack("<I", called)
    at = data.find(number, offset, offset + size) if called else -1
    while at >= 0:
        index, place = divmod(at - offset, _RELOCATION.size)
        if place == _SYMBOL_AT:
            entry = offset + index * _RELOCATION.size
            call = base + _RELOCATION.unpack_from(data, entry)[0] - 1
            if data[call : call + 1] != _CALL:
                raise LabError("A module refers to __fentry__ without calling it; untraced() has to learn that.")
            data[call : call + len(_NO_OP)] = _NO_OP
            _RELOCATION.pack_into(data, entry, 0, 0, 0)  # R_X86_64_NONE
        at = data.find(number, at + 1, offset + size)
