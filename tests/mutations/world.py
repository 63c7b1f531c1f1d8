# SPDX-License-Identifier: Apache-2.0
"""Lies about generated clauses, made of the same tables: a field that a call loses, shows otherwise or takes.

A clause has a lie for one field of each row that it judges. That every field's loss is noticed, and named, is what
tests/conformance/test_world.py looks at.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from tests.mutations.lies import Proceed, accept, called
from tests.mutations.registry import Factory, register
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.state.piece import OneRegs, RegisterSet
from vmm.state.value import Packed, Part
from vmm.state.world.fields import StructCodec
from vmm.state.world.row import After, Row, Untold
from vmm.state.world.table import Table

__all__ = [
    "representatives",
    "struct_fields",
    "way_lies",
    "way_shows",
    "world_lies",
    "world_loses",
    "world_shows",
    "world_spoils",
]

_ROW = Packed.ROW


class _Buffer:
    """What a call's argument holds as the part of a piece."""

    def __init__(self, table: Table, call: Call) -> None:
        self._table, self._call = table, call

    @property
    def part(self) -> Part:
        argument = self._call.argument
        if isinstance(self._table.piece, OneRegs):
            return {int(argument.id): bytes(_register(argument))}
        if isinstance(self._table.piece, RegisterSet):
            rows = bytes(ffi.buffer(argument.entries, argument.nmsrs * _ROW.size))
            return {index: value.to_bytes(8, "little") for index, _, value in _ROW.iter_unpack(rows)}
        return bytes(self._bytes)

    @property
    def _bytes(self) -> Any:
        """The bytes of a part that is no set of registers."""
        argument = self._call.argument
        if self._table.piece.name == "CPUID":
            return ffi.buffer(argument.entries, argument.nent * ffi.sizeof("struct kvm_cpuid_entry2"))
        return ffi.buffer(argument)

    def change(self, field: str, change: Callable[[int], int]) -> bool:
        """Change a field where it stands; False if this call is not about it."""
        fields = self._table.codec.split(self.part)
        if field not in fields:
            return False
        self.put(self._table.codec.join(self.part, {field: change(fields[field])}))
        return True

    def put(self, part: Part) -> None:
        argument = self._call.argument
        if isinstance(part, bytes):
            self._bytes[:] = part
        elif isinstance(self._table.piece, OneRegs):
            _register(argument)[:] = part[int(argument.id)]
        else:
            for entry in argument.entries[0 : argument.nmsrs]:
                if entry.index in part:
                    entry.data = int.from_bytes(part[entry.index], "little")


def _register(argument: Any) -> Any:
    return ffi.buffer(ffi.cast("uint8_t *", argument.addr), 1 << (argument.id >> 52 & 0xF))


def world_shows(table: Table, field: str) -> Interposer:
    """The getter shows another value of a field."""

    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if call.name == table.piece.get and result >= 0:
            _Buffer(table, call).change(field, lambda value: value ^ 4)
        return result

    return interposer


def way_shows(tables: Iterable[Table], but: Iterable[str] = ()) -> Interposer:
    """Their getters show another value of every field, except those that ``but`` names: ``REGS.rip``."""
    spared, getters = set(but), {table.piece.get: table for table in tables}

    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        table = getters.get(call.name)
        if table is not None and result >= 0:
            buffer = _Buffer(table, call)
            fields = table.codec.split(buffer.part)
            changed = [field for field in fields if f"{table.piece.name}.{field}" not in spared]
            buffer.put(table.codec.join(buffer.part, {field: fields[field] ^ 4 for field in changed}))
        return result

    return interposer


def world_loses(table: Table, field: str) -> Interposer:
    """The setter leaves a field as it is, where that is another value than it is given."""

    def interposer(call: Call, proceed: Proceed) -> int:
        if call.name != table.piece.set:
            return proceed()
        buffer = _Buffer(table, call)
        given = table.codec.split(buffer.part).get(field)
        if given is None:
            return proceed()
        if isinstance(table.piece, OneRegs):
            return 0
        buffer.change(field, lambda _: _now(table, call, field))
        try:
            return proceed()
        finally:
            buffer.change(field, lambda _: given)

    return interposer


def _now(table: Table, call: Call, field: str) -> int:
    """Return what the kernel has of a field, asked behind the clause's back."""
    if isinstance(table.piece, RegisterSet):
        (index,) = (at for at in _Buffer(table, call).part if table.piece.register_name(at) == field)
        argument = ffi.new("struct kvm_msrs *", {"nmsrs": 1, "entries": [(index, 0, 0)]})
    else:
        argument = ffi.new(ffi.typeof(call.argument)) if ffi.typeof(call.argument).kind == "pointer" else None
        argument = ffi.new("uint8_t[]", len(ffi.buffer(call.argument))) if argument is None else argument
    lib.vmm_ioctl(call.fd, getattr(lib, table.piece.get), argument)
    return table.codec.split(_Buffer(table, Call("ioctl", call.fd, 0, argument)).part)[field]


