# SPDX-License-Identifier: Apache-2.0
"""The one door to the kernel: every ioctl, prctl and KVM_RUN of this package passes here.

A failure becomes a :class:`KvmError` that names the call and the errno and says what they usually mean
together. :class:`Trace` keeps what passed; :func:`interpose` puts a function between the caller and the
kernel, which is how the tests build a kernel that lies. With neither, the door is one call into C.
"""

from __future__ import annotations

import errno as errno_module
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from vmm._kvm import ffi, lib

__all__ = [
    "NULL",
    "PR_SVE_GET_VL",
    "PR_SVE_SET_VL",
    "Batch",
    "Call",
    "HostError",
    "Interposer",
    "KvmError",
    "Refused",
    "Trace",
    "arch_prctl",
    "arch_prctl_value",
    "errno_name",
    "interpose",
    "ioctl",
    "ioctl_value",
    "prctl",
    "request_name",
    "run",
    "set_trace",
]

NULL = ffi.NULL

_PRCTLS = ("ARCH_GET_XCOMP_SUPP", "ARCH_GET_XCOMP_PERM", "ARCH_REQ_XCOMP_PERM",
           "ARCH_GET_XCOMP_GUEST_PERM", "ARCH_REQ_XCOMP_GUEST_PERM")  # fmt: skip
# prctl options of an arm64 process, uapi linux/prctl.h.
PR_SVE_SET_VL, PR_SVE_GET_VL = 50, 51
_ARM64_PRCTLS = {PR_SVE_SET_VL: "PR_SVE_SET_VL", PR_SVE_GET_VL: "PR_SVE_GET_VL"}

# What an errno of a call usually means; the errno's own text where nothing better is known.
_MEANINGS = {
    ("KVM_CREATE_VM", "EBUSY"): "another hypervisor holds the virtualization extensions",
    ("KVM_CREATE_VM", "ENOMEM"): "no memory for another virtual machine",
    ("KVM_CREATE_VCPU", "EEXIST"): "this VM already has a vCPU of that id",
    ("KVM_CREATE_VCPU", "EINVAL"): "the vCPU id is not below KVM_CAP_MAX_VCPU_ID",
    ("KVM_SET_CPUID2", "EPERM"): "it names a dynamic xfeature that this process has no guest permission for",
    ("KVM_SET_CPUID2", "EINVAL"): "the vCPU has run with another CPUID, or the table is inconsistent",
    ("KVM_SET_CPUID2", "E2BIG"): "the table has more entries than KVM takes",
    ("KVM_GET_SUPPORTED_CPUID", "E2BIG"): "the table is too small for what KVM supports",
    ("KVM_GET_XSAVE", "EINVAL"): "this vCPU's area is larger than 4096 bytes: KVM_GET_XSAVE2 is the call",
    ("KVM_SET_XSAVE", "EINVAL"): "the area names a component this vCPU may not have, or its header is malformed",
    ("KVM_SET_XSAVE", "EFAULT"): "the buffer is shorter than the vCPU's area",
    ("KVM_SET_XCRS", "EINVAL"): "XCR0 is not a valid combination within the guest's CPUID leaf 0xD",
    ("KVM_SET_SREGS", "EINVAL"): "the control registers contradict each other or the guest's CPUID",
    ("KVM_SET_SREGS2", "EINVAL"): "the control registers contradict each other or the guest's CPUID",
    ("KVM_RUN", "EFAULT"): "the guest touched memory that no memslot backs with usable host memory",
    ("KVM_RUN", "EPERM"): "the vCPU is not finalized",
    ("KVM_RUN", "ENOEXEC"): "the vCPU is not initialised",
    ("KVM_GET_ONE_REG", "ENOENT"): "this vCPU has no such register",
    ("KVM_SET_ONE_REG", "ENOENT"): "this vCPU has no such register",
    ("ARCH_REQ_XCOMP_GUEST_PERM", "EBUSY"): "this process has created a vCPU, which froze its permissions",
    ("ARCH_REQ_XCOMP_GUEST_PERM", "EOPNOTSUPP"): "this CPU or kernel has no such dynamic xfeature",
}  # fmt: skip


_NO_TIMER = (
    "no guest runs without the timer of its deadline; raise the limit of pending signals (ulimit -i), "
    "or allow timer_create and timer_settime in the process's seccomp policy"
)


def errno_name(number: int) -> str:
    """Return the name of an errno, such as ``EINVAL``."""
    return errno_module.errorcode.get(number, f"errno {number}")


@cache
def _request_names() -> dict[int, str]:
    names = {}
    for name in dir(lib):
        if name.startswith("KVM_"):
            value = getattr(lib, name)
            # _IOC type 0xAE, and no capability, exit reason or register id.
            if isinstance(value, int) and value >> 8 & 0xFF == 0xAE and value < 1 << 32:
                names[value] = name
    return names


def request_name(request: int) -> str:
    """Return the name of an ioctl request number, such as ``KVM_GET_XSAVE2``."""
    return _request_names().get(request, f"ioctl {request:#x}")


