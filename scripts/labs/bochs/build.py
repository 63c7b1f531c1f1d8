# SPDX-License-Identifier: Apache-2.0
"""Build Bochs from Debian's source package and the patches in `series/`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ..cache import Cache
from ..config import BOCHS_SUITE, BOCHS_VERSION
from ..errors import LabError, require_tool, run_tool
from ..hostroot import host_arch
from ..packages import Archive

__all__ = ["SERIES", "build_bochs", "patch_body"]

SERIES = Path(__file__).parent / "series"

_OPTIONS = (
    "--enable-cpu-level=6",
    "--enable-x86-64",
    "--enable-vmx=2",
    "--enable-svm",
    "--enable-avx",
    "--enable-evex",
    "--enable-amx",
    "--enable-cet",
    "--enable-uintr",
    "--enable-protection-keys",
    "--enable-memtype",
    "--enable-x86-debugger",
    "--enable-monitor-mwait",
    "--enable-alignment-check",
    "--enable-configurable-msrs",
    "--enable-all-optimizations",
    "--enable-long-phy-address",
    "--enable-pci",
    "--enable-assert-checks=no",
    "--enable-stats=no",
    "--disable-docbook",
    "--disable-plugins",
    "--disable-debugger",
    "--disable-gameport",
    "--with-nogui",
    "--without-x",
    "--without-x11",
)
_FLAGS = "-O3 -fomit-frame-pointer"


def patch_body(patch: str) -> str:
    """Return the part of a patch that changes something, without the description before it."""
    start = patch.find("\ndiff --git ")
    if start < 0:
        raise LabError("A file in the patch series holds no 'diff --git' line; restore it from git.")
    return patch[start + 1 :]


def build_bochs(cache: Cache, processors: int = 1) -> Path:
    """Return the emulator's executable file; for more than one processor it is built for that, and slower."""
    options = (*_OPTIONS, "--enable-smp") if processors > 1 else _OPTIONS
    patches = sorted(SERIES.glob("*.patch"))
    # A better description of a fault is not a reason to rebuild, so only what is applied is in the key.
    bodies = [hashlib.sha256(patch_body(patch.read_text()).encode()).hexdigest() for patch in patches]

    def make(folder: Path) -> None:
        with cache.scratch("bochs-") as work:
            source = _unpack(cache, work, folder)
            for patch in patches:
                run_tool(
                    ["patch", "-d", source, "-p1", "--silent", "--fuzz=0", "-i", patch],
                    f"Applying {patch.name} to Bochs",
                )
            _compile(source, work, options)
            os.rename(work / "build/bochs", folder / "bochs")

    inputs = [BOCHS_VERSION, bodies, options, _FLAGS, host_arch()]
    return cache.build("bochs", inputs, make, "building Bochs (one to two minutes)") / "bochs"


def _unpack(cache: Cache, work: Path, entry: Path) -> Path:
    for tool, package in (
        ("g++", "g++"),
        ("make", "make"),
        ("patch", "patch"),
        ("tar", "tar"),
        ("xz", "xz-utils"),
    ):
        require_tool(tool, package)
    archive = Archive(cache, BOCHS_SUITE, host_arch(), sources=True)
    tarball = archive.source_tarball("bochs", BOCHS_VERSION, work)
    digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
    cache.manifest(entry, [{"source": "bochs", "version": BOCHS_VERSION, "suite": BOCHS_SUITE, "sha256": digest}])
    source = work / "source"
    source.mkdir()
    run_tool(["tar", "-xf", tarball, "-C", source, "--strip-components=1"], "Unpacking Bochs")
    return source


def _compile(source: Path, work: Path, options: tuple[str, ...]) -> None:
    build = work / "build"
    build.mkdir()
    environment = {"CFLAGS": _FLAGS, "CXXFLAGS": _FLAGS}
    run_tool([source / "configure", *options], "Configuring Bochs", cwd=build, env=environment)
    run_tool(["make", f"-j{os.cpu_count() or 1}"], "Compiling Bochs", cwd=build, env=environment)
    run_tool(["strip", "bochs"], "Stripping Bochs", cwd=build)
