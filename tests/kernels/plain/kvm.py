# SPDX-License-Identifier: Apache-2.0
"""KVM's calls, as a plain program makes them: numbers, bytes and error numbers."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import struct
from types import FrameType

#: name -> (direction: 0 none, 1 from user space, 2 to user space, 3 both; number; size)
CALLS = {
    "CREATE_VM": (0, 0x01, 0),
    "GET_MSR_INDEX_LIST": (3, 0x02, 4),
    "CHECK_EXTENSION": (0, 0x03, 0),
    "GET_VCPU_MMAP_SIZE": (0, 0x04, 0),
    "GET_SUPPORTED_CPUID": (3, 0x05, 8),
    "GET_EMULATED_CPUID": (3, 0x09, 8),
    "GET_MSR_FEATURE_INDEX_LIST": (3, 0x0A, 4),
    "CREATE_VCPU": (0, 0x41, 0),
    "SET_USER_MEMORY_REGION": (1, 0x46, 32),
    "SET_TSS_ADDR": (0, 0x47, 0),
    "CREATE_IRQCHIP": (0, 0x60, 0),
    "GET_IRQCHIP": (3, 0x62, 520),
    "SET_CLOCK": (1, 0x7B, 48),
    "GET_CLOCK": (2, 0x7C, 48),
    "RUN": (0, 0x80, 0),
    "GET_REGS": (2, 0x81, 144),
    "SET_REGS": (1, 0x82, 144),
    "GET_SREGS": (2, 0x83, 312),
    "SET_SREGS": (1, 0x84, 312),
    "TRANSLATE": (3, 0x85, 24),
    "INTERRUPT": (1, 0x86, 4),
    "GET_MSRS": (3, 0x88, 8),
    "SET_MSRS": (1, 0x89, 8),
    "SET_CPUID": (1, 0x8A, 8),
    "GET_FPU": (2, 0x8C, 416),
    "SET_FPU": (1, 0x8D, 416),
    "GET_LAPIC": (2, 0x8E, 1024),
    "SET_LAPIC": (1, 0x8F, 1024),
    "SET_CPUID2": (1, 0x90, 8),
    "GET_CPUID2": (3, 0x91, 8),
    "TPR_ACCESS_REPORTING": (3, 0x92, 40),
    "SET_VAPIC_ADDR": (1, 0x93, 8),
    "GET_MP_STATE": (2, 0x98, 4),
    "SET_MP_STATE": (1, 0x99, 4),
    "NMI": (0, 0x9A, 0),
    "SET_GUEST_DEBUG": (1, 0x9B, 72),
    "X86_SETUP_MCE": (1, 0x9C, 8),
    "X86_GET_MCE_CAP_SUPPORTED": (2, 0x9D, 8),
    "X86_SET_MCE": (1, 0x9E, 64),
    "GET_VCPU_EVENTS": (2, 0x9F, 64),
    "SET_VCPU_EVENTS": (1, 0xA0, 64),
    "GET_DEBUGREGS": (2, 0xA1, 128),
    "SET_DEBUGREGS": (1, 0xA2, 128),
    "SET_TSC_KHZ": (0, 0xA2, 0),
    "GET_TSC_KHZ": (0, 0xA3, 0),
    "ENABLE_CAP": (1, 0xA3, 104),
    "GET_XSAVE": (2, 0xA4, 4096),
    "SET_XSAVE": (1, 0xA5, 4096),
    "GET_XCRS": (2, 0xA6, 392),
    "SET_XCRS": (1, 0xA7, 392),
    "GET_ONE_REG": (1, 0xAB, 16),
    "SET_ONE_REG": (1, 0xAC, 16),
    "KVMCLOCK_CTRL": (0, 0xAD, 0),
    "GET_REG_LIST": (3, 0xB0, 8),
    "SMI": (0, 0xB7, 0),
    "GET_NESTED_STATE": (3, 0xBE, 128),
    "SET_NESTED_STATE": (1, 0xBF, 128),
    "X86_SET_MSR_FILTER": (1, 0xC6, 392),
    "GET_SREGS2": (2, 0xCC, 320),
    "SET_SREGS2": (1, 0xCD, 320),
    "GET_XSAVE2": (2, 0xCF, 4096),
    "SET_DEVICE_ATTR": (1, 0xE1, 24),
    "GET_DEVICE_ATTR": (1, 0xE2, 24),
    "HAS_DEVICE_ATTR": (1, 0xE3, 24),
}
#: How long a guest may run, in seconds; an emulated machine is slow.
PATIENCE = 0.5


class TooLong(Exception):
    """A call did not return in time."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise TooLong


