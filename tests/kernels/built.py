# SPDX-License-Identifier: Apache-2.0
"""A kernel with faults: built for an architecture, and named as `scripts/lab` takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labs.cache import Cache

from tests.kernels.build import Source, build_modules, find_source, patched, read_sources
from tests.kernels.image import ImageSource, build_image, find_image_source
from tests.kernels.table import Fault

__all__ = ["Built", "build", "find", "place", "those_of"]


@dataclass(frozen=True)
class Built:
    """What was built, the options of `scripts/lab` for it, and the faults that are not in it with the reason."""

    path: Path
    options: Sequence[str]
    unplaced: Mapping[str, str]


def those_of(architecture: str, faults: Sequence[Fault]) -> list[Fault]:
    """Return the faults that are built into the kernel of an architecture."""
    return [fault for fault in faults if architecture in fault.architectures]


def build(architecture: str, kernel: str, faults: Sequence[Fault]) -> Built:
    """Build KVM with the faults of an architecture; ``kernel`` is one of Debian's, as `scripts/lab` names it."""
    found = those_of(architecture, faults)
    if architecture == "arm64":
        image, unplaced = build_image(find_image_source(Cache(), kernel), found)
        return Built(image, ("--kernel", str(image)), unplaced)
    modules, unplaced = build_modules(find_source(Cache(), kernel), found)
    return Built(modules, ("--kernel", kernel, "--modules", str(modules)), unplaced)


def find(architecture: str, kernel: str) -> Source | ImageSource:
    """Return the source of a kernel of Debian's for an architecture."""
    return find_image_source(Cache(), kernel) if architecture == "arm64" else find_source(Cache(), kernel)


def place(architecture: str, kernel: str, faults: Sequence[Fault]) -> tuple[str, dict[str, str]]:
    """Return the release of a kernel, and which faults of its architecture have no place in it."""
    source = find(architecture, kernel)
    found = those_of(architecture, faults)
    return source.release, patched(read_sources(source.folder, found), found)[1]
