# SPDX-License-Identifier: Apache-2.0
"""Guest payloads: small static ELF files, their symbols, and the mailbox they share with the host."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from vmm.guest.elf import ElfError, Segment, read
from vmm.kvm.memory import GuestMemory

__all__ = ["FOLDER", "PARAMETERS", "Mailbox", "Payload", "PayloadError", "load", "names"]

FOLDER = Path(__file__).resolve().parents[1] / "payloads"
_MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
_LARGEST = 64 << 20
# A guest's own tables have pages of 4 KiB, whatever the host's are.
_PAGE = 4 << 10
# The mailbox's words for parameters and for values.
PARAMETERS, _VALUES = 8, 16


class PayloadError(Exception):
    """A file that is not a payload for this machine; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Payload:
    """An ELF's loadable bytes by guest physical address, its entry point and its symbols.

    ``segments`` hold what is in the file; the zeros that follow in memory end at ``end`` at the latest. From ``data``
    on is what the payload writes; None if that does not begin with a page of its own behind all the rest.
    """

    name: str
    entry: int
    segments: tuple[tuple[int, bytes], ...]
    symbols: dict[str, int]
    end: int
    data: int | None = None

    @property
    def smp(self) -> bool:
        """Whether several vCPUs may run it, each with its own copy of what it writes: it says so by a symbol."""
        return "SMP" in self.symbols and self.data is not None

    def symbol(self, name: str) -> int:
        """Return the address of a symbol; PayloadError if there is none."""
        try:
            return self.symbols[name]
        except KeyError:
            raise PayloadError(f"payload {self.name} has no symbol {name!r}: build it again") from None

    def place(self, address: int) -> str:
        """Name the place of an address by the last symbol at or before it: ``hello.rdmsr+0x2c``."""
        before = [(at, name) for name, at in self.symbols.items() if self._code(at) and at <= address]
        if not before or not self._code(address):
            return f"{address:#x}, outside {self.name}"
        at, name = max(before)
        return f"{self.name}.{name}" + (f"+{address - at:#x}" if address > at else "")

    def _code(self, address: int) -> bool:
        start, data = self.segments[0]
        return start <= address < start + len(data)

    def check_range(self, start: int, stop: int) -> None:
        """Raise PayloadError unless all of it lies between two guest physical addresses."""
        lowest = min(address for address, _ in self.segments)
        if lowest < start or self.end > stop:
            raise PayloadError(
                f"{self.name} occupies {lowest:#x} to {self.end:#x}: link it between {start:#x} and {stop:#x}"
            )

    def write_to(self, memory: GuestMemory) -> None:
        """Copy the segments into fresh guest memory, which is zero already."""
        for address, data in self.segments:
            memory.write(address, data)

    def write_data_to(self, memory: GuestMemory, start: int) -> None:
        """Copy once more what the payload writes, so that ``data`` is at ``start``."""
        assert self.data is not None
        for address, data in self.segments:
            if address >= self.data:
                memory.write(start + address - self.data, data)


class Mailbox:
    """The payload's ``mailbox_*`` fields, read and written as 64-bit numbers by name and index.

    ``shift`` is how far the copy of them that is meant lies behind where the payload has them.
    """

    def __init__(self, memory: GuestMemory, payload: Payload, shift: int = 0) -> None:
        self._memory = memory
        self._symbols = payload.symbol
        self._shift = shift

    def _address(self, field: str, index: int) -> int:
        return self._symbols("mailbox_" + field) + self._shift + 8 * index

    def read(self, field: str, index: int = 0) -> int:
        """Return field ``mailbox_<field>`` [index]."""
        return int.from_bytes(self._memory.read(self._address(field, index), 8), "little")

    def write(self, field: str, value: int, index: int = 0) -> None:
        """Set field ``mailbox_<field>`` [index]."""
        data = (value & (1 << 64) - 1).to_bytes(8, "little")
        self._memory.write(self._address(field, index), data)

    @property
    def values(self) -> list[int]:
        """The values that the last entry point left."""
        return [self.read("values", index) for index in range(_VALUES)]


def names() -> list[str]:
    """Return the names of the payloads that came with this package."""
    return sorted(path.stem for path in FOLDER.glob("*.elf"))


@cache
def load(name: str) -> Payload:
    """Return a payload by its name (see :func:`names`) or by the path of an ELF file.

    Raises PayloadError for anything but a complete static ELF of this machine.
    """
    path = FOLDER / f"{name}.elf"
    try:
        if not path.exists():
            path = Path(name)
            if not path.exists():
                known = ", ".join(names()) or "none is built"
                raise PayloadError(f"{name} is neither a file nor one of the payloads here ({known})")
        if not path.is_file():
            raise PayloadError(f"{path} is not a regular file")
        with path.open("rb") as file:
            return _parse(path, file)
    except OSError as error:
        raise PayloadError(f"{name} cannot be read: {error.strerror}") from error
    except (ElfError, ValueError, KeyError, IndexError, TypeError, AttributeError, UnicodeError) as error:
        # A damaged file is noticed in many ways.
        raise PayloadError(f"{path} is not a complete ELF file: {type(error).__name__}") from error


def _parse(path: Path, file: BinaryIO) -> Payload:
    elf = read(file)
    machine = os.uname().machine
    if elf.machine != _MACHINES.get(machine) or elf.bits != 64:
        raise PayloadError(f"{path} is an ELF for {elf.machine} ({elf.bits} bits), this machine is {machine}")
    if elf.type != "ET_EXEC":
        raise PayloadError(f"{path} is not position-fixed ({elf.type}): link it with -static -no-pie")
    segments = tuple((one.address, _data(path, file, one)) for one in elf.segments if one.memory_size)
    if not segments:
        raise PayloadError(f"{path} has nothing to load: it has no PT_LOAD segment")
    end = max(one.address + one.memory_size for one in elf.segments)
    return Payload(path.stem, elf.entry, segments, elf.symbols, end, _start_of_data(elf.segments))


def _start_of_data(segments: tuple[Segment, ...]) -> int | None:
    written = min((one.address for one in segments if one.writable), default=None)
    if written is None or written % _PAGE:
        return None
    return written if all(one.writable or one.address + one.memory_size <= written for one in segments) else None


def _data(path: Path, file: BinaryIO, segment: Segment) -> bytes:
    if segment.memory_size > _LARGEST:
        raise PayloadError(f"{path} has a segment of {segment.memory_size} bytes: payloads are at most {_LARGEST}")
    if segment.file_size > segment.memory_size:
        raise PayloadError(f"{path} is damaged: a segment has more bytes in the file than in memory")
    file.seek(segment.offset)
    data = file.read(segment.file_size)
    if len(data) != segment.file_size:
        raise PayloadError(f"{path} is truncated: a segment has {len(data)} of {segment.file_size} bytes")
    return data
