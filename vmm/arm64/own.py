# SPDX-License-Identifier: Apache-2.0
"""This process's own vector registers around a KVM_RUN, and its own vector length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from vmm._kvm import ffi, lib
from vmm.arm64.vector import AREA_SIZE
from vmm.kvm import ioctl as door
from vmm.kvm.exits import Deadline, Exit, decode
from vmm.kvm.vcpu import Vcpu

__all__ = ["VL_MASK", "When", "run_with_vectors", "vector_length", "vectors_of"]

# PR_SVE_VL_LEN_MASK, uapi: the length in what the prctls of SVE return.
VL_MASK = 0xFFFF


class When(IntEnum):
    """When the registers become the image, and what happens before they are looked at."""

    BEFORE_RUN = 0  # KVM_RUN
    AFTER_RUN_SIGNAL = 1  # a signal, and no system call
    AFTER_RUN_WAIT = 2  # some time, and no system call


def run_with_vectors(
    vcpu: Vcpu, image: bytes, timeout: float, *, when: When = When.BEFORE_RUN, wait: float = 0.0
) -> tuple[Exit, bytes]:
    """KVM_RUN with ``image`` in this thread's Z, P, FFR, FPSR and FPCR; return the exit and their image afterwards.

    ``image`` is as vmm.arm64.vector describes it, at this thread's vector length. ``wait`` is in seconds. Raises
    KvmError, with ENOTSUP where this process has no SVE.
    """
    if len(image) != AREA_SIZE:
        raise ValueError(f"an image of the vector registers has {AREA_SIZE} bytes, not {len(image)}")
    given, observed = ffi.new("uint8_t[]", image), ffi.new("uint8_t[]", AREA_SIZE)
    vectors = ffi.new(
        "struct vmm_host_vectors *",
        {"image": given, "observed": observed, "wait_ns": int(wait * 1e9), "when": when},
    )
    control = ffi.new(
        "struct vmm_run_control *",
        {"fd": vcpu.fd, "run": vcpu.kvm_run, "vectors": vectors, "budget": 1, "timeout_ns": int(timeout * 1e9)},
    )
    while (reason := door.run(control)) == lib.VMM_RUN_SIGNAL:
        pass
    exit = Deadline() if reason == lib.VMM_RUN_DEADLINE else decode(vcpu.page)
    return exit, bytes(ffi.buffer(observed, AREA_SIZE))


def vector_length() -> tuple[int, int]:
    """Return this thread's vector length in bytes, as PR_SVE_GET_VL and as RDVL say; KvmError without SVE."""
    return door.prctl(door.PR_SVE_GET_VL, 0) & VL_MASK, int(lib.vmm_host_rdvl())


@contextmanager
def vectors_of(size: int) -> Iterator[None]:
    """Give this thread vectors of ``size`` bytes inside the block; KvmError without SVE."""
    own = door.prctl(door.PR_SVE_GET_VL, 0)
    door.prctl(door.PR_SVE_SET_VL, size)
    try:
        yield
    finally:
        door.prctl(door.PR_SVE_SET_VL, own)
