# SPDX-License-Identifier: Apache-2.0
"""What a payload needs of an ELF file, read with pyelftools' structures.

Not with its ELFFile, which imports all that pyelftools knows of DWARF and takes twice as long. Raises ELFError, and
for a damaged file much else, as pyelftools does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from elftools.common.exceptions import ELFError
from elftools.common.utils import parse_cstring_from_stream, struct_parse
from elftools.elf.structs import ELFStructs

__all__ = ["Elf", "ElfError", "Segment", "read"]

ElfError = ELFError

_MAGIC = b"\x7fELF"
_BITS = {1: 32, 2: 64}  # EI_CLASS
_LITTLE = {1: True, 2: False}  # EI_DATA


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD program header; sizes and offset in bytes."""

    address: int
    offset: int
    file_size: int
    memory_size: int


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
    """Read an ELF file. Source: System V Application Binary Interface, "Object Files"."""
    ident = file.read(16)
    if ident[:4] != _MAGIC:
        raise ELFError("no ELF magic")
    bits = _BITS[ident[4]]
    structs = ELFStructs(little_endian=_LITTLE[ident[5]], elfclass=bits)
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
        segments=tuple(Segment(s["p_paddr"], s["p_offset"], s["p_filesz"], s["p_memsz"]) for s in loaded),
        symbols=dict(_symbols(file, structs, sections)),
    )


def _symbols(file: BinaryIO, structs: ELFStructs, sections: list[Any]) -> Iterator[tuple[str, int]]:
    for section in sections:
        if section["sh_type"] != "SHT_SYMTAB":
            continue
        if not section["sh_entsize"]:
            raise ELFError("a symbol table with entries of no size")
        names = sections[section["sh_link"]]["sh_offset"]
        for offset in range(0, section["sh_size"], section["sh_entsize"]):
            symbol = struct_parse(structs.Elf_Sym, file, section["sh_offset"] + offset)
            name = parse_cstring_from_stream(file, names + symbol["st_name"])
            if name:
                yield name.decode("utf-8", "replace"), symbol["st_value"]
