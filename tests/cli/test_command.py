# SPDX-License-Identifier: Apache-2.0
"""The command: what it imports and lists, and its one sentence with exit status 2 for the user's mistakes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.metadata
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

import vmm.kvm.system
from tests.cli.command_line import Command, environment, python, sentence
from vmm import cli
from vmm.arch import ARCHITECTURE
from vmm.conformance.registry import all_clauses
from vmm.guest.payload import FOLDER, names
from vmm.kvm.ioctl import Call, interpose
from vmm.kvm.system import Kvm, KvmUnavailable

on_x86 = pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"x86 clauses or payloads; this is {ARCHITECTURE}")


# Help and lists


def test_help_does_not_import_what_it_does_not_need() -> None:
    probe = (
        "import sys\n"
        "from vmm.cli import main\n"
        "sys.argv = ['vmm', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = ('vmm._kvm', '_cffi_backend', 'cffi', 'elftools', 'rich', 'vmm.kvm.ioctl', 'vmm.conformance')\n"
        "print('imported:', [name for name in heavy if name in sys.modules])\n"
    )
    done = python("-c", probe)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: []"
    for name in ("bench", "check", "probe", "run"):
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("name", sorted(cli._COMMANDS))
def test_a_listed_command_exists_and_has_help(name: str) -> None:
    found = importlib.import_module(f"vmm.cli.{name}").command
    assert isinstance(found, click.Command)
    assert found.name == name and found.help


@pytest.mark.parametrize("name", sorted(cli._COMMANDS))
def test_the_help_of_a_command_is_printed(command: Command, name: str) -> None:
    status, out, err = command(name, "--help")
    assert (status, err) == (0, "")
    assert out.startswith("Usage: ") and "--help" in out


def test_the_help_of_run_names_the_payloads(command: Command) -> None:
    assert ", ".join(names()) in " ".join(command("run", "-h")[1].split())


def test_the_version_is_printed(command: Command) -> None:
    try:
        importlib.metadata.version("xstate-vmm")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("xstate-vmm is not installed in this environment")
    status, out, _ = command("--version")
    assert status == 0 and out.startswith("vmm, version ")


def test_the_list_has_every_clause(command: Command) -> None:
    status, out, err = command("check", "--list")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [clause.id for clause in all_clauses()]
    assert len(lines) == 3 * len(all_clauses())


def test_the_json_list_has_every_clause_and_field(command: Command) -> None:
    status, out, _ = command("check", "--list", "--format", "json")
    assert status == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["id"] for record in records] == [clause.id for clause in all_clauses()]
    for record, clause in zip(records, all_clauses(), strict=True):
        assert (record["statement"], record["source"]) == (clause.statement, clause.source)
        assert record["needs"] == [need.name for need in clause.needs]
        assert (record["info"], record["dangerous"]) == (clause.info, clause.dangerous)


@on_x86
def test_the_list_honours_globs(command: Command) -> None:
    _, out, _ = command("check", "--list", "xcrs.f*", "mig.*", "--format", "json")
    areas = [json.loads(line)["id"].split(".")[0] for line in out.splitlines()]
    assert set(areas) == {"xcrs", "mig"} and areas.count("xcrs") == 1


def test_the_list_needs_no_kvm(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmm.kvm.system, "DEVICE", "/nonexistent/kvm")
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: pytest.fail("a server was started"))
    assert command("check", "--list")[0] == 0


# Wrong use


_KVM = pytest.mark.kvm


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        pytest.param(("check", "nonesuch.*"), "no clause matches 'nonesuch.*'", marks=_KVM),
        (("check", "--list", "XCRS.*"), "no clause matches 'XCRS.*'"),
        (("check", "--format", "html"), "'html' is not one of 'text', 'ktap', 'json', 'junit'"),
        (("check", "--jobs", "0"), "0 is not in the range"),
        (("check", "--jobs", "many"), "'many' is not a valid integer"),
        (("check", "--time-scale", "0"), "0.0 is not in the range"),
        (("check", "--color"), "No such option"),
        pytest.param(
            ("run", "nonesuch"), "nonesuch is neither a file nor one of the payloads here", marks=pytest.mark.kvm
        ),
        pytest.param(("run", "hello", "nonesuch"), "payload hello has no symbol 'nonesuch'", marks=_KVM),
        pytest.param(
            ("run", "hello", "_start", "zz"), "'zz' is not a number: write it as 42 or 0x2a", marks=pytest.mark.kvm
        ),
        pytest.param(("run", "hello", "_start", "1", "1.5"), "'1.5' is not a number", marks=_KVM),
        (("run", "hello", "--privilege", "4"), "4 is not in the range"),
        (("run", "hello", "--timeout", "0"), "is not in the range"),
        (("run",), "Missing argument 'PAYLOAD'"),
        pytest.param(("run", "/"), "/ is not a regular file", marks=_KVM),
        (("chekc",), "No such command 'chekc'"),
        (("--jobs", "2"), "No such option"),
    ],
)
def test_wrong_use_is_one_sentence_with_status_2(command: Command, arguments: tuple[str, ...], part: str) -> None:
    status, out, err = command(*arguments)
    assert status == 2 and out == ""
    assert part in sentence(err)


@pytest.mark.kvm
@pytest.mark.parametrize("length", [0, 3, 40, 63, 100, 4000])
def test_a_truncated_elf_is_one_sentence_with_status_2(command: Command, tmp_path: Path, length: int) -> None:
    path = tmp_path / f"cut{length}.elf"
    path.write_bytes((FOLDER / "hello.elf").read_bytes()[:length])
    status, out, err = command("run", str(path))
    assert status == 2 and out == ""
    assert str(path) in sentence(err)


@pytest.mark.kvm
def test_an_elf_for_another_machine_is_one_sentence_with_status_2(command: Command, tmp_path: Path) -> None:
    data = bytearray((FOLDER / "hello.elf").read_bytes())
    struct.pack_into("<H", data, 18, 243)
    path = tmp_path / "riscv.elf"
    path.write_bytes(data)
    status, _, err = command("run", str(path))
    assert status == 2 and "EM_RISCV" in sentence(err)


@pytest.mark.kvm
@on_x86
def test_a_payload_outside_guest_memory_is_status_2_without_a_traceback(
    kvm: Kvm, command: Command, tmp_path: Path
) -> None:
    data = bytearray((FOLDER / "hello.elf").read_bytes())
    struct.pack_into("<Q", data, 64 + 24, 1 << 40)  # p_paddr of the first segment
    path = tmp_path / "far.elf"
    path.write_bytes(data)
    status, _, _ = command("run", str(path))
    assert status == 2


@pytest.mark.kvm
def test_an_unwritable_output_is_one_sentence_with_status_2(command: Command, tmp_path: Path) -> None:
    status, _, err = command("check", "-o", str(tmp_path / "no/such/folder/out.txt"))
    assert status == 2
    assert "cannot be written: " in sentence(err) and str(tmp_path) in sentence(err)


@cache
def reader_left() -> tuple[int, str]:
    """Status and standard error of a list whose reader is gone before the first line."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "vmm", "check", "--list"],
            stdout=closed, stderr=subprocess.PIPE, env=environment(), text=True,
        )  # fmt: skip
    return done.returncode, done.stderr


