# SPDX-License-Identifier: Apache-2.0
"""What ptrace shows of this process."""

from __future__ import annotations

import os

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.kvm.ioctl import errno_name
from vmm.x86.xsave import XsaveArea

__all__ = ["traced_area"]

_AREA = 16384


def traced_area(context: Context) -> XsaveArea:
    """Return what PTRACE_GETREGSET shows of this process, asked by a child of it; skips where that may not ask."""
    return XsaveArea(_ask(context))


def _ask(context: Context) -> bytes:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        buffer = ffi.new("uint8_t[]", _AREA)
        length = lib.vmm_ptrace_xstate(os.getppid(), buffer, _AREA)
        os.write(writer, length.to_bytes(8, "little", signed=True) + bytes(ffi.buffer(buffer, max(length, 0))))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    os.waitpid(pid, 0)
    length = int.from_bytes(answer[:8], "little", signed=True)
    if length < 0:
        context.skip(f"needs a process that may trace its parent: PTRACE_SEIZE gives {errno_name(-length)}")
    return answer[8:]
