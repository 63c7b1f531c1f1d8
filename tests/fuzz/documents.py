# SPDX-License-Identifier: Apache-2.0
"""The target ``probe``: a file of `vmm probe --json`, as `vmm compat` and the HELLO of a migration read it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.data import probes
from tests.fuzz.trees import Leaf, changed
from vmm.compat.fleet import compare_all
from vmm.compat.offer import Offer
from vmm.compat.report import compare, parse
from vmm.compat.text import fleet_lines, report_lines
from vmm.probe.document import ProbeError

__all__ = ["change", "read", "seeds"]

_SEEDS = ("svm-7.2", "svm-6.1", "amx-7.2", "pvm-6.18", "sve-7.2", "sve-6.1")


def seeds() -> Iterator[bytes]:
    """Yield recorded probes of both architectures, without the spaces."""
    for name in _SEEDS:
        yield json.dumps(json.loads(Path(probes.path(name)).read_text()), separators=(",", ":")).encode()


@cache
def _others() -> tuple[Offer, ...]:
    return tuple(probes.offer(name) for name in ("amx-7.2", "svm-6.1", "sve-7.2"))


def read(data: bytes) -> bool:
    """Read a probe and compare it with others in every way; tell whether it was taken."""
    try:
        found = parse(data, "a stranger's")
    except ProbeError as error:
        assert str(error).isprintable(), "a stranger's text is not fit for a terminal"
        return False
    for other in _others():
        for report in (compare(found, other), compare(other, found), compare(found, other, started=True)):
            assert all(line.isprintable() for line in report_lines(report))
            json.dumps(report.to_json())
    same = next(other for other in _others() if other.about["architecture"] == found.about["architecture"])
    fleet = compare_all([found, same, found])
    assert all(line.isprintable() for line in fleet_lines(fleet))
    json.dumps(fleet.to_json())
    return True


def change(source: random.Random, data: bytes, leaf: Leaf) -> bytes:
    """Return a probe with some changes, mostly JSON still."""
    if source.random() < 0.1:
        return leaf(data)
    value = json.loads(data)
    for _ in range(source.choice((1, 1, 2, 4))):
        value = changed(source, value, leaf)
    return json.dumps(value, separators=(",", ":"), default=lambda other: other.hex()).encode()