@cache
def _prctl_names() -> dict[int, str]:
    return {getattr(lib, name): name for name in _PRCTLS if hasattr(lib, name)}


class KvmError(OSError):
    """A call that the kernel refused: ``call`` and ``errno`` by name, and what they usually mean."""

    def __init__(self, call: str, errno: int) -> None:
        self.call = call
        self.errno_name = errno_name(errno)
        meaning = _MEANINGS.get((call, self.errno_name), os.strerror(errno))
        super().__init__(errno, f"{call} failed with {self.errno_name}: {meaning}")

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.call, self.errno)


class HostError(OSError):
    """What this process may not do or has used up: a call of the host's that failed, and no answer of KVM's."""

    def __init__(self, call: str, errno: int, hint: str) -> None:
        super().__init__(errno, f"{call} failed with {errno_name(errno)}: {hint}")

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(slots=True)
class Call:
    """One call at the door: ``kind`` is ioctl, arch_prctl, prctl or run; ``argument`` a cdata or a number."""

    kind: str
    fd: int
    request: int
    argument: Any

    @property
    def name(self) -> str:
        """The call's name, such as KVM_SET_XCRS or ARCH_REQ_XCOMP_GUEST_PERM."""
        if self.kind == "arch_prctl":
            return _prctl_names().get(self.request, f"arch_prctl {self.request:#x}")
        if self.kind == "prctl":
            return _ARM64_PRCTLS.get(self.request, f"prctl {self.request}")
        return request_name(self.request)


class Refused(LookupError):
    """KVM answered, and refused one item of what was asked, such as an MSR: no errno says so."""


Interposer = Callable[[Call, Callable[[], int]], int]


# The type of cdata that owns its memory. Anything else may be a bad address on purpose, and is never read.
_OWNING = type(ffi.new("int *"))
_SHOWN = 32  # bytes of an argument that a trace keeps


class Trace:
    """The last calls that passed the door, oldest first; ``lines()`` renders them."""

    def __init__(self, length: int = 64) -> None:
        self._calls: deque[tuple[str, int, Any, bytes, int]] = deque(maxlen=length)
        self.count = 0

    def record(self, kind: str, request: int, argument: Any, result: int) -> None:
        """Remember one call and its result (negative: -errno). Names are for lines(): this runs at every call."""
        self.count += 1
        owned = type(argument) is _OWNING
        bare = not owned and (isinstance(argument, int) or argument == NULL)
        kept = argument if bare else ffi.typeof(argument)
        self._calls.append((kind, request, kept, ffi.buffer(argument)[:_SHOWN] if owned else b"", result))

    def record_batch(self, rows: Sequence[tuple[int, Any, int]], results: Sequence[Any]) -> None:
        """Remember calls that were made together: those that would still be kept, had each been by itself."""
        first = max(0, len(rows) - (self._calls.maxlen or 0))
        self.count += first
        for (request, argument, _), call in zip(rows[first:], results[first : len(rows)], strict=True):
            self.record("ioctl", request, argument, call.result)

    def add(self, call: Call, result: int) -> None:
        """Remember one call as an interposer saw it."""
        self.record(call.kind, call.request, call.argument, result)

    def lines(self) -> list[str]:
        """Return one line per call, as strace would write it."""
        lines = [
            f"{Call(kind, -1, request, None).name}({_argument_text(kept, data)}) = {_result_text(result)}"
            for kind, request, kept, data, result in self._calls
        ]
        hidden = self.count - len(self._calls)
        return [f"... {hidden} earlier calls", *lines] if hidden else lines


def _argument_text(kept: Any, data: bytes) -> str:
    if isinstance(kept, int):
        return f"{kept:#x}" if kept else ""
    if kept == NULL:
        return "NULL"
    small = kept.kind == "pointer" and kept.item.kind in ("struct", "primitive") and ffi.sizeof(kept.item) <= _SHOWN
    return f"{kept.item.cname} {data.hex(' ', 4)}" if small and data else str(kept.cname)


def _result_text(result: int) -> str:
    return f"-1 {errno_name(-result)}" if result < 0 else str(result)


_trace: Trace | None = None
_interposers: list[Interposer] = []


def _observe(call: Call, enter: Callable[[], int]) -> int:
    proceed = enter
    for interposer in _interposers:
        proceed = _wrap(interposer, call, proceed)
    result = proceed()
    if _trace is not None:
        _trace.add(call, result)
    return result


def _wrap(interposer: Interposer, call: Call, proceed: Callable[[], int]) -> Callable[[], int]:
    return lambda: interposer(call, proceed)


def _observed_ioctl(fd: int, request: int, argument: Any) -> int:
    if not _interposers and _trace is not None:
        result: int = lib.vmm_ioctl(fd, request, argument)
        _trace.record("ioctl", request, argument, result)
        return result
    return _observe(Call("ioctl", fd, request, argument), lambda: lib.vmm_ioctl(fd, request, argument))


