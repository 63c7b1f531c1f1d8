# SPDX-License-Identifier: Apache-2.0
"""What a payload needs of an ELF file, read with pyelftools' structures.

Not with its ELFFile, which imports all that pyelftools knows of DWARF and takes twice as long. Raises ELFError, and
for a damaged file much else, as pyelftools does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from os import SEEK_END
from struct import Struct
from typing import Any, BinaryIO

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.structs import ELFStructs

__all__ = ["Elf", "ElfError", "Segment", "read"]

ElfError = ELFError

_MAGIC = b"\x7fELF"
_BITS = {1: 32, 2: 64}  # EI_CLASS
_ORDER = {1: "<", 2: ">"}  # EI_DATA
_WRITABLE = 2  # PF_W


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
    """The header's facts under the names of the ELF specification (EM_X86_64, ET_EXEC), segments and symbols.

    Symbols are read of 64-bit files only: there are no other payloads.
    """

    machine: str
    bits: int
    type: str
    entry: int
    segments: tuple[Segment, ...]
    symbols: dict[str, int]


def read(file: BinaryIO) -> Elf:
    """Read an ELF file. Source: System V Application Binary Interface, "Object Files"."""
    ident = file.read(16)
    if ident[:4] != _MAGIC:
        raise ELFError("no ELF magic")
    bits = _BITS[ident[4]]
    structs = ELFStructs(little_endian=_ORDER[ident[5]] == "<", elfclass=bits)
    structs.create_basic_structs()
    header = struct_parse(structs.Elf_Ehdr, file, 0)
    structs.create_advanced_structs(header["e_type"], header["e_machine"], header["e_ident"]["EI_OSABI"])

    def table(kind: str, form: Any) -> Iterator[Any]:
        for index in range(header[f"e_{kind}num"]):
            yield struct_parse(form, file, header[f"e_{kind}off"] + index * header[f"e_{kind}entsize"])

    loaded = [one for one in table("ph", structs.Elf_Phdr) if one["p_type"] == "PT_LOAD"]
    sections = list(table("sh", structs.Elf_Shdr))
    return Elf(
        machine=str(header["e_machine"]),
        bits=bits,
        type=str(header["e_type"]),
        entry=header["e_entry"],
        segments=tuple(
            Segment(s["p_paddr"], s["p_offset"], s["p_filesz"], s["p_memsz"], bool(s["p_flags"] & _WRITABLE))
            for s in loaded
        ),
        symbols=dict(_symbols(file, _ORDER[ident[5]], sections)) if bits == 64 else {},
    )


def _symbols(file: BinaryIO, order: str, sections: list[Any]) -> Iterator[tuple[str, int]]:
    """Yield the names and values of 64-bit symbols, a table at a time: construct takes ten times as long for each."""
    entry = Struct(order + "I4xQ8x")  # st_name, st_value
    for section in sections:
        if section["sh_type"] != "SHT_SYMTAB":
            continue
        if section["sh_entsize"] != entry.size or section["sh_size"] % entry.size:
            raise ELFError(f"a symbol table whose entries are not of {entry.size} bytes")
        names = _bytes(file, sections[section["sh_link"]])
        for name, value in entry.iter_unpack(_bytes(file, section)):
            text = names[name : names.index(0, name)]
            if text:
                yield text.decode("utf-8", "replace"), value


def _bytes(file: BinaryIO, section: Any) -> bytes:
    if section["sh_offset"] + section["sh_size"] > file.seek(0, SEEK_END):
        raise ELFError("a section that is not all in the file")
    file.seek(section["sh_offset"])
    return file.read(section["sh_size"])
