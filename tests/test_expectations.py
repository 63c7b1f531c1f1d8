# SPDX-License-Identifier: Apache-2.0
"""Known failures as data: the shipped files, and the rules by which they apply."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmm.conformance.expectations import FOLDER, Expectation, ExpectationError, apply, load
from vmm.conformance.host import Host, version
from vmm.conformance.model import ClauseResult, Verdict
from vmm.conformance.registry import all_clauses

SHIPPED = sorted(FOLDER.glob("*.toml"))
MakeHost = Callable[..., Host]
ENTRY = '[[known]]\nclause = "xcrs.fresh"\nreason = "it is so"\nreference = "see there"\n'


@pytest.fixture
def known(tmp_path: Path) -> Callable[[str, Host], dict[str, Expectation]]:
    """Loads one file with the given text for a host."""

    def read(text: str, host: Host) -> dict[str, Expectation]:
        path = tmp_path / "some.toml"
        path.write_text(text)
        return load(host, [path])

    return read


def shipped(path: Path) -> dict[str, Any]:
    """A shipped file's content."""
    return tomllib.loads(path.read_text())


def test_no_expectations_are_shipped() -> None:
    assert {"kvm_pvm.toml", "qemu_tcg.toml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_does_not_load_for_its_hosts(path: Path, make_host: MakeHost) -> None:
    data = shipped(path)
    found: set[str] = set()
    release = data.get("kernel", ">=6.18.1").split()[0].lstrip("<>=")
    for entry in data["known"]:
        facts = {"backend": data.get("backend", "kvm_intel"), "vendor": entry.get("cpu", "GenuineIntel")}
        found |= set(load(make_host(release, model=entry.get("model", "") + " 2.5+", **facts), [path]))
    assert found == {entry["clause"] for entry in data["known"]}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_applies_to_an_ordinary_host(path: Path, make_host: MakeHost) -> None:
    for backend, vendor in (("kvm_intel", "GenuineIntel"), ("kvm_amd", "AuthenticAMD")):
        host = make_host("6.18.1", backend=backend, vendor=vendor, model="A Real CPU @ 2.00GHz")
        data = shipped(path)
        narrow = any({"model", "cpu"} & set(entry) for entry in data["known"])
        assert load(host, [path]) == {} or (data.get("backend") == backend and not narrow)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_names_a_clause_that_does_not_exist(path: Path) -> None:
    clauses = {clause.id for arch in ("x86", "arm64") for clause in all_clauses(arch)}
    assert not {entry["clause"] for entry in shipped(path)["known"]} - clauses


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_entry_is_there_twice_or_gives_no_reference(path: Path) -> None:
    entries = shipped(path)["known"]
    keys = [(entry["clause"], entry.get("cpu"), entry.get("model")) for entry in entries]
    assert len(keys) == len(set(keys))
    for entry in entries:
        assert len(entry["reason"].split()) > 5 and len(entry["reference"]) > 10


@pytest.mark.parametrize(
    ("ranges", "kernel", "applies"),
    [
        ("", "5.4.0", True),
        (">=6.12", "6.12.0-rc1", True),
        (">=6.12", "6.11.99", False),
        (">=6.12 <7.0", "6.18.44-fc", True),
        (">=6.12 <7.0", "7.0.1", False),
        ("<6.6", "6.6.0", False),
        ("<6.6", "6.5.13-generic", True),
        ("<=6.6.4", "6.6.4", True),
        ("<=6.6.4", "6.6.5", False),
        (">6.6", "6.6.0", False),
        (">6.6", "6.6.1", True),
        ("==6.1.128", "6.1.128-1-amd64", True),
        ("==6.1.128", "6.1.129", False),
        (">=6.2", "6.12.1", True),
    ],
)
def test_a_kernel_range_is_misread(known: Any, make_host: MakeHost, ranges: str, kernel: str, applies: bool) -> None:
    found = known(f'kernel = "{ranges}"\n{ENTRY}', make_host(kernel))
    assert bool(found) is applies


@pytest.mark.parametrize("ranges", ["6.12", "~6.12", ">= 6.12", ">=", "=>6.12", "!=6.1"])
def test_a_wrong_kernel_range_is_not_refused(known: Any, make_host: MakeHost, ranges: str) -> None:
    with pytest.raises(ExpectationError, match=r"some\.toml: .* is no kernel range"):
        known(f'kernel = "{ranges}"\n{ENTRY}', make_host())


@pytest.mark.parametrize(
    ("release", "numbers"),
    [("6.12.107-cloud", (6, 12, 107)), ("7.2", (7, 2, 0)), ("6.18.44-fc-v669", (6, 18, 44)),
     ("6.1.0-28-amd64", (6, 1, 0)),
     ("5.17", (5, 17, 0)), ("6", (6, 0, 0)), ("6.6.1.2.3", (6, 6, 1)), ("7.2.0+deb", (7, 2, 0))],
)  # fmt: skip
def test_a_release_is_misread(release: str, numbers: tuple[int, int, int]) -> None:
    assert version(release) == numbers


@pytest.mark.parametrize(
    ("head", "tail", "applies"),
    [
        ('backend = "kvm_intel"', "", True),
        ('backend = "kvm_amd"', "", False),
        ("", 'cpu = "GenuineIntel"', True),
        ("", 'cpu = "AuthenticAMD"', False),
        ("", 'model = "QEMU TCG CPU"', True),
        ("", 'model = "TCG"', False),
        ("", 'cpu = "GenuineIntel"\nmodel = "Some"', False),
        ('backend = "kvm_intel"\nkernel = "<6"', "", False),
    ],
)
def test_a_filter_is_ignored(known: Any, make_host: MakeHost, head: str, tail: str, applies: bool) -> None:
    host = make_host("6.12.1", model="QEMU TCG CPU version 2.5+")
    found = known(f"{head}\n{ENTRY}{tail}\n", host)
    assert found == ({"xcrs.fresh": Expectation("xcrs.fresh", "it is so", "see there")} if applies else {})


@pytest.mark.parametrize(
    "text",
    [
        f'back_end = "kvm_intel"\n{ENTRY}',
        f'{ENTRY}kernel = "<6"\n',
        f'{ENTRY}since = "6.1"\n',
        '[[known]]\nclause = "xcrs.fresh"\nreason = "it is so"\n',
        '[[known]]\nclause = "xcrs.fresh"\nreason = ""\nreference = "see there"\n',
        '[[known]]\nreason = "it is so"\nreference = "see there"\n',
    ],
)
def test_an_unknown_or_missing_key_is_not_refused(known: Any, make_host: MakeHost, text: str) -> None:
    with pytest.raises(ExpectationError, match=r"some\.toml.*: unknown keys .*, missing keys "):
        known(text, make_host())


def test_a_wrong_key_is_only_refused_on_the_hosts_concerned(known: Any, make_host: MakeHost) -> None:
    with pytest.raises(ExpectationError, match="entry 1"):
        known(f'backend = "kvm_other"\n{ENTRY}{ENTRY}when = "never"\n', make_host())


def test_a_file_that_is_no_toml_is_not_named(known: Any, make_host: MakeHost) -> None:
    with pytest.raises(ExpectationError, match=r"some\.toml"):
        known("[[known]\n", make_host())


KNOWN = {"xcrs.fresh": Expectation("xcrs.fresh", "it is so", "see there")}


@pytest.mark.parametrize(("before", "after"), [(Verdict.FAIL, Verdict.KNOWN), (Verdict.PASS, Verdict.XPASS)])
def test_a_known_failure_is_not_marked(before: Verdict, after: Verdict) -> None:
    result = ClauseResult("xcrs.fresh", before, "S.", expected="1", observed="3")
    assert apply(result, KNOWN) is result
    assert (result.verdict, result.reason, result.reference) == (after, "it is so", "see there")
    assert (result.expected, result.observed) == ("1", "3")


@pytest.mark.parametrize("verdict", [v for v in Verdict if v not in (Verdict.FAIL, Verdict.PASS)])
def test_another_verdict_is_changed(verdict: Verdict) -> None:
    result = apply(ClauseResult("xcrs.fresh", verdict, "S.", reason="its own"), KNOWN)
    assert (result.verdict, result.reason, result.reference) == (verdict, "its own", "")


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_clause_that_is_not_listed_is_changed(verdict: Verdict) -> None:
    result = apply(ClauseResult("xcrs.rules", verdict, "S."), KNOWN)
    assert (result.verdict, result.reason) == (verdict, "")