def _observed_value(fd: int, request: int, argument: int) -> int:
    if not _interposers and _trace is not None:
        result: int = lib.vmm_ioctl_value(fd, request, argument)
        _trace.record("ioctl", request, argument, result)
        return result
    return _observe(Call("ioctl", fd, request, argument), lambda: lib.vmm_ioctl_value(fd, request, argument))


def _observed_run(control: Any) -> int:
    return _observe(Call("run", control.fd, lib.KVM_RUN, control), lambda: lib.vmm_run(control))


_enter_ioctl: Callable[[int, int, Any], int] = lib.vmm_ioctl
_enter_value: Callable[[int, int, int], int] = lib.vmm_ioctl_value
_enter_run: Callable[[Any], int] = lib.vmm_run


def _choose_entries() -> None:
    """Use the observed entries only while somebody observes."""
    global _enter_ioctl, _enter_value, _enter_run
    if _trace is None and not _interposers:
        _enter_ioctl, _enter_value, _enter_run = lib.vmm_ioctl, lib.vmm_ioctl_value, lib.vmm_run
    else:
        _enter_ioctl, _enter_value, _enter_run = _observed_ioctl, _observed_value, _observed_run


def set_trace(trace: Trace | None) -> None:
    """Record every following call in ``trace``; None stops recording."""
    global _trace
    _trace = trace
    _choose_entries()


@contextmanager
def interpose(interposer: Interposer) -> Iterator[None]:
    """Let ``interposer(call, proceed)`` answer every call inside the block; ``proceed()`` asks the kernel.

    It returns what the kernel would: a result, or -errno. Memory behind ``call.argument`` may be changed
    before or after proceeding. The latest interposer is the outermost.
    """
    _interposers.append(interposer)
    _choose_entries()
    try:
        yield
    finally:
        _interposers.remove(interposer)
        _choose_entries()


def ioctl(fd: int, request: int, argument: Any = NULL) -> int:
    """Call ioctl(fd, request, pointer) and return its result; raise KvmError if it fails."""
    result = _enter_ioctl(fd, request, argument)
    if result < 0:
        raise KvmError(request_name(request), -result)
    return result


class Batch:
    """Calls of one descriptor that are made in order, as often as wanted, at the price of one.

    ``rows`` are (request, argument, result that it has to have, negative for any success). ``calls`` is the
    ``struct vmm_call[]`` that holds each call's ``result``.
    """

    def __init__(self, rows: Sequence[tuple[int, Any, int]]) -> None:
        self._rows = rows  # they own the arguments
        self.calls = ffi.new("struct vmm_call[]", rows)

    def __len__(self) -> int:
        return len(self._rows)

    def run(self, fd: int, start: int = 0, stop: int | None = None) -> int:
        """Make the calls from ``start`` to ``stop``; return the number of the first that went otherwise, or ``stop``.

        While somebody interposes, each call passes the door by itself.
        """
        end = len(self._rows) if stop is None else stop
        if not _interposers:
            reached = start + int(lib.vmm_ioctls(fd, self.calls + start, end - start))
            if _trace is not None:
                _trace.record_batch(self._rows[start : reached + 1][: end - start], self.calls[start:end])
            return reached
        for number in range(start, end):
            request, argument, wanted = self._rows[number]
            result = self.calls[number].result = _enter_ioctl(fd, request, argument)
            if result < 0 or 0 <= wanted != result:
                return number
        return end


def ioctl_value(fd: int, request: int, argument: int = 0) -> int:
    """Call ioctl(fd, request, number) and return its result; raise KvmError if it fails."""
    result = _enter_value(fd, request, argument)
    if result < 0:
        raise KvmError(request_name(request), -result)
    return result


def run(control: Any) -> int:
    """Run the loop of one ``struct vmm_run_control`` and return a VMM_RUN_* reason; KvmError on failure.

    Raises HostError where the process gets no timer for the deadline: no guest runs without one.
    """
    result = _enter_run(control)
    if result < 0:
        if control.no_timer:
            raise HostError("timer_create", -result, _NO_TIMER)
        raise KvmError("KVM_RUN", -result)
    return result


def _prctl(code: int, argument: Any, enter: Callable[[], int], kind: str = "arch_prctl") -> int:
    call = Call(kind, -1, code, argument)
    result = _observe(call, enter)
    if result < 0:
        raise KvmError(call.name, -result)
    return result


def arch_prctl(code: int, argument: Any) -> int:
    """Call arch_prctl(code, pointer) (x86); raise KvmError if it fails."""
    return _prctl(code, argument, lambda: int(lib.vmm_arch_prctl(code, argument)))


def arch_prctl_value(code: int, argument: int) -> int:
    """Call arch_prctl(code, number) (x86); raise KvmError if it fails."""
    return _prctl(code, argument, lambda: int(lib.vmm_arch_prctl_value(code, argument)))


def prctl(option: int, argument: int) -> int:
    """Call prctl(option, number) (arm64) and return its result; raise KvmError if it fails."""
    return _prctl(option, argument, lambda: int(lib.vmm_prctl(option, argument)), "prctl")
