# SPDX-License-Identifier: Apache-2.0
"""Byte code for the machines' Python, compiled on the host by the same Python, extracted.

The files are of the unchecked kind: the interpreter neither reads the source nor compares times.  Byte code
does not depend on the architecture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from .cache import Cache
from .config import PYTHON_PACKAGES, PYTHON_SUITE, PYTHON_VERSION
from .errors import run_tool
from .hostroot import HostRoot

__all__ = ["compile_all"]

_PROGRAM = """
import json, py_compile, sys
for source, name, target in json.load(sys.stdin):
    try:
        py_compile.compile(source, target, name, doraise=True,
                           invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    except py_compile.PyCompileError:
        pass  # a template or a test of the compiler; a real fault shows at import
"""


def compile_all(cache: Cache, names: Mapping[Path, str]) -> dict[Path, bytes]:
    """Return the byte code of sources; `names` maps each to its path in the machine, for tracebacks."""
    root = HostRoot(cache, PYTHON_SUITE, PYTHON_PACKAGES)
    environment = {"PYTHONHOME": str(root.root / "usr"), "PYTHONDONTWRITEBYTECODE": "1"}
    with cache.scratch("bytecode-") as folder:
        targets = {source: folder / f"{index}.pyc" for index, source in enumerate(names)}
        work = [[os.fspath(source), names[source], os.fspath(target)] for source, target in targets.items()]
        command = [*root.command(f"usr/bin/python{PYTHON_VERSION}"), "-S", "-c", _PROGRAM]
        run_tool(command, "Compiling byte code", env=environment, stdin=json.dumps(work).encode())
        return {source: target.read_bytes() for source, target in targets.items() if target.exists()}
