# SPDX-License-Identifier: Apache-2.0
"""Preconditions of clauses: what has to be there, and what was measured instead."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from vmm.probe.host import Host, version

__all__ = ["CPUS", "Need", "capability", "kernel", "unmet"]


@dataclass(frozen=True, slots=True)
class Need:
    """``measure(host)`` returns whether the need is met and the measured value as a phrase."""

    name: str
    measure: Callable[[Host], tuple[bool, str]]

    def __str__(self) -> str:
        return self.name


def capability(name: str) -> Need:
    """KVM_CHECK_EXTENSION of ``name`` is not 0."""

    def measure(host: Host) -> tuple[bool, str]:
        value = host.facts.capabilities.get(name)
        if value is None:
            raise LookupError(f"{name} is not measured: add it to vmm/probe/{host.architecture}/facts.py")
        return value > 0, f"{name} is {value}"

    return Need(name, measure)


def kernel(release: str) -> Need:
    """The running kernel is ``release`` or later."""

    def measure(host: Host) -> tuple[bool, str]:
        return host.version >= version(release), f"this kernel is {host.kernel}"

    return Need(f"Linux {release}", measure)


def _several_cpus(host: Host) -> tuple[bool, str]:
    count = len(os.sched_getaffinity(0))
    return count > 1, f"this process may use {count} CPU{'s' * (count > 1)}"


CPUS = Need("two CPUs", _several_cpus)


def unmet(needs: tuple[Need, ...], host: Host) -> str | None:
    """Return the reason to skip: the first need that is not met with its measured value, or None."""
    for need in needs:
        met, measured = need.measure(host)
        if not met:
            return f"needs {need.name}: {measured}"
    return None
