# SPDX-License-Identifier: Apache-2.0
"""Registers in struct kvm_run, KVM_CAP_SYNC_REGS: what KVM_RUN gives when it ends, and takes when it begins.

Source: Documentation/virt/kvm/api.rst, "KVM_CAP_SYNC_REGS" and 5, "kvm_valid_regs" and "kvm_dirty_regs".
"""

from __future__ import annotations

from enum import IntFlag
from typing import Any

from vmm._kvm import ffi, lib
from vmm.kvm.vcpu import Vcpu

__all__ = ["Sync", "synced"]


class Sync(IntFlag):
    """The groups of registers, by their bits in kvm_valid_regs and kvm_dirty_regs."""

    REGS = lib.KVM_SYNC_X86_REGS
    SREGS = lib.KVM_SYNC_X86_SREGS
    EVENTS = lib.KVM_SYNC_X86_EVENTS


def synced(vcpu: Vcpu) -> Any:
    """Return the ``struct kvm_sync_regs *`` in a vCPU's kvm_run: ``regs``, ``sregs``, ``events``."""
    return ffi.cast("struct kvm_sync_regs *", ffi.addressof(vcpu.kvm_run.s))
