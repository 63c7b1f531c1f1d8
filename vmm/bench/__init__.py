# SPDX-License-Identifier: Apache-2.0
"""``vmm bench``: how much slower than plain C this VMM is, and whether that is within its limits.

The baseline, ``bench_baseline.c``, is compiled on the spot and runs the same guest: the payload, the tables
and the registers that the Python side built. A round is N operations in C and N here, the order alternating,
so that whatever else the machine does meets both. Only medians over the rounds are compared, never one side
alone. What is measured:

* ``shim exit loop``: a guest exit that Vcpu.run absorbs; C handles it after a bare KVM_RUN.
* ``exit handled in Python``: a guest exit that comes back as a value of vmm.exits.
* ``ioctl through the door``: KVM_GET_API_VERSION by vmm.ioctl.ioctl, tracing off.
* ``start to first exit``: open /dev/kvm, API version, VM, memory, vCPU, CPUID, tables, payload, registers and
  the run to the first exit, in a warm process; closing is not counted.

``vmm bench --json`` prints one object: ``within`` (all of them are) and ``results``, a list of objects with

* ``name``; ``unit`` of all times, ``us`` an operation; ``rounds``, how many there were
* ``ours`` and ``baseline``: the medians; ``ours_quartiles`` and ``baseline_quartiles``: [first, third]
* ``ratio``: ours / baseline; ``difference``: ours - baseline
* ``limit`` and ``limited``, which of ``ratio`` and ``difference`` must not exceed it; ``within``: it does not
"""

from vmm.bench.baseline import BenchUnavailable
from vmm.bench.compare import ROUNDS, SECONDS, run
from vmm.bench.result import BenchResult

__all__ = ["ROUNDS", "SECONDS", "BenchResult", "BenchUnavailable", "run"]
