# SPDX-License-Identifier: Apache-2.0
"""Finds out which drawn faults compile: all of them are built at once, and whatever the compiler refuses goes.

No line of a source moves, and an error names its line and column: the fault is the one that begins last before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from labs.errors import LabError

from tests.kernels import build, image
from tests.kernels.build import Source, patched, read_sources
from tests.kernels.image import ImageSource
from tests.kernels.table import Fault

__all__ = ["compilable", "culprits"]

_ERROR = re.compile(r"^(?P<file>[^\s:]+\.[ch]):(?P<line>\d+):(?P<column>\d+): (?:fatal )?error: (?P<what>.*)$")
#: What an error in a header says about where it is used.
_USED = re.compile(r"(?:^|\bat |\bfrom )(?P<file>[^\s:]+\.c):(?P<line>\d+):(?P<column>\d+)")
_FAULT = re.compile(r"\bFAULT\((\d+)\)")
#: Columns are counted as here, where a tab is one.
_FLAGS = "-fdiagnostics-column-unit=byte"
_ROUNDS = 12


def compilable(source: Source | ImageSource, faults: Sequence[Fault]) -> tuple[list[Fault], dict[str, str]]:
    """Return the faults with which KVM compiles, and what the compiler says to the others, by name."""
    left = list(faults)
    refused: dict[str, str] = {}
    root = source.root()
    with source.cache.scratch("kvm-") as scratch:
        if isinstance(source, ImageSource):
            tree = image.lay_out(source, root, scratch)
        else:
            tree = build.lay_out(source, root, scratch)
        there = {file: "" for file in read_sources(source.folder, faults)}
        for _ in range(_ROUNDS):
            texts, unplaced = patched(read_sources(source.folder, faults), left)
            refused |= unplaced
            left = [fault for fault in left if fault.name not in unplaced]
            for file, text in texts.items():
                if there[file] != text:
                    (tree / file).write_text(text)
            there = texts
            try:
                if isinstance(source, ImageSource):
                    image.make(source, root, scratch, "-k", image.OBJECTS, flags=_FLAGS)
                else:
                    build.make(source, root, scratch, "-k", flags=_FLAGS)
            except LabError:
                found = culprits((scratch / "log").read_text(errors="replace"), texts)
                if not found:
                    raise
                refused |= {fault.name: found[fault.number] for fault in left if fault.number in found}
                left = [fault for fault in left if fault.number not in found]
            else:
                return left, refused
    raise LabError(f"KVM does not compile after {len(refused)} faults have been left out; draw with another seed.")


def culprits(log: str, texts: Mapping[str, str]) -> dict[int, str]:
    """Return the numbers of faults that a compiler's errors are about, one for each line, with what it says."""
    found: dict[tuple[str, int], tuple[int, str]] = {}
    for what, places in _errors(log.splitlines()):
        for file, line, column in places:
            number = _last_before(texts, file, line, column)
            if number is not None:
                found.setdefault((file, line), (number, what))
                break
    return dict(found.values())


def _errors(lines: Sequence[str]) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
    """Yield each error with the places that it names, its own first."""
    before: list[tuple[str, int, int]] = []
    current: tuple[str, list[tuple[str, int, int]]] | None = None
    for line in lines:
        error = _ERROR.match(line)
        if error is not None:
            if current is not None:
                yield current
            current = (error["what"], [(error["file"], int(error["line"]), int(error["column"])), *before])
            before = []
            continue
        used = [(match["file"], int(match["line"]), int(match["column"])) for match in _USED.finditer(line)]
        if "In function" in line or "inlined from" in line:
            before += used
        elif current is not None:
            current[1].extend(used)
    if current is not None:
        yield current


def _last_before(texts: Mapping[str, str], file: str, line: int, column: int) -> int | None:
    """Return the number of the fault that begins last before a position, on its line or one of some before it."""
    known = [name for name in texts if name.endswith(f"/{Path(file).name}") and _same(name, file)]
    if len(known) != 1:
        return None
    lines = texts[known[0]].splitlines()[:line]
    if not lines:
        return None
    *earlier, last = lines
    here = [int(match[1]) for match in _FAULT.finditer(last)]
    until = [int(match[1]) for match in _FAULT.finditer(last) if match.start() <= column + 1]
    if until or here:
        return until[-1] if until else here[0]
    for text in reversed(earlier[-8:]):
        numbers = [int(match[1]) for match in _FAULT.finditer(text)]
        if numbers:
            return numbers[-1]
        if text.rstrip().endswith((";", "{", "}")):
            return None
    return None


def _same(name: str, file: str) -> bool:
    """Whether a compiler's path may be a file of the kernel's: both may be below something."""
    return name.endswith(file.lstrip("./")) or file.endswith(name)
