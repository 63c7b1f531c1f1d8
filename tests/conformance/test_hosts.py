# SPDX-License-Identifier: Apache-2.0
"""Every need and every expectation on hosts that were recorded and on hosts that nobody here has seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.probe.recorded_hosts import INVENTED, RECORDED, recorded
from vmm.conformance import expectations
from vmm.conformance.needs import unmet
from vmm.conformance.registry import Clause, all_clauses
from vmm.conformance.x86.common import GUEST_AMX
from vmm.probe.host import Host

_CLAUSES = {arch: all_clauses(arch) for arch in ("x86", "arm64")}
_HOSTS = {name: recorded(name) for name in RECORDED} | INVENTED


def _clause(identifier: str) -> Clause:
    return next(clause for clause in _CLAUSES["x86"] if clause.id == identifier)


def _runs(host: Host) -> set[str]:
    """The clauses whose needs a host meets."""
    return {clause.id for clause in _CLAUSES[host.architecture] if unmet(clause.needs, host) is None}


@pytest.mark.parametrize("name", _HOSTS)
def test_every_need_gives_a_measured_value_on_this_host(name: str) -> None:
    host = _HOSTS[name]
    for clause in _CLAUSES[host.architecture]:
        for need in clause.needs:
            met, measured = need.measure(host)
            assert isinstance(met, bool)
            assert len(measured) > 3 and "\n" not in measured, f"{clause.id}: {measured!r}"


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_host_runs_most_of_what_its_machine_was_built_for(name: str) -> None:
    runs = _runs(_HOSTS[name])
    assert len(runs) > (60 if name.startswith(("svm", "pvm")) else 100)
    assert any(identifier.startswith("xfd.nm") for identifier in runs) is name.startswith("amx")


def test_a_cpu_with_amx_whose_kvm_has_none_runs_no_clause_that_gives_a_guest_tiles() -> None:
    runs = _runs(_HOSTS["a CPU with AMX and a KVM without"])
    giving = {clause.id for clause in _CLAUSES["x86"] if any("supports AMX guests" in str(n) for n in clause.needs)}
    assert giving and not runs & giving
    assert {"perm.req-tiledata-ok", "setcpuid.perm-eperm", "amx.no-perm-vcpu-fully-usable"} <= runs
    assert not runs & {"setcpuid.buffer-sticky", "xsave.size.cap-equals-written"}


def test_a_process_that_may_not_ask_is_told_apart_from_a_kernel_that_cannot_answer() -> None:
    forbidden = _HOSTS["a KVM with AMX and a process that may not ask for it"]
    old = _HOSTS["a kernel before 5.16"]
    needs = _clause("perm.guest-default").needs
    assert "fails with EPERM" in str(unmet(needs, forbidden)) and "seccomp" in str(unmet(needs, forbidden))
    assert "this kernel has no ARCH_GET_XCOMP_SUPP (EINVAL)" in str(unmet(needs, old))


def test_a_process_that_may_not_ask_runs_no_clause_that_gives_a_guest_tiles() -> None:
    runs = _runs(_HOSTS["a KVM with AMX and a process that may not ask for it"])
    assert not {clause.id for clause in _CLAUSES["x86"] if GUEST_AMX in clause.needs} & runs
    assert {"cpuid.0xd0-size", "xsave.fresh-init", "xcrs.rules"} <= runs


def test_a_kernel_without_kvm_get_xsave2_runs_no_clause_that_reads_an_area() -> None:
    runs = _runs(_HOSTS["a kernel before 5.16"])
    assert not {name for name in runs if name.startswith(("xsave.", "amx.", "setcpuid.keeps"))}
    assert {"xcrs.rules", "setcpuid.after-run", "cpuid.0xd0-size"} <= runs


def test_a_cpu_without_xsave_runs_no_clause_about_the_area_or_xcr0() -> None:
    runs = _runs(_HOSTS["a CPU without XSAVE"])
    assert not {name for name in runs if name.startswith(("xcrs.", "amx.", "xfd.nm"))}
    assert not runs & {"xsave.fresh-init", "xsave.set-header-checks", "xsave.set-mxcsr", "perm.supp-is-host-xcr0"}


def test_a_kvm_that_ignores_unknown_msrs_is_not_asked_to_refuse_them() -> None:
    strict, lax = _runs(_HOSTS["amx-7.2"]), _runs(_HOSTS["kvm.ignore_msrs=1"])
    assert {"mig.msr-batch-partial", "mtrr.cap", "onereg.id-validation"} <= strict - lax


@pytest.mark.parametrize("name", _HOSTS)
def test_every_expectation_can_be_asked_of_this_host(name: str) -> None:
    host = _HOSTS[name]
    runs = {clause.id for clause in _CLAUSES[host.architecture]}
    assert set(expectations.load(host)) <= runs, "a finding is expected of a clause of another architecture"


def test_the_back_end_decides_and_not_the_cpu_below_it() -> None:
    host = _HOSTS["a CPU with AMX and a KVM without"]
    assert "pku.host-pkru-zero" not in expectations.load(host)
    assert "setcpuid.mask-honoured" in expectations.load(host)
    intel = replace(host, facts=replace(host.facts, backend="kvm_intel"))
    assert "pku.host-pkru-zero" in expectations.load(intel)
