# SPDX-License-Identifier: Apache-2.0
"""``vmm inspect``: what a file with a state holds, on a host of any architecture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import click

from vmm.state.errors import StreamError, printable
from vmm.state.explain import explain
from vmm.state.parts import check_known
from vmm.state.stream.container import FORMAT, Limits, Reader, Section
from vmm.state.stream.decode import Header, StatePart, read_config, read_header, read_part
from vmm.state.stream.encode import CONFIG
from vmm.state.stream.memory import MEMORY, MemoryDecoder
from vmm.state.validate import check_readable
from vmm.state.value import PAGE, Part

__all__ = ["command", "describe", "lines"]

# Pages are looked at one section at a time, so a guest of any size can be inspected.
_LIMITS = Limits(memory=1 << 52)
_WIDTH = 96


class _Parts:
    """The parts of one vCPU or VM as they come, and what they hold."""

    def __init__(self, arch: str) -> None:
        self._arch = arch
        self._known: dict[str, Part] = {}

    def fields(self, name: str, part: StatePart) -> Mapping[str, str | int]:
        """What the writer said a part holds; where it said nothing, what this host makes of it."""
        try:
            if check_known(self._arch, name, part.part, name):
                self._known[name] = part.part
                check_readable(self._arch, name, name, self._known)
        except StreamError:  # bytes from a stranger; the raw ones are still shown
            self._known.pop(name, None)
        if part.fields or name not in self._known:
            return part.fields
        return explain(self._arch, name, self._known)


def _raw(part: Part) -> Any:
    if isinstance(part, bytes):
        return part.hex()
    return {f"{number:#x}": value.hex() for number, value in part.items()}


class _Describer:
    """Describes the parts in a stream's sections, those that are wanted."""

    def __init__(self, header: Header, wanted: str | None) -> None:
        self._header = header
        self._wanted = wanted
        self._machine = _Parts(header.arch)
        self._vcpus = [_Parts(header.arch) for _ in header.vcpus]

    def section(self, section: Section) -> Iterable[dict[str, Any]]:
        """Yield a description of each part that a section holds."""
        if section.kind == CONFIG:
            for name, part in read_config(section, self._header.machine).items():
                yield from self._part(self._machine, name, part, {}, self._wanted in (None, CONFIG, name))
        elif section.index < len(self._vcpus):
            identifier, names = self._header.vcpus[section.index]
            if section.kind in names:
                place, wanted = {"vcpu": identifier}, self._wanted in (None, section.kind)
                yield from self._part(self._vcpus[section.index], section.kind, read_part(section), place, wanted)

    def _part(
        self, parts: _Parts, name: str, part: StatePart, place: dict[str, int], wanted: bool
    ) -> Iterable[dict[str, Any]]:
        fields = parts.fields(name, part)  # also of those not wanted: CPUID says how to read XSAVE
        if wanted:
            raw = {} if self._wanted is None else {"raw": _raw(part.part)}
            yield {"part": name, **place, "fields": dict(fields), **raw}


def _describe_header(reader: Reader, header: Header) -> dict[str, Any]:
    payload = header.payload
    return {
        "format": FORMAT,
        "architecture": header.arch,
        "about": dict(header.about),
        "payload": {"name": payload.name, "sha256": payload.digest.hex()} if payload else None,
        "memory": [{"gpa": gpa, "size": size} for gpa, size in header.memory],
        "machine": list(header.machine),
        "vcpus": [{"identifier": identifier, "parts": list(parts)} for identifier, parts in header.vcpus],
    }


