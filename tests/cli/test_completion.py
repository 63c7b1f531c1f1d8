# SPDX-License-Identifier: Apache-2.0
"""A shell completes commands, options and the ids of clauses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.cli.command_line import environment
from tests.patience import LIMIT
from vmm.conformance.registry import all_clauses


def _vmm(instruction: str, *words: str) -> str:
    """What the command says to a shell that asks with these words typed, the last one to be completed."""
    asked = {"_VMM_COMPLETE": instruction, "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    command = [sys.executable, "-m", "vmm"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**environment(), **asked}, timeout=LIMIT, check=True
    )
    return done.stdout


def _words(*words: str) -> set[str]:
    return {line.partition(",")[2] for line in _vmm("bash_complete", *words).splitlines()}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_shell_takes_the_script_that_it_is_given(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = _vmm(f"{shell}_source")
    assert "_VMM_COMPLETE" in script
    subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=LIMIT)


def test_bash_knows_a_completion_of_vmm_after_the_script() -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    script = _vmm("bash_source") + "\ncomplete -p vmm\n"
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, timeout=LIMIT, env=dict(os.environ))
    assert done.stdout.strip().endswith(" vmm"), done.stderr


def test_commands_and_options_are_completed() -> None:
    assert _words("vmm", "ro") == {"roundtrip"}
    assert {"--format", "--coverage"} <= _words("vmm", "check", "--")


def test_areas_are_completed_and_behind_a_dot_the_clauses() -> None:
    clauses = all_clauses()
    area = clauses[0].area
    assert f"{area}.*" in _words("vmm", "check", area[:2])
    assert _words("vmm", "check", f"{area}.") == {clause.id for clause in clauses if clause.area == area}
