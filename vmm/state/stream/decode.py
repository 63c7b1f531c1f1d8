# SPDX-License-Identifier: Apache-2.0
"""A stream as a state: the header says what has to come, and nothing else may, in no other order.

Nothing here touches /dev/kvm or trusts what it reads; whether the state makes sense is vmm.state.validate's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vmm.state.errors import StreamError
from vmm.state.parts import check_known
from vmm.state.stream.canonical import Allowance, NotCanonical, decode
from vmm.state.stream.container import LIMITS, Limits, Readable, Reader, Section, is_kind
from vmm.state.stream.encode import CONFIG, RESERVED, Explain
from vmm.state.stream.memory import MEMORY, MemoryDecoder, Piece
from vmm.state.stream.staging import Staging
from vmm.state.validate import check_readable
from vmm.state.value import PAGE, Extent, MemoryState, Part, PayloadIdentity, VcpuState, VmState

__all__ = [
    "Fields",
    "Header",
    "StatePart",
    "check_fields",
    "open_state",
    "read_config",
    "read_header",
    "read_part",
    "read_state",
]

Fields = Mapping[str, str | int]
_HEADER = "the header"
_ADDRESS_END = 1 << 64
_LARGEST_ID = 1 << 32  # KVM_CREATE_VCPU takes an unsigned int of it


@dataclass(frozen=True, slots=True)
class Header:
    """What a stream says of itself: ``memory`` has (address, size) of each region, ``vcpus`` (identifier, names
    of the parts) of each vCPU, ``machine`` the names of the VM's parts."""

    arch: str
    about: Mapping[str, str]
    payload: PayloadIdentity | None
    memory: tuple[tuple[int, int], ...]
    machine: tuple[str, ...]
    vcpus: tuple[tuple[int, tuple[str, ...]], ...]

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of sections that follow."""
        return frozenset({CONFIG, MEMORY, *(name for _, parts in self.vcpus for name in parts)})


@dataclass(frozen=True, slots=True)
class StatePart:
    """A part with what the writer said it holds."""

    part: Part
    fields: Fields


def _shaped(where: str, value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise StreamError(where, f"{what} is {type(value).__name__} and not {kind.__name__}")
    return value


def _map(where: str, value: Any, keys: set[str], optional: set[str], what: str) -> dict[str, Any]:
    found = set(_shaped(where, value, dict, what))
    if not keys <= found <= keys | optional:
        wrong = ", ".join(sorted(str(key)[:40] for key in (keys - found) | (found - keys - optional)))
        raise StreamError(where, f"{what} has entries missing or too many: {wrong}")
    return dict(value)


def _decoded(where: str, body: bytes, items: Allowance | None = None) -> Any:
    try:
        return decode(body, items)
    except NotCanonical as error:
        raise StreamError(where, f"its body is {error}") from error


# --- the header -----------------------------------------------------------------------------------


def read_header(reader: Reader, limits: Limits = LIMITS) -> Header:
    """Return what a stream's header says; StreamError if it is malformed or above the limits."""
    value = _map(
        _HEADER, _decoded(_HEADER, reader.header), {"about", "machine", "memory", "vcpus"}, {"payload"}, "the header"
    )
    about = _shaped(_HEADER, value["about"], dict, "about")
    for key, text in about.items():
        _shaped(_HEADER, key, str, "a name in about")
        _shaped(_HEADER, text, str, f"about.{key}")
    return Header(
        reader.arch,
        about,
        _payload(value.get("payload")),
        _regions(value["memory"], limits),
        _names(value["machine"]),
        _vcpus(value["vcpus"], limits),
    )


def _payload(value: Any) -> PayloadIdentity | None:
    if value is None:
        return None
    found = _map(_HEADER, value, {"name", "digest"}, set(), "payload")
    name = _shaped(_HEADER, found["name"], str, "payload.name")
    digest = _shaped(_HEADER, found["digest"], bytes, "payload.digest")
    if len(digest) != 32:
        raise StreamError(_HEADER, f"payload.digest has {len(digest)} bytes and not 32")
    return PayloadIdentity(name, digest)


