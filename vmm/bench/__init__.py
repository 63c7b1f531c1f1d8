# SPDX-License-Identifier: Apache-2.0
"""``vmm bench``: how much slower than plain C this VMM is, and whether that is within its limits.

Two programs drive the same guest and answer to the same commands: ``baseline.c``, compiled on the spot,
and ``vmm.bench.subject``, in a process of its own that has loaded no more than it needs. In a round the one does N
operations, then the other, the order alternating, so that whatever else the machine does meets both; each
tries three times and its fastest counts, because a try that had to wait for a CPU says nothing. Only the
medians over the rounds are compared, never one side alone. What is measured:

* ``shim exit loop``: a guest exit that Vcpu.run absorbs; C handles it after a bare KVM_RUN.
* ``exit handled in Python``: a guest exit that comes back as a value of vmm.kvm.exits.
* ``ioctl through the door``: KVM_GET_API_VERSION by vmm.kvm.ioctl.ioctl_value, tracing off.
* ``start to first exit``: open /dev/kvm, API version, VM, memory, vCPU, CPUID, tables, payload, registers and
  the run to the first exit, in a warm process; closing is not counted.
* ``vCPU state saved and restored``: vmm.state.capture of a whole vCPU, and all of it back to the same one; C does
  the same calls into structures that stay where they are.
* ``guest memory read``: GuestMemory.read of 1 MiB that no cache holds; C does a memcpy.
* ``guest memory read, flushed``: the same of non-coherent memory, so through CLFLUSHOPT; C flushes and copies.
* ``what the flush costs``: the flushed read against C's plain memcpy. It has no limit.
* ``what it costs just written``: both of memory that was written right before, so that lines have to be written
  back. No limit either.

``vmm bench --migration`` compares two operations of vmm.bench.migration_subject with plain sockets, in at most
vmm.bench.migration.ROUNDS rounds:

* ``memory of 1 GiB migrated over loopback``: all memory of a running guest until the receiver has it, digested on
  both sides; a plain socket copies the same bytes into the same kind of memory.
* ``idle guest standing still``: from the moment it is paused until its source knows that it runs at the receiver;
  plain sockets exchange as many bytes.

``vmm bench --json`` prints one object: ``within`` (all of them are) and ``results``, a list of objects with

* ``name``; ``unit`` of all times, ``us`` an operation; ``rounds``, how many there were
* ``ours`` and ``baseline``: the medians; ``ours_quartiles`` and ``baseline_quartiles``: [first, third]
* ``ratio``: ours / baseline; ``difference``: ours - baseline
* ``limit`` and ``limited``, which of ``ratio`` and ``difference`` must not exceed it, both null where a cost is
  only shown; ``within``: it does not
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.bench.result import BenchResult, BenchUnavailable

__all__ = ["ROUNDS", "SECONDS", "BenchResult", "BenchUnavailable", "run"]

ROUNDS = 300
SECONDS = 8.0


def run(
    rounds: int = ROUNDS, seconds: float = SECONDS, progress: Callable[[int, int], None] | None = None
) -> list[BenchResult]:
    """Compare every operation and return the results, in the order of vmm.bench.compare.

    ``rounds`` (2 or more) are cut short when ``seconds`` have passed; ``progress`` is called with the rounds
    done and wanted, of all operations and then of those on memory. Raises KvmUnavailable, and BenchUnavailable
    where there is nothing to compare with.
    """
    from vmm.bench.compare import compare_all  # not above: the subject loads this module too

    return compare_all(rounds, seconds, progress)
