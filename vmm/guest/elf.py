# SPDX-License-Identifier: Apache-2.0
"""What a payload needs of an ELF file: its header, what it loads and its symbols.

Raises ElfError, and for a damaged file much else: KeyError, IndexError, ValueError.
Source: System V Application Binary Interface, "Object Files".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from os import SEEK_END
from struct import Struct
from typing import Any, BinaryIO

__all__ = ["Elf", "ElfError", "Segment", "read"]

_MAGIC = b"\x7fELF"
_BITS = {1: 32, 2: 64}  # EI_CLASS
_ORDER = {1: "<", 2: ">"}  # EI_DATA
_TYPES = {1: "ET_REL", 2: "ET_EXEC", 3: "ET_DYN", 4: "ET_CORE"}
_MACHINES = {3: "EM_386", 40: "EM_ARM", 62: "EM_X86_64", 183: "EM_AARCH64", 243: "EM_RISCV"}
_LOAD = 1  # PT_LOAD
_WRITABLE = 2  # PF_W
_SYMBOLS = 2  # SHT_SYMTAB

# Of 64-bit files: the header behind its ident, a program header, a section header, a symbol.
_HEADER = "HH4xQQQ6xHHHH2x"  # e_type, e_machine, e_entry, e_phoff, e_shoff, then sizes and numbers of these headers
_PROGRAM = "IIQ8xQQQ8x"  # p_type, p_flags, p_offset, p_paddr, p_filesz, p_memsz
_SECTION = "4xI16xQQI12xQ"  # sh_type, sh_offset, sh_size, sh_link, sh_entsize
_SYMBOL = "I4xQ8x"  # st_name, st_value


class ElfError(Exception):
    """The file is no ELF file, or not all of one."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD program header; sizes and offset in bytes, ``writable`` is its PF_W."""

    address: int
    offset: int
    file_size: int
    memory_size: int
    writable: bool


@dataclass(frozen=True, slots=True)
class Elf:
    """The header's facts under the names of the ELF specification (EM_X86_64, ET_EXEC), segments and symbols."""

    machine: str
    bits: int
    type: str
    entry: int
    segments: tuple[Segment, ...]
    symbols: dict[str, int]


def read(file: BinaryIO) -> Elf:
    """Read an ELF file; of one with 32 bits only what it is for."""
    ident = file.read(16)
    if ident[:4] != _MAGIC:
        raise ElfError("no ELF magic")
    bits, order = _BITS[ident[4]], _ORDER[ident[5]]
    if bits != 64:
        type_, machine = Struct(order + "HH").unpack(_bytes(file, 16, 4))
        return Elf(_name("EM", _MACHINES, machine), bits, _name("ET", _TYPES, type_), 0, (), {})
    form = Struct(order + _HEADER)
    type_, machine, entry, *headers = form.unpack(_bytes(file, 16, form.size))
    programs_at, sections_at, program_size, programs, section_size, sections = headers
    loaded = [
        Segment(address, offset, file_size, memory_size, bool(flags & _WRITABLE))
        for kind, flags, offset, address, file_size, memory_size in _table(
            file, order + _PROGRAM, programs_at, programs * program_size, program_size
        )
        if kind == _LOAD
    ]
    found = list(_table(file, order + _SECTION, sections_at, sections * section_size, section_size))
    symbols = dict(_symbols(file, order, found))
    return Elf(_name("EM", _MACHINES, machine), bits, _name("ET", _TYPES, type_), entry, tuple(loaded), symbols)


def _name(kind: str, names: dict[int, str], number: int) -> str:
    """Return a constant's name; what a payload cannot be has one only if a person would know it."""
    return names.get(number, f"{kind}_{number}")


def _table(file: BinaryIO, form: str, offset: int, size: int, entry_size: int) -> Iterator[tuple[Any, ...]]:
    """Read a table whose entries have the size that the file says."""
    entry = Struct(form)
    if not size:
        return iter(())
    if entry_size != entry.size or size % entry.size:
        raise ElfError(f"a table whose entries are not of {entry.size} bytes")
    return entry.iter_unpack(_bytes(file, offset, size))


def _symbols(file: BinaryIO, order: str, sections: list[tuple[Any, ...]]) -> Iterator[tuple[str, int]]:
    """Yield the names and values of symbols."""
    for kind, offset, size, link, entry_size in sections:
        if kind != _SYMBOLS:
            continue
        _, names_offset, names_size, _, _ = sections[link]
        names = _bytes(file, names_offset, names_size)
        for name, value in _table(file, order + _SYMBOL, offset, size, entry_size):
            text = names[name : names.index(0, name)]
            if text:
                yield text.decode("utf-8", "replace"), value


def _bytes(file: BinaryIO, offset: int, size: int) -> bytes:
    if offset + size > file.seek(0, SEEK_END):
        raise ElfError("a part that is not all in the file")
    file.seek(offset)
    return file.read(size)
