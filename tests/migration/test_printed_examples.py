# SPDX-License-Identifier: Apache-2.0
"""What README prints about migration does what it says, on hosts of any speed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import LIMIT, eventually
from vmm.kvm.system import Kvm

pytestmark = pytest.mark.kvm
_ROOT = Path(__file__).resolve().parents[2]
_VMM = [sys.executable, "-m", "vmm"]


@pytest.mark.parametrize("turn", range(3))
def test_a_chain_whose_length_nobody_chose_still_runs_when_it_is_handed_over(kvm: Kvm, turn: int) -> None:
    assert "vmm receive -' chain" in (_ROOT / "README.md").read_text()
    receive = shlex.join([*_VMM, "receive", "-", "--limit", "0.5"])
    command = [*_VMM, "send", f"exec:{receive}", "chain", "--json", "--downtime", "5"]
    sent = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, cwd=_ROOT)
    assert json.loads(sent.stdout)["outcome"] == "moved", sent.stderr


def test_a_receiver_behind_a_pipe_ends_with_the_sender_that_kept_its_guest(kvm: Kvm, tmp_path: Path) -> None:
    said = tmp_path / "said"
    receive = f"sh -c {shlex.quote(shlex.join([*_VMM, 'receive', '-']) + f' 2>{said}; echo ended >>{said}')}"
    command = [*_VMM, "send", f"exec:{receive}", "chain", "sse", "50"]
    sent = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, cwd=_ROOT)
    assert sent.returncode == 1, sent.stderr
    assert eventually(lambda: "ended" in said.read_text())
