# SPDX-License-Identifier: Apache-2.0
"""Clauses made of tables: one for each table and property, called ``world.TABLE-PROPERTY``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from vmm.conformance.context import Context
from vmm.conformance.needs import Need
from vmm.conformance.registry import clause
from vmm.conformance.world import properties
from vmm.conformance.world.ground import Ground
from vmm.state.world.table import Table

__all__ = ["EVERY", "Property", "generate", "generate_one", "tables"]

Property = Callable[[Ground, Table, Context], None]
# What every table is judged by, with its statement.
EVERY: Mapping[str, tuple[Property, str]] = {
    "fresh": (properties.fresh, "Every field of {} in a fresh vCPU has the value that reset gives it"),
    "kept": (properties.kept, "Every legal value of every field of {} is taken and read back"),
    "refused": (properties.refused, "What a field of {} may not be is refused, and then no field has changed"),
    "moved": (properties.moved, "Every field of {} comes over to a new vCPU with a value that is not that of reset"),
    "reset": (properties.reset, "Another reset gives every field of {} its first value, or leaves what may stay"),
}

_tables: dict[str, Table] = {}


def tables() -> Iterable[Table]:
    """Return the tables that clauses were made of."""
    return _tables.values()


def generate(
    module: str,
    ground: Ground,
    table: Table,
    source: str,
    chosen: Iterable[str],
    needs: Iterable[Need] = (),
    timeout: float = 10,
) -> None:
    """Register the clauses of a table for the module that calls this (``__name__``).

    ``source`` says where its structure or list is described.
    """
    for name in chosen:
        function, statement = EVERY[name]
        own = (*needs, *ground.moves) if name == "moved" else needs
        generate_one(module, ground, table, source, (name, function, statement), own, timeout)


def generate_one(
    module: str,
    ground: Ground,
    table: Table,
    source: str,
    what: tuple[str, Property, str],
    needs: Iterable[Need] = (),
    timeout: float = 10,
) -> None:
    """Register one clause of a table: ``what`` is its property's name, function and statement."""
    name, function, statement = what
    _tables[table.title] = table
    clause(f"world.{table.title}-{name}", arch=ground.arch, needs=needs, timeout=timeout)(
        _clause(module, function, ground, table, f"{statement.format(table.label)}.\n\nSource: {source}")
    )


def _clause(module: str, function: Property, ground: Ground, table: Table, text: str) -> Callable[[Context], None]:
    def judge(context: Context) -> None:
        function(ground, table, context)

    judge.__doc__, judge.__module__ = text, module
    return judge