def struct_fields(table: Table) -> list[str]:
    """Return the names of all numbers of a piece that is one structure."""
    assert isinstance(table.codec, StructCodec)
    return [name for name, _, _ in table.codec.leaves]


def representatives(table: Table, fields: Iterable[str], wanted: Callable[[Row], bool]) -> Iterator[str]:
    """Yield the first of these fields that each row is about, of the rows that are wanted."""
    seen: set[int] = set()
    for field in fields:
        row = table.row(field)
        if row is not None and id(row) not in seen and wanted(row):
            seen.add(id(row))
            yield field


def _told(row: Row) -> bool:
    return row.varies is not None or (row.fresh is not None and not isinstance(row.fresh, Untold))


def _changeable(row: Row) -> bool:
    if row.varies and not row.alone:
        return True
    if row.values is None or isinstance(row.values, Untold) or row.alone:
        return False
    return len({row.values.value("", round) for round in range(row.values.rounds)}) > 1


def world_lies(
    module: str, table: Table, fields: Iterable[str], properties: Iterable[str], title: str = "", reset: str = ""
) -> None:
    """Register the lies about a table's clauses, for the module that calls this (``__name__``).

    ``fields`` are the fields that a vCPU may have: those that it does not have make a lie unusable. ``title`` is that
    of the table with which this one is joined, ``reset`` the call by which a vCPU begins anew.
    """
    names = list(fields)
    for name in properties:
        clause = f"world.{title or table.title}-{name}"
        if name == "fresh":
            for field in representatives(table, names, _told):
                _add(module, clause, f"{_identifier(field)}_is_shown_otherwise", partial(world_shows, table, field))
        elif name in ("kept", "moved"):
            for field in representatives(table, names, _changeable):
                _add(module, clause, f"{_identifier(field)}_is_lost", partial(world_loses, table, field))
        elif name == "refused":
            if not title:
                _add(module, clause, "nothing_is_refused", lambda: accept(table.piece.set))
            for field in representatives(table, names, lambda row: bool(row.refused)):
                _add(module, clause, f"a_refusal_changes_{_identifier(field)}", partial(_leaks, table, field))

        elif name == "reset":
            for field in representatives(table, names, lambda row: row.init in (After.FRESH, After.KEPT)):
                another = partial(world_spoils, table, field, reset, 2)
                _add(module, clause, f"{_identifier(field)}_is_another_after_a_reset", another)


def world_spoils(table: Table, field: str, name: str, times: int = 1) -> Interposer:
    """After so many calls of a name on one file the getter shows another value of a field there."""
    made: dict[int, int] = {}

    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if called(call) == name:
            made[call.fd] = made.get(call.fd, 0) + 1
        elif made.get(call.fd, 0) >= times and call.name == table.piece.get and result >= 0:
            _Buffer(table, call).change(field, lambda value: value ^ 4)
        return result

    return interposer


def way_lies(
    module: str, clause: str, behind: Callable[[Interposer], Interposer], fields: Mapping[Table, str]
) -> None:
    """Register that a getter shows another value of its field once the way is gone that a clause is about.

    ``behind`` has a lie begin there; ``fields`` has one of each piece.
    """
    for table, field in fields.items():
        name = f"{_identifier(f'{table.piece.name.lower()} {field}')}_is_lost"
        _add(module, clause, name, partial(_shows_behind, behind, table, field))


def _shows_behind(behind: Callable[[Interposer], Interposer], table: Table, field: str) -> Interposer:
    return behind(world_shows(table, field))


def _leaks(table: Table, field: str) -> Interposer:
    """Once a call was refused, the getter shows another value of a field, of that vCPU."""
    refused: set[int] = set()

    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if call.name == table.piece.set and result < 0:
            refused.add(call.fd)
        elif call.fd in refused and call.name == table.piece.get and result >= 0:
            _Buffer(table, call).change(field, lambda value: value ^ 4)
        return result

    return interposer


def _identifier(field: str) -> str:
    plain = re.sub(r"\W+", "_", field).strip("_")
    return plain if plain.isidentifier() else f"field_{plain or zlib.crc32(field.encode())}"


def _add(module: str, clause: str, name: str, make: Factory) -> None:
    def factory() -> Interposer:
        return make()

    factory.__module__ = module
    register((clause,), name, factory)
