# SPDX-License-Identifier: Apache-2.0
"""Nested state as a value: what says whether a vCPU virtualizes, and its guest's VMCS or VMCB."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

from vmm._kvm import ffi, lib
from vmm.kvm.vcpu import Vcpu

__all__ = ["GIF_SET", "GUEST_MODE", "HEADER", "NONE", "RUN_PENDING", "SVM", "VMX", "NestedState", "buffer"]

# Formats, and flags of both. Source: asm/kvm.h.
VMX, SVM = 0, 1
GUEST_MODE, RUN_PENDING, GIF_SET = 1, 2, 0x100
# Bytes before the VMCS or VMCB.
HEADER = 128
# An address that is none.
NONE = (1 << 64) - 1
_FIXED = struct.Struct("<HHI2QH")


def buffer(size: int, length: int | None = None, *, fill: int = 0) -> Any:
    """A buffer of ``length`` bytes (or ``size``) that says of itself that it has ``size``."""
    count = size if length is None else length
    data = ffi.new("uint8_t[]", count)
    ffi.buffer(data)[0:count] = bytes([fill]) * count
    ffi.buffer(data)[0:8] = struct.pack("<HHI", 0, 0, size)
    return data


@dataclass(frozen=True, slots=True)
class NestedState:
    """A ``struct kvm_nested_state``: its header's fields, and the rest of it as bytes.

    ``vmxon`` and ``vmcs`` are guest physical addresses, with SVM ``vmxon`` is the VMCB's; ``smm`` are VMX's flags of
    SMM. Source: Documentation/virt/kvm/api.rst, 4.114 KVM_GET_NESTED_STATE.
    """

    flags: int
    format: int
    size: int
    vmxon: int
    vmcs: int
    smm: int
    rest: bytes

    @classmethod
    def get(cls, vcpu: Vcpu, size: int = 1 << 16) -> NestedState:
        """KVM_GET_NESTED_STATE into a buffer of ``size`` bytes; KvmError (E2BIG) if that is too small."""
        data = buffer(size)
        vcpu.ioctl(lib.KVM_GET_NESTED_STATE, data)
        raw = bytes(ffi.buffer(data))
        flags, kind, needed, vmxon, vmcs, smm = _FIXED.unpack_from(raw)
        return cls(flags, kind, needed, vmxon, vmcs, smm, raw[_FIXED.size : needed])

    def set(self, vcpu: Vcpu) -> None:
        """KVM_SET_NESTED_STATE."""
        raw = _FIXED.pack(self.flags, self.format, self.size, self.vmxon, self.vmcs, self.smm) + self.rest
        vcpu.ioctl(lib.KVM_SET_NESTED_STATE, ffi.new("uint8_t[]", raw))

    @property
    def header(self) -> NestedState:
        """It without the VMCS or VMCB."""
        return replace(self, rest=b"")
