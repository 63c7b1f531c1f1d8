# SPDX-License-Identifier: Apache-2.0
"""Which pages a running guest wrote: the dirty log of all its memory, as KVM's bitmaps or its rings.

>>> log = open_log(guest.vm, [guest.vcpu])
>>> log.start()
>>> log.collect()                              # guest.vm.memories[0]'s bits are in log.bitmaps[0]
>>> log.protect(0, 0, 64)                      # before the first 64 pages are read,
>>> log.forget(0, 0, 64)                       # and after

Everything is dirty at the start. What the VMM itself writes is never in the log.
Source: Documentation/virt/kvm/api.rst, 4.43 KVM_GET_DIRTY_LOG, 4.117 KVM_CLEAR_DIRTY_LOG, 7.18
KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 and 8.29 KVM_CAP_DIRTY_LOG_RING.
"""

from __future__ import annotations

import mmap
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from vmm._kvm import ffi, lib
from vmm.kvm.bits import bits
from vmm.kvm.ioctl import KvmError
from vmm.kvm.memory import PAGE_SIZE, GuestMemory, MemoryUnavailable
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine

__all__ = ["BitmapLog", "DirtyLog", "RingKvm", "RingLog", "RingMachine", "open_log"]

_WORD = 64
_ENTRY_SIZE: int = ffi.sizeof("struct kvm_dirty_gfn")


def _enable(vm: VirtualMachine, capability: int, value: int) -> None:
    """KVM_ENABLE_CAP. Not VirtualMachine.enable_cap: how its writes are watched is not part of a guest's state."""
    vm.ioctl(lib.KVM_ENABLE_CAP, ffi.new("struct kvm_enable_cap *", {"cap": capability, "args": [value]}))


