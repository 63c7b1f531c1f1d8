# SPDX-License-Identifier: Apache-2.0
"""Which mutations there are, and how one is made."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from vmm.arch import ARCHITECTURE
from vmm.kvm.ioctl import Interposer

__all__ = ["Mutation", "all_mutations", "lies", "make", "modules", "mutation", "register", "repeated"]

Factory = Callable[[], Interposer]
_ARCHITECTURES = ("x86", "arm64")


@dataclass(frozen=True, slots=True)
class Mutation:
    """One lie: which clause has to notice it, what it is called, and who makes the interposer."""

    clause: str
    name: str
    factory: Factory


# By architecture, clause and name: clauses of two architectures may have one id.
_mutations: dict[tuple[str, str, str], Mutation] = {}


def mutation(*clauses: str) -> Callable[[Factory], Factory]:
    """Register a factory as a mutation of each clause; its function's name says what the kernel does wrong."""

    def add(factory: Factory) -> Factory:
        register(clauses, factory.__name__, factory)
        return factory

    return add


def lies(clause: str, /, *more: str, **factories: Factory) -> None:
    """Register mutations of each clause that are one expression: ``what_the_kernel_does_wrong=lambda: interposer``.

    The lambda makes an interposer of its own for each use, which may keep state. An imported function is refused:
    a mutation belongs to the architecture whose module its factory stands in.
    """
    for name, factory in factories.items():
        if factory.__name__ != "<lambda>":
            raise ValueError(f"{name} is made by a function: write it as lambda: {factory.__name__}()")
        register((clause, *more), name, factory)


def register(clauses: tuple[str, ...], name: str, factory: Factory) -> None:
    """Register a factory as a mutation of each clause; it belongs to the architecture that its module names."""
    arch = _architecture(factory.__module__)
    for clause in clauses:
        if (arch, clause, name) in _mutations:
            raise ValueError(f"{clause} has two mutations called {name}")
        _mutations[arch, clause, name] = Mutation(clause, name, factory)


def _architecture(module: str) -> str:
    """Return the architecture whose module of lies that is, this one for any other."""
    return next((arch for arch in _ARCHITECTURES if module.startswith(f"tests.mutations.{arch}.")), ARCHITECTURE)


def modules(arch: str = ARCHITECTURE) -> list[str]:
    """Return the names of the modules that hold an architecture's mutations: one a module of its clauses."""
    package = importlib.import_module(f"tests.mutations.{arch}")
    return [f"{package.__name__}.{found.name}" for found in pkgutil.iter_modules(package.__path__)]


def all_mutations(arch: str = ARCHITECTURE) -> list[Mutation]:
    """Import every module for an architecture and return its mutations."""
    chosen = modules(arch)
    for module in chosen:
        importlib.import_module(module)
    return [found for found in _mutations.values() if found.factory.__module__ in chosen]


def repeated(topic: str, *clauses: str) -> list[Mutation]:
    """Return the mutations of these clauses in x86's module of a topic, which another architecture makes its own."""
    module = importlib.import_module(f"tests.mutations.x86.{topic}").__name__
    found = [one for one in _mutations.values() if one.factory.__module__ == module and one.clause in clauses]
    if missing := set(clauses) - {one.clause for one in found}:
        raise LookupError(f"{module} has no mutations of {', '.join(sorted(missing))}")
    return found


def make(clause: str, name: str) -> Interposer:
    """Return a fresh interposer of one mutation (called inside the clause's child)."""
    all_mutations()
    return _mutations[ARCHITECTURE, clause, name].factory()
