# SPDX-License-Identifier: Apache-2.0
"""Builds the kernel of the machine `sve` with all faults in its KVM, which is no module on arm64.

It is of the sources that Debian's kernel is of, with a configuration of our own (`sve.config`) that has little but
what a machine needs. A kernel without faults is built once, which takes a quarter of an hour on two cores. One with
faults takes a minute, in a copy of what that build left: only what has changed is compiled again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from labs.cache import Cache, hash_files
from labs.config import TOOL_SUITE
from labs.errors import LabError
from labs.hostroot import extract_closure, host_arch
from labs.packages import Archive
from labs.releases import find_release, parse_kernel

from tests.kernels.build import patched, read_sources
from tests.kernels.chroot import JOBS, run_in
from tests.kernels.source import source_package, unpacked
from tests.kernels.table import Fault

__all__ = [
    "OBJECTS",
    "ImageSource",
    "build_image",
    "find_image_source",
    "is_needed",
    "lay_out",
    "make",
    "missing_options",
]

#: the folders that faults may be in
TREES = ("arch/arm64/kvm", "virt/kvm")
#: the goal of make that compiles KVM alone
OBJECTS = "arch/arm64/kvm/"
_HERE = Path(__file__).parent
_OURS = (_HERE / "faults.c", _HERE / "faults.h")
_CONFIG = _HERE / "sve.config"
_KEPT, _BUILDS_KEPT = 4, 1
_TOOLS = (
    *("base-files", "bash", "bc", "binutils", "bison", "coreutils", "dash", "diffutils", "findutils", "flex"),
    *("gcc", "grep", "gzip", "libc6-dev", "make", "mawk", "perl-base", "sed"),
)
#: What no build of an arm64 kernel with this configuration reads, as patterns; and what it reads nevertheless.
_UNREAD = (
    *("Documentation/*", "LICENSES/*", "rust/*", "samples/*", "sound/*", "tools/*", "arch/*"),
    *(f"drivers/{name}/*" for name in ("gpu", "infiniband", "media", "scsi", "staging", "usb")),
    *("drivers/net/ethernet/*", "drivers/net/wireless/*"),
)
_READ = (
    *("*/Kconfig*", "*/Kbuild*", "*/Makefile*", "arch/arm64/*", "arch/arm/include/*", "tools/include/*"),
    *("tools/scripts/*", "arch/x86/entry/syscalls/*"),
)
#: What is added to the Makefile of KVM: nothing is recompiled elsewhere, and all below has the header.
_MAKEFILE = "\nsubdir-ccflags-y += -include $(srctree)/arch/arm64/kvm/faults.h\nkvm-y += faults.o\n"


class ImageSource:
    """The source of a kernel of arm64, and what it is built with."""

    def __init__(self, cache: Cache, archive: Archive, release: str) -> None:
        self.cache = cache
        self.release = release
        self._archive = archive
        image = archive.candidate(f"linux-image-{release}")
        self.package = source_package(archive, ".".join(release.split(".")[:2]), image)

    @property
    def folder(self) -> Path:
        """The folder with the source, unpacked if need be but for what is not read."""
        return unpacked(self.cache, self._archive, self.package, "kernel-source", [_UNREAD, _READ], is_needed)

    def root(self) -> Path:
        """Return the extracted packages that the kernel is built with."""
        names = [*_TOOLS, *([] if host_arch() == "arm64" else ["gcc-aarch64-linux-gnu"])]
        return extract_closure(self.cache, TOOL_SUITE, host_arch(), names)


def find_image_source(cache: Cache, kernel: str) -> ImageSource:
    """Return the source of the kernel that `sve` runs; ``kernel`` as `releases.parse_kernel` takes it."""
    named = parse_kernel(kernel)
    archive = Archive(cache, named.suite, "arm64")
    return ImageSource(cache, archive, find_release(archive, named))


def is_needed(path: str) -> bool:
    """Tell whether a file of the kernel's source is read when the kernel is built."""
    return any(fnmatch(path, pattern) for pattern in _READ) or not any(fnmatch(path, pattern) for pattern in _UNREAD)


