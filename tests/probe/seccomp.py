# SPDX-License-Identifier: Apache-2.0
"""A seccomp policy for this process and its children, in which arch_prctl's XCOMP calls fail with an errno."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

__all__ = ["UNAVAILABLE", "deny_xcomp"]

# The exit status of a process that may not have a policy.
UNAVAILABLE = 77

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_ARCH_PRCTL = 158  # x86-64
_FIRST, _LAST = 0x1021, 0x1025  # ARCH_GET_XCOMP_SUPP to ARCH_REQ_XCOMP_GUEST_PERM
# Classic BPF: load a word of struct seccomp_data, jump if equal or if greater or equal, return.
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARGUMENT_AT = 0, 16
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000


def _program(number: int) -> bytes:
    rows = [
        (_LOAD, 0, 0, _NUMBER_AT),
        (_EQUAL, 0, 4, _ARCH_PRCTL),
        (_LOAD, 0, 0, _ARGUMENT_AT),
        (_AT_LEAST, 0, 2, _FIRST),
        (_AT_LEAST, 1, 0, _LAST + 1),
        (_RETURN, 0, 0, _ERRNO | number),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *row) for row in rows)


def deny_xcomp(number: int) -> None:
    """Have arch_prctl's XCOMP calls fail with errno ``number``, for ever; exits where that is not possible."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    program = ctypes.create_string_buffer(_program(number), 7 * 8)
    # struct sock_fprog: the number of instructions, padding, and where they are.
    header = ctypes.create_string_buffer(struct.pack("=H6xQ", 7, ctypes.addressof(program)), 16)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(header), 0, 0),
    ):
        if prctl(*arguments):
            reason = os.strerror(ctypes.get_errno() or errno.EINVAL)
            print(f"no seccomp policy can be set here: prctl {arguments[0]}: {reason}", file=sys.stderr)
            sys.exit(UNAVAILABLE)
