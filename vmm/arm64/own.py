# SPDX-License-Identifier: Apache-2.0
"""This process's own vector registers and ZA around a KVM_RUN, and its own vector length."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from vmm._kvm import ffi, lib
from vmm.arm64.vector import AREA_SIZE, VectorState
from vmm.arm64.vls import QUADWORD
from vmm.kvm import ioctl as door
from vmm.kvm.exits import Exit
from vmm.kvm.vcpu import Vcpu

__all__ = [
    "VL_MASK",
    "When",
    "register_set",
    "run_with_vectors",
    "run_with_za",
    "vector_length",
    "vectors_of",
    "za_size",
]

# PR_SVE_VL_LEN_MASK, uapi: the length in what the prctls of SVE return.
VL_MASK = 0xFFFF
# struct user_sve_header: size, max_size, vl, max_vl, flags, reserved; SVE_PT_REGS_SVE.
_HEADER, _SVE_LAYOUT = struct.Struct("<IIHHHH"), 1


class When(IntEnum):
    """When the registers become the image, and what happens before they are looked at."""

    BEFORE_RUN = 0  # KVM_RUN
    AFTER_RUN_SIGNAL = 1  # a signal, and no system call
    AFTER_RUN_WAIT = 2  # some time, and no system call
    TRACED_BEFORE_RUN = 3  # a stop in which the tracer writes others, then KVM_RUN
    TRACED_AFTER_RUN = 4  # such a stop, and no system call


_ZA_BEFORE_RUN = 5  # the image is ZA's


def run_with_vectors(
    vcpu: Vcpu, image: bytes, timeout: float, *, when: When = When.BEFORE_RUN, wait: float = 0.0
) -> tuple[Exit, bytes]:
    """KVM_RUN with ``image`` in this thread's Z, P, FFR, FPSR and FPCR; return the exit and their image afterwards.

    ``image`` is as vmm.arm64.vector describes it, at this thread's vector length. ``wait`` is in seconds. Raises
    KvmError, with ENOTSUP where this process has no SVE.
    """
    if len(image) != AREA_SIZE:
        raise ValueError(f"an image of the vector registers has {AREA_SIZE} bytes, not {len(image)}")
    return _run(vcpu, image, timeout, when, wait)


def run_with_za(vcpu: Vcpu, image: bytes, timeout: float) -> tuple[Exit, bytes]:
    """KVM_RUN with ``image`` in this thread's ZA, row by row, and ZT0 behind it; return the exit and it afterwards.

    Where PSTATE.ZA is 0 afterwards it is all zeros. The image has :func:`za_size` bytes. Raises KvmError, with
    ENOTSUP where this process has no SME.
    """
    if len(image) != za_size():
        raise ValueError(f"an image of ZA and ZT0 has {za_size()} bytes here, not {len(image)}")
    return _run(vcpu, image, timeout, _ZA_BEFORE_RUN, 0.0)


def za_size() -> int:
    """Return the bytes of this thread's ZA and, with SME2, ZT0."""
    return int(lib.vmm_host_rdsvl()) ** 2 + int(lib.vmm_host_zt0())


def _run(vcpu: Vcpu, image: bytes, timeout: float, when: int, wait: float) -> tuple[Exit, bytes]:
    given, observed = ffi.new("uint8_t[]", image), ffi.new("uint8_t[]", len(image))
    vectors = ffi.new(
        "struct vmm_host_vectors *",
        {"image": given, "observed": observed, "wait_ns": int(wait * 1e9), "when": when},
    )
    exit = vcpu.run_holding(timeout, vectors=vectors)
    return exit, bytes(ffi.buffer(observed, len(image)))


def register_set(state: VectorState) -> bytes:
    """Return a state as the register set NT_ARM_SVE of ptrace.

    Source: arch/arm64/include/uapi/asm/ptrace.h, struct user_sve_header, SVE_PT_SVE_*.
    """
    body = b"".join((*state.z, *state.p, state.ffr))
    body += bytes(-len(body) % QUADWORD) + struct.pack("<II", state.fpsr, state.fpcr)
    body += bytes(-len(body) % QUADWORD)
    size = _HEADER.size + len(body)
    return _HEADER.pack(size, size, state.size, state.size, _SVE_LAYOUT, 0) + body


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
