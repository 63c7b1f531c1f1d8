# SPDX-License-Identifier: Apache-2.0
"""What is in the machines, in one place: edit here to add a Python package or a kernel."""

from __future__ import annotations

__all__ = [
    "BOCHS_SUITE",
    "BOCHS_VERSION",
    "CHECK",
    "DEFAULT_KERNEL",
    "KERNELS",
    "PYTHON_PACKAGES",
    "PYTHON_SUITE",
    "PYTHON_VERSION",
    "TOOL_SUITE",
]

#: The Debian packages in every machine; all they depend on follows by itself.
PYTHON_PACKAGES = (
    "python3",
    "python3-cffi-backend",
    "python3-click",
    "python3-rich",
    "python3-cbor2",
    "python3-zstandard",
)

#: The suite these come from, and the Python it has.
PYTHON_SUITE = "trixie"
PYTHON_VERSION = "3.13"

#: What a machine runs unless told otherwise. Emulated processors are slow: the clauses' limits are for real ones.
#: And the emulators have one thread for all of their processors, so that two clauses at once only take turns.
CHECK = ("vmm", "check", "--format", "json", "--time-scale", "20", "--jobs", "1")

#: kernel series -> the suite that has it, oldest first
KERNELS = {"6.1": "bookworm", "6.12": "trixie", "7.2": "sid"}
DEFAULT_KERNEL = "7.2"

#: The suite of what runs on the host: QEMU (7.2 is the fastest of three suites), cross compilers, unpackers.
#: They run on any host whose libc is at least as new.
TOOL_SUITE = "bookworm"

#: The source package that the patches in bochs/series are for, and the suite with it and its BIOS images.
BOCHS_SUITE = "trixie"
BOCHS_VERSION = "3.0+dfsg-1"
