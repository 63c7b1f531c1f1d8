# SPDX-License-Identifier: Apache-2.0
"""Builds KVM's modules for the kernel of a machine, with all faults in them.

What Debian built the kernel with is fetched and extracted: headers, build tools, its compiler. Everything is kept in
the cache of the emulated machines, by what it is made from.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from labs.cache import Cache, hash_files
from labs.errors import LabError, run_tool
from labs.hostroot import extract_closure
from labs.kernels import Kernel, fetch_kernel
from labs.packages import Archive
from labs.releases import parse_kernel

from tests.kernels.chroot import JOBS, run_in
from tests.kernels.patch import Misplaced, apply
from tests.kernels.source import source_package, unpacked
from tests.kernels.table import Fault

__all__ = [
    "TREES",
    "Source",
    "build_modules",
    "find_source",
    "is_of_kvm",
    "lay_out",
    "make",
    "patched",
    "read_sources",
]

#: What is built, and what it includes from its own folders.
TREES = ("arch/x86/kvm", "virt/kvm", "virt/lib")
_HERE = Path(__file__).parent
_OURS = (_HERE / "faults.c", _HERE / "faults.h")
_MODULES = ("kvm", "kvm-intel", "kvm-amd")
_ARCH = "amd64"
#: What make runs, besides what the headers depend on.
_TOOLS = ("base-files", "bash", "binutils", "coreutils", "dash", "findutils", "grep", "make", "mawk", "sed")
_KEPT = 4


class Source:
    """KVM's sources of a kernel, and what they are built with."""

    def __init__(self, cache: Cache, kernel: Kernel, archive: Archive) -> None:
        self.cache = cache
        self.kernel = kernel
        self._archive = archive
        headers = archive.candidate(f"linux-headers-{kernel.release}")
        self.package = source_package(archive, ".".join(kernel.release.split(".")[:2]), headers)
        self.headers = headers.name

    @property
    def release(self) -> str:
        """The release of the kernel."""
        return self.kernel.release

    @property
    def folder(self) -> Path:
        """The folder with the trees, unpacked if need be."""
        return unpacked(self.cache, self._archive, self.package, "kvm-source", [TREES], is_of_kvm)

    def root(self) -> Path:
        """Return the extracted packages that the kernel is built with."""
        depends = self._archive.fields(self.headers).get("Depends", "")
        compilers = re.findall(r"\bgcc-\d+", depends)
        if not compilers:
            raise LabError(f"{self.headers} names no compiler among what it depends on: {depends}.")
        return extract_closure(self.cache, self._archive.suite, _ARCH, [self.headers, compilers[0], *_TOOLS])


def read_sources(folder: Path, faults: Iterable[Fault]) -> dict[str, str]:
    """Return the texts of the files that faults are in, where there are any, by their paths below the source."""
    files = sorted({edit.file for fault in faults for edit in fault.edits})
    return {file: (folder / file).read_text() for file in files if (folder / file).is_file()}


def find_source(cache: Cache, kernel: str) -> Source:
    """Return the sources of the kernel that a machine runs; ``kernel`` as `releases.parse_kernel` takes it."""
    found = fetch_kernel(cache, kernel, _ARCH)
    return Source(cache, found, Archive(cache, parse_kernel(kernel).suite, _ARCH))


def is_of_kvm(path: str) -> bool:
    """Tell whether a file is in one of the trees: the rest of the kernel's source is a hundred times as much."""
    return path.startswith(tuple(f"{tree}/" for tree in TREES))


def patched(sources: Mapping[str, str], faults: Sequence[Fault]) -> tuple[dict[str, str], dict[str, str]]:
    """Return sources with the faults in them, and the faults that have no place there with the reason, by name."""
    texts = dict(sources)
    unplaced: dict[str, str] = {}
    placed: list[Fault] = []
    for fault in faults:
        try:
            for edit in fault.edits:
                if edit.file not in sources:
                    raise Misplaced(f"no file {edit.file}")
                apply(sources[edit.file], [(fault.number, edit)])
        except Misplaced as error:
            unplaced[fault.name] = str(error)
        else:
            placed.append(fault)
    for file in {edit.file for fault in placed for edit in fault.edits}:
        edits = [(fault.number, edit) for fault in placed for edit in fault.edits if edit.file == file]
        texts[file] = apply(sources[file], edits)
    return texts, unplaced


def build_modules(source: Source, faults: Sequence[Fault]) -> tuple[Path, dict[str, str]]:
    """Return the folder with KVM's modules, and the faults that have no place in this kernel with the reason."""
    texts, unplaced = patched(read_sources(source.folder, faults), faults)
    root = source.root()

    def build(folder: Path) -> None:
        with source.cache.scratch("kvm-") as scratch:
            _compile(source, root, texts, scratch, folder)

    inputs = [root.name, source.package.deb, sorted(texts.items()), hash_files(_OURS, _HERE)]
    built = source.cache.build("kvm-modules", inputs, build, f"building KVM of {source.kernel.release}")
    source.cache.prune("kvm-modules", keep=_KEPT)
    return built, unplaced


def _compile(source: Source, root: Path, texts: Mapping[str, str], scratch: Path, folder: Path) -> None:
    """Build the modules and take them out of where they are built."""
    tree = lay_out(source, root, scratch)
    for file, text in texts.items():
        (tree / file).write_text(text)
    make(source, root, scratch)
    for name in _MODULES:
        run_tool(["strip", "-g", "-o", folder / f"{name}.ko", tree / TREES[0] / f"{name}.ko"], f"Stripping {name}.ko")


def lay_out(source: Source, root: Path, scratch: Path) -> Path:
    """Make a copy of the headers that has KVM's folders too, as the kernel's own tree has them; return that tree."""
    sources = scratch / "src"
    shutil.copytree(root / "usr/src", sources, symlinks=True)
    tree = _tree(scratch)
    shutil.copytree(source.folder, tree, dirs_exist_ok=True)
    kvm = tree / TREES[0]
    for ours in _OURS:
        shutil.copy(ours, kvm)
    with open(kvm / "Makefile", "a") as makefile:
        makefile.write("\nkvm-y += faults.o\n")
    return tree


def _tree(scratch: Path) -> Path:
    (tree,) = (scratch / "src").glob("linux-headers-*-common")
    return tree


def make(source: Source, root: Path, scratch: Path, *words: str, flags: str = "") -> None:
    """Run make, with more words and flags for the compiler; its output is in `log` of the scratch folder."""
    inside = f"/usr/src/{_tree(scratch).name}/{TREES[0]}"
    command = [
        *("make", "-C", f"/usr/src/{source.headers}", f"M={inside}", f"-j{JOBS}"),
        *(*words, f"KCFLAGS=-include {inside}/faults.h {flags}".rstrip(), "modules"),
    ]
    run_in(root, [(scratch / "src", "usr/src")], command, "Building KVM's modules", scratch / "log")
