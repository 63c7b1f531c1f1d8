# SPDX-License-Identifier: Apache-2.0
"""Recorded probes: `vmm probe --json` in the emulated machines (NAME-KERNEL, then what differs) and on a PVM host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vmm.compat.offer import Offer
from vmm.compat.report import parse

__all__ = ["ARM64", "FOLDER", "NAMES", "X86", "document", "offer", "path"]

FOLDER = Path(__file__).resolve().parent
NAMES = tuple(sorted(file.stem for file in FOLDER.glob("*.json")))
ARM64 = tuple(name for name in NAMES if name.startswith("sve"))
X86 = tuple(name for name in NAMES if name not in ARM64)


def path(name: str) -> str:
    """Return the path of a recorded probe."""
    return str(FOLDER / f"{name}.json")


def document(name: str) -> dict[str, Any]:
    """Return a recorded probe as it was written, to be changed at will."""
    found = json.loads(Path(path(name)).read_text())
    assert isinstance(found, dict)
    return found


def offer(source: str | dict[str, Any], label: str = "") -> Offer:
    """Return the offer of a recorded probe, or of a document made of one."""
    made = document(source) if isinstance(source, str) else source
    return parse(json.dumps(made).encode(), label or (source if isinstance(source, str) else "changed"))
