# SPDX-License-Identifier: Apache-2.0
"""The rest of a vCPU's registers: general ones, segments and control registers, XCR0."""

from __future__ import annotations

from typing import Any

from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Refused
from vmm.kvm.vcpu import Vcpu

__all__ = [
    "MAX_XCRS",
    "get_debugregs",
    "get_fpu",
    "get_regs",
    "get_sregs",
    "get_xcr0",
    "get_xcrs",
    "raw",
    "set_cr4_bits",
    "set_debugregs",
    "set_fpu",
    "set_regs",
    "set_sregs",
    "set_xcr0",
    "set_xcrs",
]

# KVM_MAX_XCRS, uapi.
MAX_XCRS = 16


def get_regs(vcpu: Vcpu) -> Any:
    """KVM_GET_REGS as a ``struct kvm_regs *``."""
    return vcpu.get(lib.KVM_GET_REGS, "kvm_regs")


def set_regs(vcpu: Vcpu, regs: Any) -> None:
    """KVM_SET_REGS."""
    vcpu.ioctl(lib.KVM_SET_REGS, regs)


def get_sregs(vcpu: Vcpu) -> Any:
    """KVM_GET_SREGS as a ``struct kvm_sregs *``."""
    return vcpu.get(lib.KVM_GET_SREGS, "kvm_sregs")


def set_sregs(vcpu: Vcpu, sregs: Any) -> None:
    """KVM_SET_SREGS."""
    vcpu.ioctl(lib.KVM_SET_SREGS, sregs)


def set_cr4_bits(vcpu: Vcpu, bits: int, *, on: bool) -> None:
    """Set or clear bits of CR4 by KVM_SET_SREGS; the rest stays."""
    sregs = get_sregs(vcpu)
    sregs.cr4 = sregs.cr4 & ~bits | bits * on
    set_sregs(vcpu, sregs)


def get_debugregs(vcpu: Vcpu) -> Any:
    """KVM_GET_DEBUGREGS as a ``struct kvm_debugregs *``."""
    return vcpu.get(lib.KVM_GET_DEBUGREGS, "kvm_debugregs")


def set_debugregs(vcpu: Vcpu, debugregs: Any) -> None:
    """KVM_SET_DEBUGREGS."""
    vcpu.ioctl(lib.KVM_SET_DEBUGREGS, debugregs)


def get_fpu(vcpu: Vcpu) -> Any:
    """KVM_GET_FPU as a ``struct kvm_fpu *``."""
    return vcpu.get(lib.KVM_GET_FPU, "kvm_fpu")


def set_fpu(vcpu: Vcpu, fpu: Any) -> None:
    """KVM_SET_FPU."""
    vcpu.ioctl(lib.KVM_SET_FPU, fpu)


def get_xcrs(vcpu: Vcpu) -> Any:
    """KVM_GET_XCRS as a ``struct kvm_xcrs *``."""
    return vcpu.get(lib.KVM_GET_XCRS, "kvm_xcrs")


def get_xcr0(vcpu: Vcpu) -> int:
    """Return XCR0; Refused (a LookupError) if KVM lists no XCR0, as on a host without XSAVE."""
    xcrs = get_xcrs(vcpu)
    for entry in xcrs.xcrs[0 : min(xcrs.nr_xcrs, MAX_XCRS)]:
        if entry.xcr == 0:
            return int(entry.value)
    raise Refused(f"KVM_GET_XCRS lists {xcrs.nr_xcrs} registers and XCR0 is not among them")


def set_xcrs(vcpu: Vcpu, entries: list[tuple[int, int]], *, count: int | None = None, flags: int = 0) -> None:
    """KVM_SET_XCRS with (xcr, value) entries; ``count`` overrides nr_xcrs."""
    rows = [(xcr, 0, value) for xcr, value in entries]
    nr_xcrs = len(rows) if count is None else count
    vcpu.ioctl(lib.KVM_SET_XCRS, ffi.new("struct kvm_xcrs *", {"nr_xcrs": nr_xcrs, "flags": flags, "xcrs": rows}))


def set_xcr0(vcpu: Vcpu, value: int) -> None:
    """KVM_SET_XCRS of XCR0 only."""
    set_xcrs(vcpu, [(0, value)])


def raw(value: Any) -> bytes:
    """Return the bytes of a struct that one of the functions above returned."""
    return bytes(ffi.buffer(value))
