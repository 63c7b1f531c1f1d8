# SPDX-License-Identifier: Apache-2.0
"""arm64 in its machine: lies and broken payloads, other vector lengths, KVM without VHE, and older kernels."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import pytest

from tests.machines.machines import EVERY_KERNEL, NEWEST, Running, conformance, judge, lab, records
from tests.mutations.arm64.guest import NAMED

pytestmark = pytest.mark.machine

_KERNELS, _SETS, _MODES = ("6.1", "6.12", "7.2"), ("1,2,3,4", "1,2,4", "1,2"), ("vhe", "nvhe")
# The least that pass with any set and mode; tests/machines/test_conformance.py has the usual machine's.
_PASSING = {"6.1": 113, "6.12": 118, "7.2": 120}
_PASSING_WITHOUT_SVE = 40
_NOTICED = 400


@cache
def _report(kernel: str, lengths: str, mode: str) -> list[dict[str, Any]]:
    return conformance("sve", "--kernel", kernel, "--cpu", f"vq={lengths}", "--mode", mode)


def _clauses(kernel: str, lengths: str, mode: str, running: Running) -> list[dict[str, Any]]:
    report = _report(kernel, lengths, mode)
    assert report[0]["guest_vector_lengths"] == [int(vq) for vq in lengths.split(",")]
    assert report[0]["mode"].lower() == mode
    return judge(report, "sve", kernel, _PASSING[kernel], running)


def _combinations() -> list[tuple[str, str, str]]:
    # A set with a hole and KVM without VHE: what differs most from the machine that is always run.
    return list(product(_KERNELS, _SETS, _MODES)) if EVERY_KERNEL else [(NEWEST, "1,2,4", "nvhe")]


@pytest.mark.parametrize(("kernel", "lengths", "mode"), _combinations())
def test_no_clause_fails_with_other_lengths_or_another_mode(
    kernel: str, lengths: str, mode: str, running: Running
) -> None:  # fmt: skip
    _clauses(kernel, lengths, mode, running)


_NO_SVE = ("--append", "arm64.nosve")
_OWN_VECTORS = """
from vmm.arm64.guest import Guest
from vmm.arm64.own import run_with_vectors
from vmm.arm64.vector import AREA_SIZE
from vmm.kvm.ioctl import KvmError
from vmm.kvm.system import Kvm
import json
with Kvm() as kvm, Guest(kvm, "hello") as guest:
    try:
        run_with_vectors(guest.vcpu, bytes(AREA_SIZE), 1.0)
    except KvmError as error:
        print(json.dumps({"errno": error.errno_name}))
