# SPDX-License-Identifier: Apache-2.0
"""Builds the guest payloads: each ARCH/NAME.S with the shared runtime.S, to a static ELF with symbols.

python3 guest_payloads/build.py --out vmm/payloads [--arch aarch64 --cc aarch64-linux-gnu-gcc]
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
from pathlib import Path

__all__ = ["build"]

HERE = Path(__file__).resolve().parent
FOLDERS = {"x86_64": "x86", "aarch64": "arm64"}
# Shared code, not a payload of its own.
RUNTIME = "runtime"


def build(machine: str, compiler: list[str], out: Path) -> list[Path]:
    """Build all payloads of ``machine`` into ``out`` and return their paths."""
    folder = HERE / FOLDERS[machine]
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for source in sorted(folder.glob("*.S")):
        if source.stem == RUNTIME:
            continue
        target = out / f"{source.stem}.elf"
        flags = ["-nostdlib", "-static", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-n"]
        command = [*compiler, *flags, "-Wl,-T," + str(folder / "payload.ld"), "-Wa,--noexecstack"]
        subprocess.run([*command, str(folder / f"{RUNTIME}.S"), str(source), "-o", str(target)], check=True)
        made.append(target)
    return made


def main() -> None:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description="build the guest payloads")
    parser.add_argument("--arch", choices=sorted(FOLDERS), default=platform.machine())
    parser.add_argument("--cc", default=os.environ.get("CC", "gcc"), help="compiler (default $CC or gcc)")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    build(arguments.arch, shlex.split(arguments.cc), arguments.out)


if __name__ == "__main__":
    main()
