# SPDX-License-Identifier: Apache-2.0
"""Which fields a KVM is known to lose when they are written: what a clause finds is no news to another command."""

from __future__ import annotations

from collections.abc import Iterable

from vmm.conformance.expectations import Expectation, load
from vmm.probe.host import Host

__all__ = ["losses"]


def losses(host: Host, lost: Iterable[str]) -> dict[str, Expectation]:
    """Return those of some losses (``PIECE.FIELD: values``) that clauses ``world.*-kept`` are known to find here."""
    expected = [one for clause, found in load(host).items() if clause.endswith("-kept") for one in found]
    by_field = {one.what.split(" ")[0]: one for one in expected}
    return {text: by_field[field] for text in lost if (field := text.split(":")[0]) in by_field}
