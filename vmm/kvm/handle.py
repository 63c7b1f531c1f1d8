# SPDX-License-Identifier: Apache-2.0
"""A file descriptor of KVM with an owner: closed once, by whoever leaves the ``with`` block."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import ioctl, ioctl_value

__all__ = ["Handle"]


class Handle:
    """Owns one file descriptor; base of Kvm, VirtualMachine, Vcpu and Device."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        # What was chosen at its set-up and no call tells (arm64: INIT, FINALIZE), for who saves its state.
        self.chosen: dict[str, bytes] = {}

    def ioctl(self, request: int, argument: Any = ffi.NULL) -> int:
        """Call ioctl with a pointer; see :func:`vmm.kvm.ioctl.ioctl`."""
        return ioctl(self.fd, request, argument)

    def ioctl_value(self, request: int, argument: int = 0) -> int:
        """Call ioctl with a number; see :func:`vmm.kvm.ioctl.ioctl_value`."""
        return ioctl_value(self.fd, request, argument)

    def get(self, request: int, kind: str) -> Any:
        """Return a new ``struct kind *`` filled by the ioctl ``request``."""
        value = ffi.new(f"struct {kind} *")
        self.ioctl(request, value)
        return value

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 if unsupported, else positive with a meaning of its own.

        For /dev/kvm and for a VM, whose answer may be narrower.
        """
        return self.ioctl_value(lib.KVM_CHECK_EXTENSION, capability)

    def set_attribute(self, group: int, attribute: int, address: Any = ffi.NULL) -> None:
        """KVM_SET_DEVICE_ATTR; the value is at ``address``."""
        self._attribute(lib.KVM_SET_DEVICE_ATTR, group, attribute, address)

    def get_attribute(self, group: int, attribute: int, address: Any = ffi.NULL) -> None:
        """KVM_GET_DEVICE_ATTR; the value goes to ``address``."""
        self._attribute(lib.KVM_GET_DEVICE_ATTR, group, attribute, address)

    def has_attribute(self, group: int, attribute: int) -> None:
        """KVM_HAS_DEVICE_ATTR; raises KvmError (ENXIO) if it is missing."""
        self._attribute(lib.KVM_HAS_DEVICE_ATTR, group, attribute, ffi.NULL)

    def _attribute(self, request: int, group: int, attribute: int, address: Any) -> None:
        value = int(ffi.cast("uintptr_t", address))
        self.ioctl(request, ffi.new("struct kvm_device_attr *", {"group": group, "attr": attribute, "addr": value}))

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
