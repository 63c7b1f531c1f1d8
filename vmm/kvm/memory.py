# SPDX-License-Identifier: Apache-2.0
"""Guest memory: host memory behind a memslot, with its dirty log.

Backings: ``anonymous`` (transparent huge pages where the kernel likes), ``hugetlb`` (2 MiB pages from
the host's pool), ``guest_memfd`` (memory that KVM owns, mappable since Linux 6.18). Memory whose writers may
pass the host's caches by is ``non-coherent``: see vmm.kvm.coherence.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from vmm._kvm import ffi, lib
from vmm.kvm import coherence as caches
from vmm.kvm.bits import bits
from vmm.kvm.coherence import Coherence
from vmm.kvm.handle import Handle
from vmm.kvm.ioctl import ioctl

__all__ = ["BACKINGS", "PAGE_SIZE", "GuestMemory", "MemoryUnavailable", "available_memory"]

PAGE_SIZE = mmap.PAGESIZE
BACKINGS = ("anonymous", "hugetlb", "guest_memfd")
_MAP_HUGETLB = 0x40000
_MAP_NORESERVE = 0x4000
_HUGE_PAGE = 2 << 20
# A small guest touches a few pages: a huge page would only make it large.
_HUGE_WORTHWHILE = 32 << 20


class MemoryUnavailable(Exception):
    """The host cannot give this kind of memory; the message says why."""


def available_memory() -> int | None:
    """Return how many bytes the host can give without swapping, None where it does not say.

    Source: proc(5), /proc/meminfo, MemAvailable.
    """
    found = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else None


class GuestMemory:
    """``size`` bytes of guest RAM at guest physical address ``gpa``.

    ``view`` is the writable memoryview of it all; ``read`` and ``write`` take guest physical addresses and
    raise IndexError outside of it, before anything is written. Where ``coherence`` is non-coherent, ``read``,
    ``write`` and ``pages`` flush the cache lines they are about, and whoever uses ``view`` or ``address`` calls
    ``flush`` before reading and after writing. ``flushed_lines`` counts cache lines.
    """

    def __init__(
        self,
        vm: Handle,
        slot: int,
        gpa: int,
        size: int,
        backing: str = "anonymous",
        coherence: str = Coherence.COHERENT,
    ) -> None:
        if size <= 0 or size % PAGE_SIZE or gpa % PAGE_SIZE:
            raise ValueError(f"guest memory of {size} bytes at {gpa:#x} is not in whole pages of {PAGE_SIZE}")
        if backing not in BACKINGS:
            raise ValueError(f"backing {backing!r} is none of {', '.join(BACKINGS)}")
        if coherence not in list(Coherence):
            raise ValueError(f"coherence {coherence!r} is none of {', '.join(Coherence)}")
        self._vm_fd = vm.fd
        self.slot, self.gpa, self.size, self.backing = slot, gpa, size, backing
        self.coherence = Coherence(coherence)
        if self.coherence is Coherence.NON_COHERENT and not caches.line_size():
            raise MemoryUnavailable("non-coherent memory has to be flushed, and this CPU has no instruction for it")
        self.flushed_lines = 0
        self._fd = -1
        self._registered = False
        try:
            self._map = self._allocate(vm)
        except BaseException:
            self._close_fd()
            raise
        self.view = memoryview(self._map)
        self._buffer = ffi.from_buffer("uint8_t[]", self._map)
        self.address = int(ffi.cast("uintptr_t", self._buffer))  # where the memory lies in this process

    def _allocate(self, vm: Handle) -> mmap.mmap:
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        if self.backing == "anonymous":
            area = mmap.mmap(-1, self.size, private)
            if self.size >= _HUGE_WORTHWHILE:
                area.madvise(mmap.MADV_HUGEPAGE)
            return area
        if self.backing == "hugetlb":
            return self._allocate_hugetlb(private)
        return self._allocate_guest_memfd(vm)

    def _allocate_hugetlb(self, flags: int) -> mmap.mmap:
        if self.size % _HUGE_PAGE:
            raise ValueError(f"hugetlb memory comes in pages of 2 MiB, not {self.size} bytes")
        try:
            # Without MAP_NORESERVE, so that a missing page is an error here and no SIGBUS later.
            return mmap.mmap(-1, self.size, flags & ~_MAP_NORESERVE | _MAP_HUGETLB)
        except OSError as error:
            raise MemoryUnavailable(
                f"{self.size >> 21} huge pages could not be mapped ({error.strerror}): raise vm.nr_hugepages"
            ) from error

    def _allocate_guest_memfd(self, vm: Handle) -> mmap.mmap:
        wanted = lib.GUEST_MEMFD_FLAG_MMAP | lib.GUEST_MEMFD_FLAG_INIT_SHARED
        offered = vm.check_extension(lib.KVM_CAP_GUEST_MEMFD_FLAGS)
        if offered & wanted != wanted:
            raise MemoryUnavailable(
                f"guest_memfd cannot be mapped here: KVM_CAP_GUEST_MEMFD_FLAGS is {offered:#x}, {wanted:#x} is needed"
            )
        self._fd = vm.ioctl(
            lib.KVM_CREATE_GUEST_MEMFD,
            ffi.new("struct kvm_create_guest_memfd *", {"size": self.size, "flags": wanted}),
        )
        return mmap.mmap(self._fd, self.size, mmap.MAP_SHARED)

    def register(self, *, log_dirty: bool = False, readonly: bool = False) -> None:
        """Make the memory the guest's, or change its flags."""
        flags = lib.KVM_MEM_LOG_DIRTY_PAGES * log_dirty | lib.KVM_MEM_READONLY * readonly
        self._set_region(self.size, flags)
        self._registered = True

    def _set_region(self, size: int, flags: int) -> None:
        region: dict[str, Any] = {
            "slot": self.slot,
            "flags": flags,
            "guest_phys_addr": self.gpa,
            "memory_size": size,
            "userspace_addr": self.address,
        }
        if self._fd < 0:
            argument = ffi.new("struct kvm_userspace_memory_region *", region)
            ioctl(self._vm_fd, lib.KVM_SET_USER_MEMORY_REGION, argument)
            return
        region["flags"] |= lib.KVM_MEM_GUEST_MEMFD
        region["guest_memfd"] = self._fd
        ioctl(
            self._vm_fd,
            lib.KVM_SET_USER_MEMORY_REGION2,
            ffi.new("struct kvm_userspace_memory_region2 *", region),
        )

    def dirty_pages(self) -> list[int]:
        """Return the numbers of the pages written since the last call (KVM_GET_DIRTY_LOG)."""
        words = (self.size // PAGE_SIZE + 63) // 64
        bitmap = ffi.new("uint64_t[]", words)
        ioctl(
            self._vm_fd,
            lib.KVM_GET_DIRTY_LOG,
            ffi.new("struct kvm_dirty_log *", {"slot": self.slot, "dirty_bitmap": bitmap}),
        )
        return list(bits(int.from_bytes(ffi.buffer(bitmap), "little")))

    def _offset(self, gpa: int, length: int) -> int:
        offset = gpa - self.gpa
        if not (offset >= 0 and offset + length <= self.size):
            raise IndexError(f"{length} bytes at {gpa:#x} are outside the guest memory at {self.gpa:#x}")
        return offset

    def read(self, gpa: int, length: int) -> bytes:
        """Return ``length`` bytes at guest physical address ``gpa``."""
        offset = self._offset(gpa, length)
        if self.coherence is Coherence.NON_COHERENT:
            self._flush([(offset, length)])
        return bytes(self.view[offset : offset + length])

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Put ``data`` at guest physical address ``gpa``."""
        offset = self._offset(gpa, len(data))
        self.view[offset : offset + len(data)] = data
        if self.coherence is Coherence.NON_COHERENT:
            self._flush([(offset, len(data))])

    def pages(self, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Yield (number, bytes) of pages counted as by dirty_pages; runs of pages are flushed in one go."""
        wanted = list(numbers)
        self.flush(wanted)
        for number in wanted:
            yield number, bytes(self.view[number * PAGE_SIZE : (number + 1) * PAGE_SIZE])

    def current(self) -> memoryview:
        """Return ``view`` with all that its writers wrote, flushed if they may bypass the caches."""
        self.flush()
        return self.view

    def flush(self, numbers: Iterable[int] | None = None) -> None:
        """Write back and invalidate the cache lines of those pages, of all if None. Nothing if coherent.

        Before ``view`` is read this makes visible what a device wrote; after it was written, visible to the
        device. IndexError, before anything is done, for a page that there is not.
        """
        if numbers is None:
            ranges = [(0, self.size)]
        else:
            ranges = [(self._offset(self.gpa + number * PAGE_SIZE, PAGE_SIZE), PAGE_SIZE) for number in numbers]
        if self.coherence is Coherence.NON_COHERENT:
            self._flush(ranges)

    def _flush(self, ranges: list[tuple[int, int]]) -> None:
        self.flushed_lines += caches.flush(self.address, ranges)

    def _close_fd(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Unmap the memory. The memslot goes with its VM, which is closed right after."""
        if self._map.closed:
            return
        ffi.release(self._buffer)
        self.view.release()
        self._map.close()
        self._close_fd()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