class DirtyLog(ABC):
    """The pages to look at: ``bitmaps`` has a ``uint64_t[]`` for each region, a bit for each page of the host."""

    def __init__(self, vm: VirtualMachine) -> None:
        self._vm = vm
        self.memories: list[GuestMemory] = vm.memories
        for memory in self.memories:
            if memory.backing == "guest_memfd":
                raise MemoryUnavailable("guest_memfd memory has no dirty log: use a guest with another backing")
        self.bits = [memory.size // PAGE_SIZE for memory in self.memories]
        self.bitmaps = [_bitmap(bits) for bits in self.bits]
        self._fresh = [_bitmap(bits) for bits in self.bits]

    def start(self) -> None:
        """Log from now on. All pages count as dirty."""
        for memory in self.memories:
            memory.register(log_dirty=True)
        for region in range(len(self.memories)):
            self.mark_all(region)

    @abstractmethod
    def collect(self) -> None:
        """Add what was written since the last call to ``bitmaps``; with the guest stopped, this is exact."""

    @abstractmethod
    def protect(self, region: int, first: int, end: int) -> None:
        """Log new writes to these pages, whose bits are about to be acted on. ``first`` is a multiple of 64."""

    @abstractmethod
    def make_room(self) -> None:
        """Answer KVM_EXIT_DIRTY_RING_FULL, in the vCPU's thread."""

    def forget(self, region: int, first: int, end: int) -> None:
        """Clear the bits of these pages. ``first`` and, but for a region's end, ``end`` are multiples of 64."""
        words = slice(first // _WORD * 8, -(-end // _WORD) * 8)
        buffer = ffi.buffer(self.bitmaps[region])
        buffer[words] = bytes(words.stop - words.start)

    def mark_all(self, region: int) -> None:
        """Count a region's every page as written: by somebody whose writes KVM does not see."""
        bitmap = self.bitmaps[region]
        ffi.buffer(bitmap)[:] = ((1 << self.bits[region]) - 1).to_bytes(ffi.sizeof(bitmap), "little")

    def count(self) -> int:
        """Return how many bytes the pages with a bit have together."""
        return sum(_number(bitmap).bit_count() for bitmap in self.bitmaps) * PAGE_SIZE

    def dirty(self, region: int) -> set[int]:
        """Return the numbers of a region's pages that have a bit."""
        return set(bits(_number(self.bitmaps[region])))

    def stop(self) -> None:
        """Log no more."""
        for memory in self.memories:
            memory.register()

    def _merge(self) -> None:
        """Add the fresh bits to the others."""
        for bitmap, fresh in zip(self.bitmaps, self._fresh, strict=True):
            if (new := _number(fresh)) != 0:
                ffi.buffer(bitmap)[:] = (_number(bitmap) | new).to_bytes(ffi.sizeof(bitmap), "little")
                ffi.buffer(fresh)[:] = bytes(ffi.sizeof(fresh))


class BitmapLog(DirtyLog):
    """KVM_GET_DIRTY_LOG; where KVM has it, pages are write-protected as late as KVM_CLEAR_DIRTY_LOG allows."""

    def __init__(self, vm: VirtualMachine, *, manual: bool = True) -> None:
        super().__init__(vm)
        offered = vm.check_extension(lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) if manual else 0
        wanted = lib.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | lib.KVM_DIRTY_LOG_INITIALLY_SET
        self.manual = bool(offered & lib.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)
        self._options = offered & wanted if self.manual else 0

    def start(self) -> None:
        if self.manual:
            _enable(self._vm, lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, self._options)
        super().start()

    def collect(self) -> None:
        for memory, fresh in zip(self.memories, self._fresh, strict=True):
            self._vm.ioctl(
                lib.KVM_GET_DIRTY_LOG,
                ffi.new("struct kvm_dirty_log *", {"slot": memory.slot, "dirty_bitmap": fresh}),
            )
        self._merge()

    def protect(self, region: int, first: int, end: int) -> None:
        if not self.manual:
            return
        memory = self.memories[region]
        pages = min(end, self.bits[region]) - first
        argument = {
            "slot": memory.slot,
            "num_pages": pages,
            "first_page": first,
            "dirty_bitmap": self.bitmaps[region] + first // _WORD,
        }
        self._vm.ioctl(lib.KVM_CLEAR_DIRTY_LOG, ffi.new("struct kvm_clear_dirty_log *", argument))

    def make_room(self) -> None:
        raise AssertionError("a VM without dirty rings has none that is full")

    def stop(self) -> None:
        super().stop()
        if self.manual:
            _enable(self._vm, lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 0)


class RingLog(DirtyLog):
    """The dirty rings of the vCPUs of a RingMachine; ``filled`` counts how often one was full."""

    def __init__(self, vm: RingMachine, vcpus: Sequence[Vcpu]) -> None:
        super().__init__(vm)
        self.filled = 0
        self._lock = threading.Lock()  # the vCPU's thread makes room, another one collects
        size = vm.ring_entries * _ENTRY_SIZE
        offset = lib.KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE
        self._maps = [mmap.mmap(vcpu.fd, size, offset=offset) for vcpu in vcpus]
        self._buffers = [ffi.from_buffer("struct kvm_dirty_gfn[]", area) for area in self._maps]
        self._rings = [
            ffi.new("struct vmm_dirty_ring *", {"entries": buffer, "size": vm.ring_entries})
            for buffer in self._buffers
        ]
        self._slots = ffi.new("uint64_t *[]", self._fresh)
        self._bits = ffi.new("uint64_t[]", self.bits)

    def collect(self) -> None:
        with self._lock:
            self._harvest()
            self._merge()

    def protect(self, region: int, first: int, end: int) -> None:
        pass  # KVM_RESET_DIRTY_RINGS did

    def make_room(self) -> None:
        with self._lock:
            self.filled += 1
            self._harvest()

    def _harvest(self) -> None:
        """Empty the rings; KVM logs a page again from KVM_RESET_DIRTY_RINGS on, so pages are read after it."""
        harvested = 0
        for ring in self._rings:
            result = lib.vmm_harvest_ring(ring, self._slots, self._bits, len(self.bits))
            if result < 0:
                raise KvmError("KVM_RESET_DIRTY_RINGS", -result)
            harvested += result
        if harvested:
            self._vm.ioctl_value(lib.KVM_RESET_DIRTY_RINGS)

    def stop(self) -> None:
        super().stop()
        for buffer, area in zip(self._buffers, self._maps, strict=True):
            ffi.release(buffer)
            area.close()
        self._rings, self._buffers, self._maps = [], [], []


class RingMachine(VirtualMachine):
    """A VM whose vCPUs have dirty rings of ``ring_entries`` entries each; the bitmap log is then unavailable."""

    def __init__(self, fd: int, vcpu_mmap_size: int, ring_entries: int) -> None:
        super().__init__(fd, vcpu_mmap_size)
        self.ring_entries = ring_entries
        for capability in (lib.KVM_CAP_DIRTY_LOG_RING_ACQ_REL, lib.KVM_CAP_DIRTY_LOG_RING):
            if largest := self.check_extension(capability):
                break
        else:
            raise MemoryUnavailable("this KVM has no dirty rings (KVM_CAP_DIRTY_LOG_RING_ACQ_REL is 0)")
        size = ring_entries * _ENTRY_SIZE
        if ring_entries & ring_entries - 1 or not PAGE_SIZE <= size <= largest:
            raise MemoryUnavailable(
                f"a dirty ring of {ring_entries} entries is not possible: take a power of two "
                f"from {PAGE_SIZE // _ENTRY_SIZE} to {largest // _ENTRY_SIZE}"
            )
        _enable(self, capability, size)


class RingKvm(Kvm):
    """A /dev/kvm whose VMs have dirty rings: the choice has to be made before a VM's first vCPU."""

    def __init__(self, ring_entries: int) -> None:
        super().__init__()
        self._ring_entries = ring_entries

    def create_vm(self, kind: int | None = None) -> RingMachine:
        """KVM_CREATE_VM, with rings; MemoryUnavailable where KVM has none of that size."""
        machine = super().create_vm(kind)
        try:
            return RingMachine(machine.fd, self.vcpu_mmap_size, self._ring_entries)
        except BaseException:
            machine.close()
            raise


def open_log(vm: VirtualMachine, vcpus: Sequence[Vcpu]) -> DirtyLog:
    """Return the dirty log of a VM: its rings if it has them, else bitmaps."""
    return RingLog(vm, vcpus) if isinstance(vm, RingMachine) else BitmapLog(vm)


def _bitmap(bits: int) -> Any:
    return ffi.new("uint64_t[]", -(-bits // _WORD))


def _number(bitmap: Any) -> int:
    return int.from_bytes(ffi.buffer(bitmap), "little")
