# SPDX-License-Identifier: Apache-2.0
"""The C compilers: the host's own for its architecture, an extracted cross compiler for the other one."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .cache import Cache, key_of
from .config import PYTHON_SUITE, PYTHON_VERSION, TOOL_SUITE
from .errors import require_tool, run_tool
from .hostroot import extract_closure, host_arch
from .packages import Archive

__all__ = ["MACHINE_NAMES", "Compiler", "find_compiler", "python_headers"]

#: Debian's name of an architecture -> the name in `uname -m` and in GNU triplets
MACHINE_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Compiler:
    """A C compiler for one architecture: `cc` is one executable file, `identity` changes when it does."""

    arch: str
    cc: str
    identity: str

    def compile(self, arguments: Sequence[str | Path], what: str, cwd: Path | None = None) -> None:
        """Run the compiler."""
        run_tool([self.cc, *arguments], what, cwd=cwd)


def find_compiler(cache: Cache, arch: str) -> Compiler:
    """Return the compiler for a Debian architecture, fetching a cross compiler for a foreign one."""
    if arch == host_arch():
        cc = require_tool("gcc", "gcc")
        version = run_tool([cc, "-dumpfullversion", "-dumpmachine"], "Asking the compiler for its version").decode()
        return Compiler(arch, cc, " ".join(version.split()))
    target = f"{MACHINE_NAMES[arch]}-linux-gnu"
    root = extract_closure(
        cache, TOOL_SUITE, host_arch(), [f"gcc-{target.replace('_', '-')}", f"libc6-dev-{arch}-cross"]
    )

    def make(folder: Path) -> None:
        _write_wrapper(folder, root, target)

    wrapper = cache.build("cross", [root.name, target], make, f"wrapping the {arch} compiler")
    return Compiler(arch, str(wrapper / "cc"), key_of(root.name))


def _write_wrapper(folder: Path, root: Path, target: str) -> None:
    """Write an executable `cc` that runs the extracted compiler with its libraries but the host's libc."""
    libraries = folder / "lib"
    libraries.mkdir()
    host_triplet = f"{MACHINE_NAMES[host_arch()]}-linux-gnu"
    for source in (root / "usr/lib" / host_triplet, root / "lib" / host_triplet):
        for library in sorted(source.glob("lib*.so*")) if source.is_dir() else []:
            if library.name.split(".so")[0] not in ("libc", "libm", "libdl", "libpthread", "librt"):
                (libraries / library.name).symlink_to(library)
    wrapper = folder / "cc"
    wrapper.write_text(
        "#!/bin/sh\n"
        f'here="{root}"\n'
        f'LD_LIBRARY_PATH="$(dirname "$0")/lib" exec "$here/usr/bin/{target}-gcc" --sysroot="$here" "$@"\n'
    )
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def python_headers(cache: Cache, arch: str) -> list[str]:
    """Return the compiler's options that find the headers of the machines' Python."""
    archive = Archive(cache, PYTHON_SUITE, arch)
    package = archive.candidate(f"libpython{PYTHON_VERSION}-dev")

    def make(folder: Path) -> None:
        with cache.scratch("headers-") as unpacked:
            archive.extract([package], unpacked)
            os.rename(unpacked / "usr/include", folder / "include")
        cache.manifest(folder, archive.describe([package]))

    include = cache.build("headers", package.deb, make, f"extracting Python's headers for {arch}") / "include"
    return [f"-I{include / f'python{PYTHON_VERSION}'}", f"-idirafter{include}"]
