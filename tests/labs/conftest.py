# SPDX-License-Identifier: Apache-2.0
"""Make the package of the emulated machines importable; it is never installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