def test_a_reader_that_left_makes_no_traceback() -> None:
    status, err = reader_left()
    assert status != 0 and err == ""


def test_a_reader_that_left_is_status_141_and_not_a_failed_clause() -> None:
    assert reader_left()[0] == 141


def test_a_full_disk_is_one_sentence_with_status_2(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    full = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", full)
    try:
        status, _, err = command("check", "--list")
    finally:
        with contextlib.suppress(OSError):
            full.detach()
    assert status == 2 and "No space left on device" in sentence(err)


@pytest.mark.parametrize("number", ["inf", "nan"])
def test_an_endless_timeout_is_one_sentence_with_status_2(
    command: Command, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    def no_kvm(*arguments: object) -> None:
        raise KvmUnavailable("the option was accepted")

    monkeypatch.setattr("vmm.cli.run.Kvm", no_kvm)
    status, _, err = command("run", "hello", "--timeout", number)
    assert status == 2 and "--timeout" in sentence(err)


@pytest.mark.kvm
def test_a_refused_call_is_one_sentence_with_status_2(kvm: Kvm, command: Command) -> None:
    def kernel(call: Call, proceed: Callable[[], int]) -> int:
        return -errno.EBUSY if call.name == "KVM_CREATE_VM" else proceed()

    with interpose(kernel):
        status, _, err = command("run", "hello")
    assert status == 2
    assert sentence(err) == (
        "KVM_CREATE_VM failed with EBUSY: another hypervisor holds the virtualization extensions"
    )


# With a KVM


@pytest.mark.kvm
@on_x86
def test_a_report_reaches_its_file(kvm: Kvm, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "out.xml"
    status, out, _ = command("check", "xcrs.fresh", "perm.supp-*", "--format", "junit", "-o", str(path))
    assert out == ""
    cases = {case.get("name") for case in ElementTree.parse(path).iter("testcase")}
    assert "xcrs.fresh" in cases and len(cases) >= 2
    assert status in (0, 1)


@pytest.mark.kvm
def test_the_probe_is_json(kvm: Kvm, command: Command) -> None:
    status, out, _ = command("probe", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["kernel"] == os.uname().release and found["architecture"] == ARCHITECTURE
    assert found["capabilities"]
