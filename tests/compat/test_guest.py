# SPDX-License-Identifier: Apache-2.0
"""vmm compat --guest: a guest in a file is judged by what it was started with, and nothing can be taken from it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.probes import offer, path
from vmm import cli
from vmm.compat.offer import Offer, Verdict
from vmm.compat.report import Report, compare
from vmm.compat.saved import load_guest
from vmm.state.errors import StreamError

_STREAMS = Path(__file__).parents[1] / "data" / "streams"
Command = Callable[..., tuple[int, str, str]]


def _stream(name: str) -> str:
    return str(_STREAMS / f"format1-recorded-{name}.vmst")


def _guest(name: str, **more: int) -> Offer:
    """The recorded guest; what states say since then about the counter is added."""
    found = load_guest(_stream(name))
    return dataclasses.replace(found, values={**found.values, **more})


def _judged(report: Report) -> dict[str, Verdict]:
    return {dimension.name: dimension.verdict for dimension in report.dimensions}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vmm", "compat", *arguments])
        return cli._run(), *capfd.readouterr()

    return run


@pytest.mark.parametrize(("guest", "counter"), [("amx", {}), ("svm", {}), ("sve", {"counter": 62_500_000})])
def test_a_guest_may_return_to_its_own_host(guest: str, counter: dict[str, int]) -> None:
    host = offer(f"{guest}-7.2")
    report = compare(_guest(guest, **counter), host, started=True)
    assert report.verdict is Verdict.OK and not report.findings
    assert dict(host.values).get("counter") == counter.get("counter")


def test_whether_a_state_without_the_counter_fits_is_unknown() -> None:
    report = compare(_guest("sve"), offer("sve-7.2"), started=True)
    assert report.verdict is Verdict.UNKNOWN and [found.name for found in report.findings] == ["CNTFRQ_EL0"]


@pytest.mark.parametrize(
    ("guest", "destination", "blocking"),
    [
        ("svm", "svm-7.2-less", {"PKRU (XCR0[9])", "AVX2 (CPUID 7.0 EBX[5])", "PKU (CPUID 7.0 ECX[3])",
                                 "SSE4A (CPUID 80000001.0 ECX[6])"}),
        ("sve", "sve-7.2-vq12", {"KVM_REG_ARM64_SVE_VLS"}),
        ("sve", "sve-7.2-nvhe", {"ID_AA64MMFR1_EL1.VH"}),
        ("sve", "sve-6.12", {"PSCI_VERSION"}),
        ("sve", "svm-7.2", {"architecture"}),
        ("amx", "pvm-6.18", {"vendor (CPUID 0)"}),
    ],
)  # fmt: skip
def test_what_a_guest_was_started_with_cannot_be_masked_later(
    guest: str, destination: str, blocking: set[str]
) -> None:
    report = compare(_guest(guest, counter=62_500_000), offer(destination), started=True)
    names = {found.name for found in report.findings if found.verdict is Verdict.NO}
    assert report.verdict is Verdict.NO and blocking <= names
    if destination != "pvm-6.18":
        assert names == blocking
    assert all(mask.late for mask in report.masks)


def test_a_guest_that_has_not_been_started_can_be_masked() -> None:
    report = compare(_guest("svm"), offer("svm-7.2-less"))
    assert report.verdict is Verdict.MASK and not any(mask.late for mask in report.masks)


def test_amx_state_does_not_go_to_a_host_without_amx() -> None:
    dimensions = _judged(compare(_guest("amx"), offer("svm-7.2"), started=True))
    assert dimensions["xfeatures"] is Verdict.NO and dimensions["vendor"] is Verdict.NO


def test_the_command_judges_a_guest_against_each_host(command: Command) -> None:
    status, text, _ = command("--guest", _stream("svm"), path("svm-7.2"), path("svm-7.2-less"))
    assert status == 1
    assert "a saved guest" in text and "(the guest was started with it)" in text
    assert text.count(" -> ") == 2 and "to do: clear" not in text
    status, text, _ = command("--guest", _stream("svm"), path("svm-7.2"), "--json")
    assert status == 0
    (report,) = json.loads(text)["reports"]
    assert report["verdict"] == "ok" and report["source"]["backend"] == "a saved guest"


@pytest.mark.parametrize("extra", [("--both",), ("--both", "--strict")])
def test_a_guest_in_a_file_has_no_way_back(command: Command, extra: tuple[str, ...]) -> None:
    status, _, error = command("--guest", _stream("svm"), path("svm-7.2"), *extra)
    assert status == 2 and "which a saved guest does not have" in error


def test_a_file_that_is_not_a_state_is_refused(command: Command, tmp_path: Path) -> None:
    status, _, error = command("--guest", path("svm-7.2"), path("svm-7.2"))
    assert status == 2 and "not a VM state stream" in error
    status, _, error = command("--guest", str(tmp_path / "none"), path("svm-7.2"))
    assert status == 2 and "No such file" in error
    whole = Path(_stream("svm")).read_bytes()
    for size in range(0, len(whole), 997):
        damaged = tmp_path / "cut"
        damaged.write_bytes(whole[:size])
        with pytest.raises(StreamError):
            load_guest(str(damaged))
