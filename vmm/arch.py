# SPDX-License-Identifier: Apache-2.0
"""The one place that chooses an architecture: the rest asks for ``facts`` and gets its own."""

from __future__ import annotations

import importlib
import platform
from types import ModuleType

__all__ = ["ARCHITECTURE", "module"]

ARCHITECTURE = {"x86_64": "x86", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def module(name: str, area: str = "", arch: str = ARCHITECTURE) -> ModuleType:
    """Return ``vmm.<architecture>.<name>``, such as ``guest``, or ``vmm.<area>.<architecture>.<name>``.

    Without a name it is the area's one module for the architecture. ``arch`` is for what is known of the other
    architecture too, such as the checks of a state.
    """
    return importlib.import_module(".".join(filter(None, ("vmm", area, arch, name))))
