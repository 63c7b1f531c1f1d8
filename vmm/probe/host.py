# SPDX-License-Identifier: Apache-2.0
"""The host a run is about: its kernel and the architecture's facts, as reports show them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from vmm.arch import ARCHITECTURE, module
from vmm.kvm.system import Kvm
from vmm.probe import process
from vmm.probe.process import UNMEASURED, Process

__all__ = ["Facts", "Host", "Measures", "measure", "upstream", "version"]

_SIGNATURE = Path("/proc/version_signature")


def version(release: str) -> tuple[int, int, int]:
    """Return the numbers of a kernel release: ``6.12.107-cloud`` is (6, 12, 107)."""
    numbers = [int(number) for number in re.findall(r"\d+", release.split("-")[0])[:3]]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major, minor, patch


def upstream(release: str, build: str, signature: str = "") -> str:
    """Return the kernel.org release that a distribution's kernel is made from; ``release`` where nothing says more.

    Debian's ``release`` (uname -r) stays at 6.1.0-50-amd64 while its ``build`` (uname -v) has Debian 6.1.176-1;
    Ubuntu's ``signature`` (/proc/version_signature) ends with it.
    """
    if found := re.search(r"\bDebian (\d+\.\d+(?:\.\d+)?)", build):
        return found[1]
    if found := re.search(r"^Ubuntu \S+ (\d+\.\d+\.\d+)$", signature.strip()):
        return found[1]
    return release


@dataclass(frozen=True, slots=True)
class Host:
    """``kernel`` is uname's release, ``upstream`` the kernel.org release behind it (see :func:`upstream`).

    ``facts`` is the architecture's Facts (vmm.probe.x86.facts, vmm.probe.arm64.facts), ``process`` what the process
    may do.
    """

    kernel: str
    architecture: str
    facts: Any
    process: Process = UNMEASURED
    upstream: str = ""

    @property
    def backend(self) -> str:
        """The KVM module in use: kvm_intel, kvm_amd, kvm_pvm, ..."""
        return str(self.facts.backend)

    @property
    def version(self) -> tuple[int, int, int]:
        """The numbers of the kernel.org release that runs."""
        return version(self.upstream or self.kernel)

    def to_json(self) -> dict[str, Any]:
        """Return the first line of a JSON report."""
        about = {"kernel": self.kernel, "upstream": self.upstream, "architecture": self.architecture}
        return {**about, "process": self.process.to_json(), **self.facts.to_json()}

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for people."""
        made_from = f", made from Linux {self.upstream}" if self.upstream not in ("", self.kernel) else ""
        kernel = ("kernel", f"{self.kernel} ({self.architecture}{made_from})")
        return [kernel, *self.process.lines(), *self.facts.lines()]


class Facts(Protocol):
    """What every architecture's facts can say; clauses and needs use those of their own."""

    @property
    def capabilities(self) -> Mapping[str, int]:
        """What KVM_CHECK_EXTENSION says, by the capabilities' names."""

    @property
    def backend(self) -> str:
        """The KVM module in use."""

    def to_json(self) -> dict[str, Any]:
        """Return them for a report."""

    def lines(self) -> list[tuple[str, str]]:
        """Return them for people."""


class Measures(Protocol):
    """A module ``vmm.probe.ARCHITECTURE.facts``."""

    def measure(self, kvm: Kvm) -> Facts: ...


def measure(kvm: Kvm) -> Host:
    """Measure the host; no vCPU is created."""
    system, signature = os.uname(), ""
    with suppress(OSError):
        signature = _SIGNATURE.read_text()
    facts = cast(Measures, module("facts", "probe")).measure(kvm)
    found = upstream(system.release, system.version, signature)
    return Host(system.release, ARCHITECTURE, facts, process.measure(), found)