def _regions(value: Any, limits: Limits) -> tuple[tuple[int, int], ...]:
    regions = []
    for row in _shaped(_HEADER, value, list, "memory"):
        if len(_shaped(_HEADER, row, list, "a memory region")) != 2:
            raise StreamError(_HEADER, "a memory region has an address and a size")
        gpa, size = (_shaped(_HEADER, number, int, "a memory region's number") for number in row)
        if gpa % PAGE or size % PAGE or not size or gpa + size > _ADDRESS_END:
            raise StreamError(_HEADER, f"a memory region of {size:#x} bytes at {gpa:#x} is not in pages")
        regions.append((gpa, size))
    if (total := sum(size for _, size in regions)) > limits.memory:
        raise StreamError(
            _HEADER,
            f"{total} bytes of memory are above the limit of {limits.memory}: raise --memory if you trust the file",
        )
    return tuple(regions)


def _names(value: Any) -> tuple[str, ...]:
    names = tuple(_shaped(_HEADER, name, str, "a part's name") for name in _shaped(_HEADER, value, list, "parts"))
    for name in names:
        if not is_kind(name) or name in RESERVED:
            raise StreamError(_HEADER, f"a part cannot be called {name[:40]!r}")
    if len(set(names)) < len(names):
        raise StreamError(_HEADER, "it names a part twice")
    return names


def _vcpus(value: Any, limits: Limits) -> tuple[tuple[int, tuple[str, ...]], ...]:
    vcpus = []
    for row in _shaped(_HEADER, value, list, "vcpus"):
        if len(_shaped(_HEADER, row, list, "a vCPU")) != 2:
            raise StreamError(_HEADER, "a vCPU has an identifier and parts")
        identifier = _shaped(_HEADER, row[0], int, "a vCPU's identifier")
        if not 0 <= identifier < _LARGEST_ID:
            raise StreamError(_HEADER, f"no vCPU has the identifier {identifier:#x}")
        vcpus.append((identifier, _names(row[1])))
    if len({identifier for identifier, _ in vcpus}) < len(vcpus):
        raise StreamError(_HEADER, "two vCPUs have the same identifier")
    if sum(len(names) for _, names in vcpus) > limits.sections:
        raise StreamError(_HEADER, f"it announces more than {limits.sections} parts")
    return tuple(vcpus)


# --- parts ----------------------------------------------------------------------------------------


def read_part(section: Section) -> StatePart:
    """Return the part that a section holds; StreamError if its body is malformed."""
    return _part(section.where, _decoded(section.where, section.body, section.items))


def read_config(section: Section, names: tuple[str, ...]) -> dict[str, StatePart]:
    """Return the VM's parts, which have to be those in ``names``."""
    where = section.where
    value = _map(where, _decoded(where, section.body, section.items), {"machine"}, set(), CONFIG)
    machine = _map(where, value["machine"], set(names), set(), "machine")
    return {name: _part(f"{where}, {name}", machine[name]) for name in names}


def _part(where: str, value: Any) -> StatePart:
    found = _map(where, value, set(), {"raw", "registers", "fields"}, "a part")
    if ("raw" in found) == ("registers" in found):
        raise StreamError(where, "a part has either raw bytes or registers")
    fields = _fields(where, found["fields"]) if "fields" in found else {}
    if "raw" in found:
        return StatePart(_shaped(where, found["raw"], bytes, "raw"), fields)
    registers = _shaped(where, found["registers"], dict, "registers")
    for number, content in registers.items():
        _shaped(where, number, int, "a register's number")
        _shaped(where, content, bytes, f"register {number:#x}")
    return StatePart(registers, fields)


def _fields(where: str, value: Any) -> Fields:
    fields: dict[str, str | int] = {}
    for row in _shaped(where, value, list, "fields"):
        if len(_shaped(where, row, list, "a field")) != 2:
            raise StreamError(where, "a field has a name and a value")
        name, content = _shaped(where, row[0], str, "a field's name"), row[1]
        if type(content) not in (str, int) or name in fields:
            raise StreamError(where, f"field {name[:40]} is there twice, or is neither text nor a number")
        fields[name] = content
    if not fields:
        raise StreamError(where, "fields that say nothing have no place in it")
    return fields


# --- fields ---------------------------------------------------------------------------------------


def check_fields(arch: str, found: Mapping[str, StatePart], wheres: Mapping[str, str], explain: Explain) -> None:
    """Raise StreamError for a field of a vCPU's or VM's parts that says something else than the raw bytes.

    ``wheres`` are how errors name the parts. Only parts that are known, and of their shape, are explained; a
    field that ``explain`` does not name says nothing.
    """
    parts = {name: part.part for name, part in found.items()}
    known = {name: part for name, part in parts.items() if check_known(arch, name, part, wheres[name])}
    for name in known:
        check_readable(arch, wheres[name], name, known)
    for name in known:
        if found[name].fields:
            _compare(wheres[name], found[name].fields, explain(arch, name, parts))


