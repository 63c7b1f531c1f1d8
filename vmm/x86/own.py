# SPDX-License-Identifier: Apache-2.0
"""This process's own x87, vector and mask registers and PKRU around a KVM_RUN."""

from __future__ import annotations

from typing import Any

from vmm._kvm import ffi, lib
from vmm.kvm.exits import Exit
from vmm.kvm.vcpu import Vcpu
from vmm.x86.xfeature import AVX512, XFeature, mask
from vmm.x86.xsave import XsaveArea, host_layout

__all__ = ["own_features", "own_xcr0", "run_with_registers", "yield_with_registers"]

# What the shim can hold still. The compiler knows nothing of the others, and tiles need a permission.
_HELD = mask(XFeature.FP, XFeature.SSE, XFeature.YMM, XFeature.PKRU) | AVX512
_WITHOUT_XSAVE = mask(XFeature.FP, XFeature.SSE)


def own_xcr0() -> int:
    """Return XCR0 as this thread reads it now; 0 on a host without XSAVE."""
    return int(lib.vmm_xgetbv(0)) if lib.vmm_has_osxsave() else 0


def own_features() -> int:
    """Return the components that the functions here load and store: what the host's XCR0 has of those."""
    return own_xcr0() & _HELD or _WITHOUT_XSAVE


def _vectors(area: XsaveArea, calls: int) -> tuple[Any, Any, Any]:
    """Return a ``struct vmm_host_vectors *`` and the two buffers that it points to."""
    features = own_features()
    if host_layout().size(features) > lib.VMM_HOST_AREA:
        raise ValueError(f"this CPU's components {features:#x} do not fit into {lib.VMM_HOST_AREA} bytes")
    if len(area.data) != lib.VMM_HOST_AREA:
        raise ValueError(f"an area of one's own registers has {lib.VMM_HOST_AREA} bytes, not {len(area.data)}")
    given, observed = ffi.new("uint8_t[]", bytes(area.data)), ffi.new("uint8_t[]", lib.VMM_HOST_AREA)
    fields = {
        "given": given,
        "observed": observed,
        "features": features if own_xcr0() else 0,
        "calls": calls,
    }
    return ffi.new("struct vmm_host_vectors *", fields), given, observed


def run_with_registers(vcpu: Vcpu, area: XsaveArea, timeout: float, *, calls: int = 1) -> tuple[Exit, XsaveArea]:
    """KVM_RUN, ``calls`` times in a row, with ``area`` in this thread's registers; return the exit and what they are.

    ``area`` has VMM_HOST_AREA bytes and components of ``own_features()``. A deadline is a signal that interrupts
    KVM_RUN. Raises KvmError.
    """
    vectors, _given, observed = _vectors(area, calls)
    exit = vcpu.run_holding(timeout, vectors=vectors)
    return exit, XsaveArea(bytes(ffi.buffer(observed)))


def yield_with_registers(area: XsaveArea, calls: int) -> XsaveArea:
    """Yield this CPU, ``calls`` times in a row, with ``area`` in the registers; return what is there afterwards."""
    vectors, _given, observed = _vectors(area, calls)
    result = int(lib.vmm_yield_with_vectors(vectors))
    if result < 0:
        raise OSError(-result, "sched_yield failed")
    return XsaveArea(bytes(ffi.buffer(observed)))
