# SPDX-License-Identifier: Apache-2.0
"""A guest in a file as an offer: may this very guest run on a host, from the file and the host's probe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

from vmm.arch import module
from vmm.compat.offer import Offer
from vmm.state.errors import StreamError, printable
from vmm.state.parts import check_vcpu
from vmm.state.stream.container import Limits, Reader
from vmm.state.stream.decode import read_header, read_part
from vmm.state.value import Part

__all__ = ["Saved", "load_guest"]

# Memory is not looked at, so the guest may be of any size.
_LIMITS = Limits(memory=1 << 52)


class Saved(Protocol):
    """A module ``vmm.compat.ARCHITECTURE.saved``: what a vCPU's parts and its host say, in a probe's terms."""

    def values(self, parts: Mapping[str, Part], host: Mapping[str, str], memory_end: int) -> dict[str, int]: ...

    def about(self, parts: Mapping[str, Part]) -> dict[str, str]: ...


def load_guest(path: str) -> Offer:
    """Return what the guest in a file was given; compare() it as one that was started.

    The file is a stranger's: StreamError if it is damaged or no state, OSError if it cannot be read.
    """
    with open(path, "rb") as file:
        reader = Reader(file, _LIMITS)
        header = read_header(reader, _LIMITS)
        vcpus: list[dict[str, Part]] = [{} for _ in header.vcpus]
        for section in reader.sections():
            if section.index < len(vcpus) and section.kind in header.vcpus[section.index][1]:
                vcpus[section.index][section.kind] = read_part(section).part
    if not vcpus:
        raise StreamError("the header", "it names no vCPU, so it holds no guest")
    for (identifier, _), parts in zip(header.vcpus, vcpus, strict=True):
        check_vcpu(header.arch, identifier, parts)
    architecture = cast(Saved, module("saved", "compat", header.arch))
    memory_end = max((gpa + size for gpa, size in header.memory), default=0)
    values: dict[str, int] = {}
    for parts in vcpus:
        values = architecture.values(parts, header.about, memory_end) | values
    kernel = printable(header.about.get("kernel", "unknown"))
    about = {"label": path, "architecture": header.arch, "kernel": kernel, "backend": "a saved guest"}
    return Offer(about | architecture.about(vcpus[0]), values)