def call(fd: int, name: str, argument: int | bytearray = 0) -> int | str:
    """Make a call; return what it returns, or the name of the error."""
    direction, number, size = CALLS[name]
    request = direction << 30 | size << 16 | 0xAE << 8 | number
    if name == "RUN":
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        return (
            fcntl.ioctl(fd, request, argument)
            if isinstance(argument, int)
            else fcntl.ioctl(fd, request, argument, True)
        )
    except TooLong:
        return "too long"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    finally:
        if name == "RUN":
            signal.setitimer(signal.ITIMER_REAL, 0)


class Vm:
    """A VM with two MiB of memory at 0."""

    MEMORY = 2 << 20

    def __init__(self, *, irqchip: bool = False) -> None:
        self.kvm = os.open("/dev/kvm", os.O_RDWR)
        made = call(self.kvm, "CREATE_VM")
        if isinstance(made, str):
            raise OSError(made)
        self.fd = made
        self.memory = mmap.mmap(-1, self.MEMORY)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        call(self.fd, "SET_TSS_ADDR", 0x7FFBD000)
        if irqchip:
            call(self.fd, "CREATE_IRQCHIP")
        region = struct.pack("<IIQQQ", 0, 0, 0, self.MEMORY, address)
        call(self.fd, "SET_USER_MEMORY_REGION", bytearray(region))

    def enable(self, capability: int, *arguments: int) -> int | str:
        words = [*arguments, 0, 0, 0, 0][:4]
        return call(self.fd, "ENABLE_CAP", bytearray(struct.pack("<II4Q64x", capability, 0, *words)))


class Vcpu:
    """A vCPU; `get` and `set` are of the structures by their names, which are those of the calls without GET_."""

    def __init__(self, vm: Vm, number: int = 0, *, cpuid: bool = True) -> None:
        made = call(vm.fd, "CREATE_VCPU", number)
        if isinstance(made, str):
            raise OSError(made)
        self.vm, self.fd = vm, made
        size = call(vm.kvm, "GET_VCPU_MMAP_SIZE")
        self.run_area = mmap.mmap(self.fd, size if isinstance(size, int) else 4096)
        if cpuid:
            self.call("SET_CPUID2", bytearray(supported_cpuid(vm.kvm)))

    def call(self, name: str, argument: int | bytearray = 0) -> int | str:
        return call(self.fd, name, argument)

    def get(self, name: str) -> tuple[int | str, bytes]:
        size = CALLS[f"GET_{name}"][2]
        if name == "NESTED_STATE":
            size += 8192
        # What the kernel does not write shows as this pattern.
        data = bytearray(b"\xa5" * size)
        if name == "NESTED_STATE":
            struct.pack_into("<HHI", data, 0, 0, 0, size)
        return self.call(f"GET_{name}", data), bytes(data)

    def set(self, name: str, data: bytes | bytearray) -> int | str:
        return self.call(f"SET_{name}", bytearray(data))

    def get_msr(self, index: int) -> tuple[int | str, int]:
        data = bytearray(struct.pack("<IIIIQ", 1, 0, index, 0, 0xA5A5A5A5A5A5A5A5))
        done = self.call("GET_MSRS", data)
        return done, struct.unpack_from("<Q", data, 16)[0]

    def set_msr(self, index: int, value: int) -> int | str:
        return self.call("SET_MSRS", bytearray(struct.pack("<IIIIQ", 1, 0, index, 0, value)))

    def exit(self) -> int:
        """Which reason the last run ended with."""
        return int(struct.unpack_from("<I", self.run_area, 8)[0])


def _listed(fd: int, name: str, entry: int, count: int) -> tuple[int | str, bytes]:
    header = CALLS[name][2]
    data = bytearray(header + entry * count)
    struct.pack_into("<I", data, 0, count)
    done = call(fd, name, data)
    found = struct.unpack_from("<I", data, 0)[0]
    return done, bytes(data[: header + entry * min(found, count)])


def supported_cpuid(kvm: int, name: str = "GET_SUPPORTED_CPUID", count: int = 256) -> bytes:
    """Return a struct kvm_cpuid2."""
    return _listed(kvm, name, 40, count)[1]


def msr_list(kvm: int, name: str, count: int = 1024) -> list[int]:
    _, data = _listed(kvm, name, 4, count)
    return [int(one[0]) for one in struct.iter_unpack("<I", data[4:])]


def feature_msr(kvm: int, index: int) -> tuple[int | str, int]:
    data = bytearray(struct.pack("<IIIIQ", 1, 0, index, 0, 0))
    return call(kvm, "GET_MSRS", data), struct.unpack_from("<Q", data, 16)[0]