def build_image(source: ImageSource, faults: Sequence[Fault]) -> tuple[Path, dict[str, str]]:
    """Return the kernel's Image, and the faults that have no place in its source with the reason."""
    originals = read_sources(source.folder, faults)
    texts, unplaced = patched(originals, faults)
    changed = {file: text for file, text in texts.items() if text != originals[file]}
    root = source.root()
    built = _build_without(source, root)

    def copy(folder: Path) -> None:
        with source.cache.scratch("image-") as scratch:
            tree = lay_out(source, root, scratch)
            for file, text in changed.items():
                (tree / file).write_text(text)
            make(source, root, scratch, "Image")
            shutil.copy(scratch / "build/arch/arm64/boot/Image", folder / "Image")

    what = f"building Linux {source.release} with faults"
    image = source.cache.build("kvm-image", [built.name, sorted(changed.items())], copy, what)
    source.cache.prune("kvm-image", keep=_KEPT)
    return image / "Image", unplaced


def _build_without(source: ImageSource, root: Path) -> Path:
    """Return the folder in which a kernel without faults has been built."""

    def build(folder: Path) -> None:
        with source.cache.scratch("build-") as scratch:
            (scratch / "build").mkdir()
            _copy_trees(source, scratch)
            shutil.copy(_CONFIG, scratch / "build/ours")
            make(source, root, scratch, "allnoconfig", "KCONFIG_ALLCONFIG=/tmp/out/ours")
            missing = missing_options(_CONFIG.read_text(), (scratch / "build/.config").read_text())
            if missing:
                raise LabError(f"Linux {source.release} cannot be built with {', '.join(missing)}; see {_CONFIG}.")
            make(source, root, scratch, "Image")
            # The empty folder of the entry is replaced by what was built.
            os.rename(scratch / "build", folder)

    inputs = [source.folder.name, root.name, _CONFIG.read_text(), _MAKEFILE, hash_files(_OURS, _HERE)]
    built = source.cache.build("kernel-build", inputs, build, f"building Linux {source.release}")
    source.cache.prune("kernel-build", keep=_BUILDS_KEPT)
    return built


def missing_options(wanted: str, got: str) -> list[str]:
    """Return the lines of a configuration that another one does not have."""
    has = set(got.splitlines())
    return [line for line in wanted.splitlines() if line and not line.startswith("#") and line not in has]


def lay_out(source: ImageSource, root: Path, scratch: Path) -> Path:
    """Make a copy of a build without faults and of KVM's sources in a folder; return where the sources are."""
    shutil.copytree(_build_without(source, root), scratch / "build", symlinks=True)
    _copy_trees(source, scratch)
    return scratch


def _copy_trees(source: ImageSource, scratch: Path) -> None:
    for tree in TREES:
        shutil.copytree(source.folder / tree, scratch / tree, symlinks=True)
    _add_ours(scratch / TREES[0])


def make(source: ImageSource, root: Path, scratch: Path, *words: str, flags: str = "") -> None:
    """Run make with goals and other words, and flags for the compiler, where a folder's sources are KVM's."""
    mounts = [(source.folder, "tmp/src"), (scratch / "build", "tmp/out")]
    mounts += [(scratch / tree, f"tmp/src/{tree}") for tree in TREES]
    cross = [] if host_arch() == "arm64" else ["CROSS_COMPILE=aarch64-linux-gnu-"]
    extra = [f"KCFLAGS={flags}"] if flags else []
    command = ["make", "-s", "-C", "/tmp/src", "O=/tmp/out", "ARCH=arm64", *cross, *extra, f"-j{JOBS}", *words]
    run_in(root, mounts, command, f"Building Linux {source.release}", scratch / "log")


def _add_ours(kvm: Path) -> None:
    """Add our files to KVM's, as old as all are: make compiles what is newer than what it has made of it."""
    makefile = kvm / "Makefile"
    with open(makefile, "a") as stream:
        stream.write(_MAKEFILE)
    for ours in _OURS:
        shutil.copy(ours, kvm)
    for path in (makefile, *(kvm / ours.name for ours in _OURS)):
        os.utime(path, (0, 0))
