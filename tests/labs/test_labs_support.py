# SPDX-License-Identifier: Apache-2.0
"""SUPPORT.md is what the recorded totals say, and says all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from labs.hosts import Finding, Profile, load_profiles
from labs.matrix import main
from labs.support import support

_REPOSITORY = Path(__file__).resolve().parents[2]
_HOSTS = _REPOSITORY / "scripts" / "labs" / "hosts.toml"
_PLAIN = Profile(
    "svm.max", "svm", "plain", release="7.2.13+deb14-cloud-amd64", totals={"PASS": 9, "SKIP": 2, "INFO": 1}
)


def test_the_document_is_what_is_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--support"]) == 0
    made = capsys.readouterr().out
    assert (_REPOSITORY / "SUPPORT.md").read_text() == made, "run: scripts/matrix --support > SUPPORT.md"


def test_every_profile_is_in_it() -> None:
    profiles = load_profiles(_HOSTS)
    for profile in profiles:
        assert support(profiles) != support([each for each in profiles if each is not profile]), profile.name


def test_rows_are_kernels_in_their_order_and_columns_are_models_the_machines_own_first() -> None:
    profiles = [
        replace(_PLAIN, name="svm.epyc", cpu="EPYC", totals={"PASS": 8, "KNOWN": 1}),
        replace(_PLAIN, name="svm.old", kernel="6.1", release="6.1.0-50-cloud-amd64"),
        replace(_PLAIN, name="svm.6.12.90", kernel="sid:6.12.90", release="6.12.90+deb12.1-cloud-amd64"),
        replace(_PLAIN, name="svm.6.12.9", kernel="sid:6.12.9", release="6.12.9+deb12-cloud-amd64"),
        _PLAIN,
    ]
    table = [line for line in support(profiles).splitlines() if line.startswith("|")]
    assert table == [
        "| kernel | `max` | `EPYC` |",
        "| --- | --- | --- |",
        "| **6.1** | 6.1.0-50: 9/0/2 |  |",
        "| **6.12** | 6.12.9: 9/0/2<br>6.12.90: 9/0/2 |  |",
        "| **7.2** | 7.2.13: 9/0/2 | 7.2.13: 8/1/0 |",
    ]


@pytest.mark.parametrize(
    "condition",
    [
        {"cpu": "max,-pku"}, {"parameters": ("noxsave",)}, {"limits": {"nofile": 16}}, {"cpus": 2}, {"memory": 64},
        {"before": "umount /sys"}, {"ignored": ("CHLD",)}, {"blocked": ("ALL",)}, {"clauses": ("xsave.*",)},
        {"emulator": "trixie"}, {"kernel": "7.2:full"},
    ],
    ids=str,
)  # fmt: skip
def test_another_condition_than_kernel_and_model_is_not_in_the_matrix(condition: dict[str, object]) -> None:
    text = support([_PLAIN, replace(_PLAIN, name="svm.other", why="it is other", **condition)])  # type: ignore[arg-type]
    assert "| **7.2** | 7.2.13: 9/0/2 |\n" in text
    assert "| `svm.other` | it is other | 7.2.13 | 9/0/2 |\n" in text


def test_what_failed_is_named_with_its_reference_and_what_was_not_run_too() -> None:
    finding = Finding("a.clause", "FAIL", "seen there | and here")
    failing = replace(_PLAIN, totals={"PASS": 1, "FAIL": 1, "XPASS": 2}, findings=(finding,))
    text = support([failing, replace(_PLAIN, name="svm.gone", release="", totals={})])
    assert "| 7.2.13: 1/0/0, **1 FAIL**, **2 XPASS** |" in text
    assert "* `svm.max`: `a.clause` FAIL: seen there | and here\n" in text
    assert text.endswith("no archive served the kernel when the others were: `svm.gone`.\n")