def _describe_section(section: Section, pages: MemoryDecoder) -> dict[str, Any]:
    found = {
        "kind": section.kind,
        "index": section.index,
        "offset": section.offset,
        "size": len(section.body),
        "critical": section.critical,
        "sha256": section.digest.hex(),
    }
    if section.kind == MEMORY:
        gpa, data = pages.open(section)
        found |= {"gpa": gpa, "pages": len(data) // PAGE}
    return found


def describe(file: BinaryIO, wanted: str | None = None) -> dict[str, Any]:
    """Return what a stream holds as JSON has it; ``wanted`` names one section. StreamError if it is damaged."""
    reader = Reader(file, _LIMITS)
    header = read_header(reader, _LIMITS)
    decoder, describer = MemoryDecoder(), _Describer(header, wanted)
    sections: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for section in reader.sections():
        if section.critical and section.kind not in header.kinds:
            raise StreamError(section.where, "it is critical, and the header does not announce this kind of section")
        parts += describer.section(section)
        if wanted in (None, section.kind):
            sections.append(_describe_section(section, decoder))
    if wanted is not None and not sections and not parts:
        names = ", ".join(dict.fromkeys([CONFIG, *header.machine, *sorted(header.kinds - {CONFIG})]))
        raise click.UsageError(f"it has no section {wanted!r}, only {names}")
    digest = reader.digest.hex() if reader.digest else None
    return {**_describe_header(reader, header), "sections": sections, "parts": parts, "sha256": digest}


# --- for people -----------------------------------------------------------------------------------


def _shown(value: object, full: bool) -> str:
    text = printable(str(value))
    return text if full or len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _section_lines(sections: Iterable[dict[str, Any]]) -> Iterable[str]:
    """One line a section, and one for all the memory of a region."""
    memory: dict[int, list[dict[str, Any]]] = {}
    yield f"{'section':16} {'index':>5} {'offset':>10} {'bytes':>10}  sha256"
    for section in sections:
        if section["kind"] == MEMORY:
            memory.setdefault(section["index"], []).append(section)
            continue
        note = "" if section["critical"] else "  (ancillary)"
        place = f"{section['index']:>5} {section['offset']:>10} {section['size']:>10}"
        yield f"{section['kind']:16} {place}  {section['sha256'][:16]}{note}"
    for index, pieces in memory.items():
        size, pages = sum(piece["size"] for piece in pieces), sum(piece["pages"] for piece in pieces)
        yield f"{MEMORY:16} {index:>5} {pieces[0]['offset']:>10} {size:>10}  {pages} pages in {len(pieces)} sections"


def lines(found: dict[str, Any], full: bool) -> Iterable[str]:
    """Yield the description for people; ``full`` with all bytes."""
    yield f"format {found['format']}, {found['architecture']}, sha256 {found['sha256']}"
    for name, value in found["about"].items():
        yield f"{_shown(name, full):12} {_shown(value, full)}"
    if found["payload"]:
        yield f"{'payload':12} {_shown(found['payload']['name'], full)} {found['payload']['sha256'][:16]}"
    for region in found["memory"]:
        yield f"{'memory':12} {region['size']} bytes at {region['gpa']:#x}"
    yield ""
    yield from _section_lines(found["sections"])
    for part in found["parts"]:
        yield ""
        yield f"vCPU {part['vcpu']} {part['part']}" if "vcpu" in part else f"VM {part['part']}"
        for name, value in part["fields"].items():
            yield f"  {_shown(name, full):24} {_shown(value, full)}"
        if not part["fields"] and not full:
            yield "  (the stream does not say what it holds; --section shows its bytes)"
        if full:
            rows = part["raw"] if isinstance(part["raw"], dict) else {"raw": part["raw"]}
            yield from (f"  {name:24} {value}" for name, value in rows.items())


@click.command("inspect")
@click.argument("file", type=click.File("rb"))
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--section", "wanted", metavar="NAME", help="Only this section, with all its bytes.")
def command(file: BinaryIO, as_json: bool, wanted: str | None) -> int:
    """Show what FILE holds: header, sections with sizes and digests, registers by name. ``-`` is standard input.

    Every digest is checked. Registers are named as the host that wrote the file knew them, so this works on a
    host of any architecture and without /dev/kvm. Exits with 2 if the file is damaged or no state.
    """
    found = describe(file, wanted)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(lines(found, wanted is not None)))
    return 0
