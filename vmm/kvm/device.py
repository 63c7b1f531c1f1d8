# SPDX-License-Identifier: Apache-2.0
"""A device made by KVM_CREATE_DEVICE, driven by its attributes."""

from __future__ import annotations

from vmm.kvm.handle import Handle

__all__ = ["Device"]


class Device(Handle):
    """An in-kernel device; its attributes are those of Documentation/virt/kvm/devices."""

    def __init__(self, fd: int, kind: int) -> None:
        super().__init__(fd)
        self.kind = kind
