# SPDX-License-Identifier: Apache-2.0
"""A host with AMX whose KVM gives guests none: every clause that such a host runs, and no false alarm.

What stands in for it (tests/conformance/amx_without_guests.py) is an interposer and a changed CPUID before the KVM at
hand.
It can stand for: which clauses such a host runs; what its kernel answers by arch_prctl, KVM_SET_CPUID2 and the XSAVE
calls, with order and errno; that a lie of that kernel is noticed, as a FAIL.

It cannot stand for: instructions, which the CPU at hand executes (XGETBV reads its XCR0, so perm.supp-is-host-xcr0 is
not run; that LDTILECFG works at CPL 3 is written into the guest's memory); tiles in registers; what exec does to the
permission (what the clause executes is answered for); whatever a KVM of that kind does that nobody wrote down here.
A host of that kind runs the same clauses itself, and this test skips there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conformance.amx_without_guests import about
from tests.patience import LIMIT
from vmm.arch import ARCHITECTURE
from vmm.kvm.system import Kvm

pytestmark = pytest.mark.skipif(ARCHITECTURE != "x86", reason="AMX is x86's")


def _results(kind: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.conformance.amx_without_guests", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5 * LIMIT)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    if "unusable" in found[0]:
        pytest.skip(found[0]["unusable"])
    return found


def _shown(result: dict[str, Any]) -> str:
    parts = (result.get(key, "") for key in ("mutation", "what", "observed", "reason"))
    return f"{result['id']}: {result['verdict']} ({', '.join(part for part in parts if part)})"


def test_a_host_with_amx_and_a_kvm_without_gives_no_false_alarm(kvm: Kvm) -> None:
    found = _results("honest")
    assert [result["id"] for result in found] == [clause.id for clause in about()]
    alarms = [_shown(result) for result in found if result["verdict"] not in ("PASS", "KNOWN", "INFO", "SKIP")]
    assert not alarms
    verdicts = {result["id"]: result["verdict"] for result in found}
    # Only AVX-512 may be missing here; everything else has to come to a verdict.
    assert {name for name, verdict in verdicts.items() if verdict == "SKIP"} <= {"amx.no-perm-vcpu-fully-usable"}
    assert verdicts["amx.no-perm-vcpu-fully-usable"] in ("KNOWN", "SKIP")


def test_each_lie_of_a_kernel_whose_kvm_has_no_amx_is_a_fail(kvm: Kvm) -> None:
    found = _results("lies")
    assert len(found) > 50
    # A lie about a clause that is known to fail there ends with what is known of it; one that only records records.
    wrong = [_shown(result) for result in found if result["verdict"] not in ("FAIL", "KNOWN", "INFO", "SKIP")]
    assert not wrong
    failed = {result["id"] for result in found if result["verdict"] == "FAIL"}
    others = {"amx.no-perm-vcpu-fully-usable", "perm.supp-consistent-with-fpu"}
    assert failed | others >= {clause.id for clause in about() if not clause.info}
