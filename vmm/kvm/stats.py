# SPDX-License-Identifier: Apache-2.0
"""What KVM counts: the numbers behind KVM_GET_STATS_FD."""

from __future__ import annotations

import os
import struct

from vmm._kvm import lib
from vmm.kvm.handle import Handle

__all__ = ["Stats"]

_HEADER, _DESCRIPTOR, _NUMBER = struct.Struct("=6I"), struct.Struct("=IhHII"), struct.Struct("=Q")


class Stats(Handle):
    """The counters of a VM or a vCPU, read again at each :meth:`read`.

    Source: Documentation/virt/kvm/api.rst, 4.133 KVM_GET_STATS_FD.
    """

    def __init__(self, subject: Handle) -> None:
        super().__init__(subject.ioctl_value(lib.KVM_GET_STATS_FD))
        _, name_size, count, _, descriptors, self._data = _HEADER.unpack(os.pread(self.fd, _HEADER.size, 0))
        self._offsets: dict[str, int] = {}
        size = _DESCRIPTOR.size + name_size
        rows = os.pread(self.fd, size * count, descriptors)
        for start in range(0, len(rows), size):
            offset = _DESCRIPTOR.unpack_from(rows, start)[3]
            self._offsets[rows[start + _DESCRIPTOR.size : start + size].split(b"\0")[0].decode()] = offset

    def read(self, name: str) -> int:
        """Return a counter, of a histogram its first bucket; LookupError if this KVM has none of that name."""
        return int(_NUMBER.unpack(os.pread(self.fd, _NUMBER.size, self._data + self._offsets[name]))[0])
