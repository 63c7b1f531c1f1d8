# SPDX-License-Identifier: Apache-2.0
"""Which run a report is of: by what version of this program, where and when."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["identity", "labelled", "tool"]

_CPUINFO = Path("/proc/cpuinfo")
_LABELS = {"tool": "checked by", "node": "host", "microcode": "microcode", "time": "begun"}


def tool() -> str:
    """Return the name and version of this program; ``unknown`` of one that is not installed."""
    from importlib import metadata  # costs more than all else here, and not every report needs it

    try:
        return f"xstate-vmm {metadata.version('xstate-vmm')}"
    except metadata.PackageNotFoundError:
        return "xstate-vmm, version unknown"


def identity() -> dict[str, str]:
    """Return ``tool``, ``node`` (uname -n), ``time`` (UTC, ISO 8601) and, if the kernel tells it, ``microcode``."""
    found = {"tool": tool(), "node": os.uname().nodename}
    with suppress(OSError):
        if revision := re.search(r"^microcode\s*: (\S+)$", _CPUINFO.read_text(), re.MULTILINE):
            found["microcode"] = revision[1]
    return {**found, "time": datetime.now(UTC).isoformat(timespec="seconds")}


def labelled(about: dict[str, str]) -> list[tuple[str, str]]:
    """Return an identity as (name, value) pairs for people."""
    return [(_LABELS[key], value) for key, value in about.items()]
