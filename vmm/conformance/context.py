# SPDX-License-Identifier: Apache-2.0
"""What a clause is given: an open KVM, the host's facts, options, and somebody who cleans up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from vmm.conformance.expect import Skipped
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine
from vmm.probe.host import Host

__all__ = ["Context", "Options"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """What the person who runs the clauses chose.

    ``time_scale`` multiplies every time limit, for slow machines. ``exhaustive`` runs all of what is
    otherwise sampled. ``seed`` makes samples repeatable.
    """

    exhaustive: bool = False
    dangerous: bool = False
    time_scale: float = 1.0
    seed: int = 1


class Context:
    """One clause's run. Everything it makes through ``own`` is closed when the clause has ended."""

    def __init__(self, host: Host, options: Options, stack: ExitStack) -> None:
        self.host = host
        self.options = options
        self.notes: list[str] = []
        self.drifts: list[str] = []
        self.coverage: dict[str, Any] = {}
        self._stack = stack
        self._kvm: Kvm | None = None

    def own(self, resource: AbstractContextManager[T]) -> T:
        """Enter a context manager that is left when the clause ends."""
        return self._stack.enter_context(resource)

    @property
    def kvm(self) -> Kvm:
        """/dev/kvm, opened at first use."""
        if self._kvm is None:
            self._kvm = self.own(Kvm())
        return self._kvm

    def vm(self) -> VirtualMachine:
        """A new VM."""
        return self.own(self.kvm.create_vm())

    def vcpu(self) -> Vcpu:
        """A new vCPU in a VM of its own."""
        return self.vm().create_vcpu()

    @property
    def timeout(self) -> float:
        """The time limit for one run of a guest, in seconds."""
        return 5.0 * self.options.time_scale

    def note(self, text: str) -> None:
        """Add a remark to the result."""
        self.notes.append(text)

    def drift(self, text: str) -> None:
        """Add a refusal with another errno than the documented one to the result."""
        self.drifts.append(text)

    def cover(self, judged: int, untold: Mapping[str, Sequence[str]]) -> None:
        """Add how many pairs of field and property were judged, and which were not, by reason."""
        self.coverage["judged"] = self.coverage.get("judged", 0) + judged
        kept = self.coverage.setdefault("untold", {})
        for reason, fields in untold.items():
            kept.setdefault(reason, []).extend(fields)

    def skip(self, reason: str) -> None:
        """End the clause as not applicable; the reason has to carry the measured value."""
        raise Skipped(reason)
