# SPDX-License-Identifier: Apache-2.0
"""The host a run is about: its kernel and the architecture's facts, as reports show them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from vmm.arch import ARCHITECTURE, module
from vmm.system import Kvm

__all__ = ["Host", "measure", "version"]


def version(release: str) -> tuple[int, int, int]:
    """Return the numbers of a kernel release: ``6.12.107-cloud`` is (6, 12, 107)."""
    numbers = [int(number) for number in re.findall(r"\d+", release.split("-")[0])[:3]]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major, minor, patch


@dataclass(frozen=True, slots=True)
class Host:
    """``facts`` is the architecture's Facts (vmm.x86.facts, vmm.arm64.facts)."""

    kernel: str
    architecture: str
    facts: Any

    @property
    def backend(self) -> str:
        """The KVM module in use: kvm_intel, kvm_amd, kvm_pvm, ..."""
        return str(self.facts.backend)

    @property
    def version(self) -> tuple[int, int, int]:
        """The running kernel's version numbers."""
        return version(self.kernel)

    def to_json(self) -> dict[str, Any]:
        """Return the first line of a JSON report."""
        return {"kernel": self.kernel, "architecture": self.architecture, **self.facts.to_json()}

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for people."""
        return [("kernel", f"{self.kernel} ({self.architecture})"), *self.facts.lines()]


def measure(kvm: Kvm) -> Host:
    """Measure the host; no vCPU is created."""
    return Host(os.uname().release, ARCHITECTURE, module("facts").measure(kvm))
