# SPDX-License-Identifier: Apache-2.0
"""The one exception of this package and the one way to run a host tool."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["LabError", "require_tool", "run_tool"]


class LabError(Exception):
    """Something that the user can act on: one sentence with the cause and the next step."""


def require_tool(name: str, package: str) -> str:
    """Return the path of host tool `name`, or raise a LabError that names the Debian package it is in."""
    path = shutil.which(name)
    if path is None:
        raise LabError(
            f"The host has no '{name}', which builds the emulated machines; install the package {package}."
        )
    return path


def run_tool(
    command: Sequence[str | Path],
    what: str,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    stdin: bytes | None = None,
    timeout: float = 1800,
) -> bytes:
    """Run `command` and return its standard output; failing, raise a LabError with the last lines it printed.

    `what` completes the sentence "... failed".  `env` is added to the environment.  With `log` all the output
    also goes to that file, and a long build is not kept in memory twice.
    """
    words = [os.fspath(word) for word in command]
    full_env = {**os.environ, "LC_ALL": "C", **(env or {})}
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=full_env,
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{what} took longer than {timeout:.0f} s and was ended; is the machine overloaded?") from None
    except OSError as error:
        raise LabError(f"{what} could not start {words[0]}: {error.strerror}; is it installed?") from None
    if log is not None:
        log.write_bytes(done.stdout + done.stderr)
    if done.returncode != 0:
        output = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        tail = "\n".join("  " + line for line in output[-12:])
        hint = f" (whole log: {log})" if log is not None else ""
        raise LabError(f"{what} failed with status {done.returncode}{hint}:\n{tail}")
    return done.stdout
