# SPDX-License-Identifier: Apache-2.0
"""The Python side of the comparison of saving and restoring: a program of its own, because of what it imports.

    python -m vmm.bench.state_subject FOLDER

It writes the list of MSRs for the C program into FOLDER, then an empty line, and answers ``state N``.
"""

from __future__ import annotations

import struct
import sys
from functools import partial
from pathlib import Path
from time import perf_counter_ns

from vmm.bench.answer import answer, serve
from vmm.bench.subject import prepared
from vmm.guest.architecture import guest_type
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.state.vcpu import capture_vcpu, restore_vcpu

__all__ = ["main"]


def _states(vcpu: Vcpu, count: int) -> int:
    """Save a vCPU's whole state and write it back to the same vCPU."""
    begin = perf_counter_ns()
    for _ in range(count):
        restore_vcpu(vcpu, capture_vcpu(vcpu))
    return perf_counter_ns() - begin


def _serve(folder: Path) -> None:
    with Kvm() as kvm, prepared(kvm, guest_type()) as guest:
        guest.resume(ticks=1)  # as in the C program: a vCPU that has run takes its own CPUID with less ado
        guest.complete()
        msrs = capture_vcpu(guest.vcpu).parts.get("MSRS", {})
        assert not isinstance(msrs, bytes)
        (folder / "msrs").write_bytes(struct.pack(f"={len(msrs)}I", *msrs))
        answer((0,), {"state": partial(_states, guest.vcpu)})


def main() -> int:
    """Serve whoever started this program until its end of the pipe is closed."""
    return serve(_serve)


if __name__ == "__main__":
    sys.exit(main())