def _compare(where: str, said: Fields, real: Fields) -> None:
    for name, content in said.items():
        if name in real and real[name] != content:
            shown = f"{str(content)[:60]}, its raw bytes say {str(real[name])[:60]}"
            raise StreamError(where, f"field {name[:40]} says {shown}")


# --- a whole state --------------------------------------------------------------------------------


def read_state(
    file: Readable,
    explain: Explain | None = None,
    limits: Limits = LIMITS,
    *,
    exact: bool = True,
    staging: Staging | None = None,
) -> VmState:
    """Return the state of a whole stream; StreamError if it is anything but that.

    ``explain`` is used for sections with fields, and has to be that of the stream's architecture. ``exact``:
    nothing may follow the stream. ``staging`` is where the guest's memory goes, of which the state has views then.
    """
    state, pieces = open_state(file, explain, limits, exact=exact)
    memory = staging.fill(state.memory, pieces) if staging else _collected(state.memory, pieces)
    return VmState(state.arch, state.vcpus, memory, state.machine, state.payload, state.about)


def open_state(
    file: Readable, explain: Explain | None = None, limits: Limits = LIMITS, *, exact: bool = True
) -> tuple[VmState, Iterator[Piece]]:
    """Return the state of a stream without what its memory holds, and the pieces of that as they come.

    The stream is whole only when all pieces have been taken: until then StreamError may come. They ascend within
    their region, and the regions in the order of the header.
    """
    reader = Reader(file, limits, exact=exact)
    header = read_header(reader, limits)
    sections = _Sections(reader.sections(header.kinds))
    config = sections.take(CONFIG, 0)
    machine = read_config(config, header.machine)
    wheres = {name: f"{config.where}, {name}" for name in machine}
    held = [_checked(header.arch, machine, wheres, explain)]
    for index, (_, names) in enumerate(header.vcpus):
        taken = [sections.take(name, index) for name in names]
        found = {section.kind: read_part(section) for section in taken}
        held.append(_checked(header.arch, found, {section.kind: section.where for section in taken}, explain))
    vcpus = (VcpuState(parts, identifier) for (identifier, _), parts in zip(header.vcpus, held[1:], strict=True))
    regions = tuple(MemoryState(gpa, size) for gpa, size in header.memory)
    state = VmState(header.arch, tuple(vcpus), regions, held[0], header.payload, header.about)
    return state, _pieces(sections, header)


def _checked(
    arch: str, found: Mapping[str, StatePart], wheres: Mapping[str, str], explain: Explain | None
) -> dict[str, Part]:
    if explain is not None:
        check_fields(arch, found, wheres, explain)
    return {name: part.part for name, part in found.items()}


class _Sections:
    """The sections in the one order that a state has."""

    def __init__(self, sections: Iterator[Section]) -> None:
        self._sections = sections

    def take(self, kind: str, index: int) -> Section:
        section = next(self._sections, None)
        if section is None:
            raise StreamError("the end", f"the section {kind} {index} is missing, which the header announces")
        if (section.kind, section.index) != (kind, index):
            raise StreamError(section.where, f"the section {kind} {index} has its place here")
        return section

    def rest(self) -> Iterator[Section]:
        yield from self._sections


def _pieces(sections: _Sections, header: Header) -> Iterator[Piece]:
    decoder = MemoryDecoder()
    index = end = 0
    for section in sections.rest():
        if section.kind != MEMORY or not index <= section.index < len(header.memory):
            raise StreamError(section.where, "it is out of order, twice there, or of no region in the header")
        first, size = header.memory[section.index]
        if section.index > index or not end:
            index, end = section.index, first
        gpa, data = decoder.open(section)
        if gpa < end or gpa + len(data) > first + size:
            raise StreamError(section.where, f"memory at {gpa:#x} overlaps, goes back or leaves its region")
        end = gpa + len(data)
        yield Piece(index, gpa, data)


def _collected(regions: tuple[MemoryState, ...], pieces: Iterator[Piece]) -> tuple[MemoryState, ...]:
    runs: list[list[tuple[int, list[bytes | memoryview]]]] = [[] for _ in regions]
    end = 0
    for index, gpa, data in pieces:
        if runs[index] and gpa == end:
            runs[index][-1][1].append(data)
        else:
            runs[index].append((gpa, [data]))
        end = gpa + len(data)
    return tuple(
        MemoryState(region.gpa, region.size, tuple(Extent(start, b"".join(parts)) for start, parts in runs[index]))
        for index, region in enumerate(regions)
    )
