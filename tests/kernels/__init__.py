# SPDX-License-Identifier: Apache-2.0
"""Kernels with known faults, each of which the clauses have to notice; see ``python -m tests.kernels --help``."""

import sys
from pathlib import Path

# The package of the emulated machines is never installed.
_SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")
if _SCRIPTS not in sys.path:
    sys.path.insert(0, _SCRIPTS)
