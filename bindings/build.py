# SPDX-License-Identifier: Apache-2.0
"""Builds vmm._kvm: cffi bindings to the KVM uapi (out of line, API mode, stable ABI) with the C shim.

The C compiler checks every declaration of cdef/ against the installed <linux/kvm.h> and <asm/kvm.h>;
newer.h supplies what the installed header is too old for. setup.py uses ``ffibuilder``; run as a
program, this writes the generated C source for another architecture, to be compiled elsewhere:

    python3 bindings/build.py --arch aarch64 --emit out.c
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

from cffi import FFI

__all__ = ["ARCHITECTURES", "builder", "ffibuilder"]

HERE = Path(__file__).resolve().parent
ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
MODULE = "vmm._kvm"


def builder(machine: str) -> FFI:
    """Return the FFI whose module serves ``machine`` (a key of ARCHITECTURES)."""
    try:
        arch = ARCHITECTURES[machine]
    except KeyError:
        raise SystemExit(f"bindings: {machine} is neither of {', '.join(ARCHITECTURES)}") from None
    ffi = FFI()
    for part in ("common", arch, "shim"):
        ffi.cdef((HERE / "cdef" / f"{part}.h").read_text())
    # The shim is included, not linked, so that one generated file compiles anywhere with -I bindings.
    ffi.set_source(MODULE, '#include "shim.c"\n', include_dirs=[str(HERE)], py_limited_api=True)
    return ffi


ffibuilder = builder(platform.machine())


def main() -> None:
    """Write the generated C source of one architecture."""
    parser = argparse.ArgumentParser(description="write the C source of the bindings")
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), default=platform.machine())
    parser.add_argument("--emit", metavar="OUT.c", required=True)
    arguments = parser.parse_args()
    builder(arguments.arch).emit_c_code(arguments.emit)


if __name__ == "__main__":
    main()