"""


def test_no_clause_fails_where_the_host_has_no_sve(running: Running) -> None:
    report = conformance("sve", *_NO_SVE)
    assert report[0]["capabilities"]["KVM_CAP_ARM_SVE"] == 0
    judge(report, "sve", NEWEST, _PASSING_WITHOUT_SVE, running)


def test_the_shim_refuses_vectors_where_there_is_no_sve() -> None:
    assert records(lab("sve", *_NO_SVE, command=["python3", "-c", _OWN_VECTORS])) == [{"errno": "ENOTSUP"}]


def _lies(*options: str, patterns: tuple[str, ...] = ()) -> dict[str, list[dict[str, Any]]]:
    """Run mutations in the machine; return them by outcome."""
    found = records(lab("sve", *options, command=["python3", "-m", "tests.mutations", *patterns]))
    assert "totals" in found[-1], "the run was cut short"
    outcomes: dict[str, list[dict[str, Any]]] = {"noticed": [], "unnoticed": [], "unusable": [], "error": []}
    for lie in found[:-1]:
        outcomes[lie["outcome"]].append(lie)
    return outcomes


def test_every_lie_and_every_broken_payload_is_noticed(running: Running) -> None:
    outcomes = _lies()
    assert not outcomes["unnoticed"] + outcomes["error"], outcomes["unnoticed"] + outcomes["error"]
    noticed, release = len(outcomes["noticed"]), running.offer("sve", NEWEST).about["kernel"]
    assert noticed
    running.expect(noticed >= _NOTICED, f"{noticed} lies are noticed: {outcomes['unusable']}", "sve", release)
    details = {lie["mutation"]: lie["detail"] for lie in outcomes["noticed"] if lie["mutation"] in NAMED}
    assert details.keys() == NAMED.keys()
    for mutation, place in NAMED.items():
        assert place in details[mutation], f"{mutation} is reported without {place}"


@pytest.mark.parametrize(
    ("options", "clause"),
    [
        (("--cpu", "vq=1,2,4", "--mode", "nvhe"), "sve.vls.unsupported-vq-einval"),
        (_NO_SVE, "init.sve-unsupported-einval"),
    ],
)
def test_a_lie_is_noticed_where_its_clause_runs(options: tuple[str, ...], clause: str) -> None:
    outcomes = _lies(*options, patterns=(clause,))
    assert outcomes["noticed"] and not outcomes["unnoticed"] and not outcomes["unusable"] and not outcomes["error"], (
        outcomes
    )


@pytest.mark.skipif(not EVERY_KERNEL, reason="compares kernels: --all-kernels")
@pytest.mark.parametrize("kernel", _KERNELS[:-1])
def test_a_kernel_differs_only_in_what_its_clauses_document(kernel: str, running: Running) -> None:
    newest = {clause["id"]: clause["verdict"] for clause in _clauses(NEWEST, _SETS[0], _MODES[0], running)}
    undocumented = [
        f"{clause['id']} is {clause['verdict']}, {newest[clause['id']]} on {NEWEST}: {clause.get('reason')}"
        for clause in _clauses(kernel, _SETS[0], _MODES[0], running)
        if clause["verdict"] not in (newest[clause["id"]], "KNOWN")
        and not clause.get("reason", "").startswith(("needs Linux ", "needs KVM_CAP_"))
    ]
    releases = [running.offer("sve", one).about["kernel"] for one in (kernel, NEWEST)]
    running.expect(not undocumented, "; ".join(undocumented), "sve", *releases)


# What a newer kernel lists no more, and why that is right: from 6.13 on these depend on ID_AA64MMFR3_EL1
# (arch/arm64/kvm/sys_regs.c, tcr2_visibility, s1pie_visibility), and the machine's CPU has none of its features.
_GONE = {"TCR2_EL1", "PIR_EL1", "PIRE0_EL1"}
_LIST = """
from vmm.arm64 import vcpu
from vmm.arm64.registers import Register
from vmm.kvm.system import Kvm
import json
with Kvm() as kvm:
    for features in ((vcpu.Feature.SVE,), ()):
        with kvm.create_vm() as vm:
            made = vm.create_vcpu()
            vcpu.init(made, *features)
            for feature in features:
                vcpu.finalize(made)
            print(json.dumps({"sve": bool(features), "names": sorted(str(Register(r)) for r in made.reg_list())}))
"""


@pytest.mark.skipif(not EVERY_KERNEL, reason="compares kernels: --all-kernels")
@pytest.mark.parametrize(("older", "newer", "gone"), [("6.1", "6.12", set()), ("6.12", "7.2", _GONE)])
def test_a_newer_kernel_drops_only_registers_that_are_known_to_be_gone(
    older: str, newer: str, gone: set[str], running: Running
) -> None:  # fmt: skip
    before, after = (
        {
            line["sve"]: set(line["names"])
            for line in records(lab("sve", "--kernel", k, command=["python3", "-c", _LIST]))
        }
        for k in (older, newer)
    )
    releases = [running.offer("sve", kernel).about["kernel"] for kernel in (older, newer)]
    for sve in (True, False):
        found = before[sve] - after[sve]
        running.expect(found == gone, f"{newer} lists {found} no more, expected {gone}", "sve", *releases)
