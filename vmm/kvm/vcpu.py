# SPDX-License-Identifier: Apache-2.0
"""A virtual CPU: running it, and the state calls every architecture shares."""

from __future__ import annotations

import mmap
import os
from typing import Any

from vmm._kvm import ffi, lib
from vmm.kvm import ioctl as door
from vmm.kvm.exits import Budget, Deadline, Exit, IoIn, MmioRead, Stopped, decode
from vmm.kvm.handle import Handle

__all__ = ["DEFAULT_TIMEOUT", "Vcpu", "register_size"]

DEFAULT_TIMEOUT = 5.0
_NANOSECONDS = 1_000_000_000
_SIZE_SHIFT = 52  # KVM_REG_SIZE_SHIFT
# Looked up once: a vCPU of arm64 has hundreds of registers.
_ONE_REG, _BYTES, _ADDRESS = map(ffi.typeof, ("struct kvm_one_reg *", "uint8_t[]", "uintptr_t"))


def register_size(identifier: int) -> int:
    """Return how many bytes a register of KVM_GET_ONE_REG has by its id. Source: linux/kvm.h, KVM_REG_SIZE."""
    return 1 << (identifier >> _SIZE_SHIFT & 0xF)


class Vcpu(Handle):
    """One vCPU fd with its ``struct kvm_run`` mapped.

    ``page`` is the mapped bytes, ``kvm_run`` the same as a cdata struct. ``tick`` is the address (an I/O
    port on x86, a guest physical address on arm64) where a guest write is a tick: see :meth:`run`.
    """

    def __init__(self, fd: int, mmap_size: int, identifier: int) -> None:
        super().__init__(fd)
        self.identifier = identifier
        self._timeout = 0.0  # what the shim was last told, in seconds
        try:
            self._map = mmap.mmap(fd, mmap_size)
        except BaseException:
            os.close(fd)
            raise
        self.page = memoryview(self._map)
        self._buffer = ffi.from_buffer("struct kvm_run *", self._map)
        self.kvm_run: Any = self._buffer
        self._control = ffi.new("struct vmm_run_control *", {"fd": fd, "run": self.kvm_run})

    @property
    def tick(self) -> int:
        """Where the guest ticks; 0: nowhere."""
        return int(self._control.tick)

    @tick.setter
    def tick(self, address: int) -> None:
        self._control.tick = address

    @property
    def entries(self) -> int:
        """How often KVM_RUN was called."""
        return int(self._control.entries)

    @property
    def absorbed(self) -> int:
        """How many ticks there were in the last run."""
        return int(self._control.absorbed)

    def run(self, timeout: float = DEFAULT_TIMEOUT, ticks: int = 1 << 62) -> Exit:
        """Run the guest until it leaves, and say why it did.

        Writes to ``tick`` are absorbed inside the shim until there were ``ticks`` of them (then Budget).
        After ``timeout`` seconds, at the latest after one and a half times that, the result is Deadline;
        after :meth:`kick` it is Stopped. Python's signal handlers run in between. Raises KvmError.
        """
        control = self._control
        control.budget = ticks
        control.absorbed = 0
        if timeout != self._timeout:
            self._timeout = timeout
            control.timeout_ns = int(timeout * _NANOSECONDS)
        while True:
            reason = door.run(control)
            if reason == 0:  # VMM_RUN_EXIT
                return decode(self.page)
            if reason == lib.VMM_RUN_BUDGET:
                return Budget(control.absorbed)
            if reason == lib.VMM_RUN_DEADLINE:
                return Deadline()
            if reason == lib.VMM_RUN_STOPPED:
                return Stopped()
            # VMM_RUN_SIGNAL: Python runs its handlers before the next call, then the guest resumes.

    def run_holding(self, timeout: float, **held: Any) -> Exit:
        """KVM_RUN with something of this thread's own that the shim holds around it.

        ``held`` are fields of ``struct vmm_run_control``. Raises KvmError.
        """
        control = ffi.new(
            "struct vmm_run_control *",
            {"fd": self.fd, "run": self.kvm_run, "budget": 1, "timeout_ns": int(timeout * _NANOSECONDS), **held},
        )
        while (reason := door.run(control)) == lib.VMM_RUN_SIGNAL:
            pass
        return Deadline() if reason == lib.VMM_RUN_DEADLINE else decode(self.page)

    def complete(self) -> None:
        """Finish a pending exit without running the guest, so that the registers are those after it.

        The last exit's instruction (I/O, MMIO) is only retired by the next KVM_RUN; one with immediate_exit
        does nothing else. Source: Documentation/virt/kvm/api.rst, 5. The kvm_run structure.
        """
        self.kvm_run.immediate_exit = 1
        try:
            door.ioctl_value(self.fd, lib.KVM_RUN)
        except door.KvmError as error:
            if error.errno_name != "EINTR":
                raise
        finally:
            self.kvm_run.immediate_exit = 0

    def reply(self, value: int) -> None:
        """Answer the read (IoIn, MmioRead) that the guest left for; it gets ``value`` when run again."""
        answered = decode(self.page)
        if isinstance(answered, IoIn):
            offset = self.kvm_run.io.data_offset
        elif isinstance(answered, MmioRead):
            offset = ffi.offsetof("struct kvm_run", "mmio") + 8
        else:
            raise ValueError(f"the guest is not waiting for a value: its last exit was {answered}")
        mask = (1 << 8 * answered.size) - 1
        self.page[offset : offset + answered.size] = (value & mask).to_bytes(answered.size, "little")

    def kick(self) -> None:
        """Stop a run of this vCPU from another thread, or the next run if there is none now."""
        result = lib.vmm_kick(self._control)
        if result < 0:
            raise OSError(-result, f"the vCPU's thread could not be signalled: {os.strerror(-result)}")

    @property
    def mp_state(self) -> int:
        """KVM_GET_MP_STATE; setting it is KVM_SET_MP_STATE."""
        return int(self.get(lib.KVM_GET_MP_STATE, "kvm_mp_state").mp_state)

    @mp_state.setter
    def mp_state(self, value: int) -> None:
        self.ioctl(lib.KVM_SET_MP_STATE, ffi.new("struct kvm_mp_state *", {"mp_state": value}))

    def get_events(self) -> Any:
        """KVM_GET_VCPU_EVENTS as a ``struct kvm_vcpu_events *``, which each architecture has its own fields of."""
        return self.get(lib.KVM_GET_VCPU_EVENTS, "kvm_vcpu_events")

    def set_events(self, events: Any) -> None:
        """KVM_SET_VCPU_EVENTS."""
        self.ioctl(lib.KVM_SET_VCPU_EVENTS, events)

    def get_one_reg(self, identifier: int) -> bytes:
        """KVM_GET_ONE_REG: the register's bytes, as many as its id says."""
        value = ffi.new(_BYTES, register_size(identifier))
        self._one_reg(lib.KVM_GET_ONE_REG, identifier, value)
        return bytes(ffi.buffer(value))

    def set_one_reg(self, identifier: int, value: bytes) -> None:
        """KVM_SET_ONE_REG; ``value`` has to be as long as the id says."""
        size = register_size(identifier)
        if len(value) != size:
            raise ValueError(f"register {identifier:#x} has {size} bytes, not {len(value)}")
        self._one_reg(lib.KVM_SET_ONE_REG, identifier, ffi.new(_BYTES, value))

    def _one_reg(self, request: int, identifier: int, value: Any) -> None:
        self.ioctl(request, ffi.new(_ONE_REG, (identifier, int(ffi.cast(_ADDRESS, value)))))

    def reg_list(self) -> list[int]:
        """KVM_GET_REG_LIST: the ids of all registers of this vCPU."""
        empty = ffi.new("struct kvm_reg_list *", {"n": 0, "reg": 0})
        try:
            self.ioctl(lib.KVM_GET_REG_LIST, empty)
            return []
        except door.KvmError as error:
            if error.errno_name != "E2BIG":
                raise
        full = ffi.new("struct kvm_reg_list *", {"n": empty.n, "reg": int(empty.n)})
        self.ioctl(lib.KVM_GET_REG_LIST, full)
        return list(full.reg[0 : full.n])

    def close(self) -> None:
        """Unmap kvm_run and close the vCPU."""
        if not self._map.closed:
            ffi.release(self._buffer)
            self.page.release()
            self._map.close()
        super().close()
