# SPDX-License-Identifier: Apache-2.0
"""States in files, and the commands that look at them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.patience import LIMIT
from tests.state.sealed import Piece, Sealed
from tests.state.state_samples import SAMPLES, explain, tiny_state, x86_state
from tests.state.stream_cases import TINY, read, refused, sealed, written
from vmm import cli
from vmm.arch import ARCHITECTURE
from vmm.state.errors import StreamError
from vmm.state.stream.container import Limits
from vmm.state.stream.files import load, save
from vmm.state.value import PayloadIdentity, VcpuState, VmState

STREAMS = sorted((Path(__file__).parents[1] / "data" / "streams").glob("*.vmst"))


# --- files ----------------------------------------------------------------------------------------


def test_a_saved_file_is_private_and_leaves_nothing_else_behind(tmp_path: Path) -> None:
    path = tmp_path / "state"
    mask = os.umask(0)
    try:
        save(path, x86_state())
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load(path) == x86_state()
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_a_failed_save_does_not_replace_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save(path, x86_state())
    before = path.read_bytes()
    broken = VmState("x86", (VcpuState({"lower": b""}),), ())
    with pytest.raises(ValueError):
        save(path, broken)

    def interrupted(*_: object) -> dict[str, str]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(path, x86_state(), interrupted)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_a_save_into_a_missing_folder_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "no" / "state", x86_state())


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "state", x86_state())
    assert not list(tmp_path.iterdir())


def test_a_load_validates_what_it_reads(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(TINY)
    with pytest.raises(StreamError, match="incomplete"):
        load(path)


# --- the corpus -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_a_stream_of_an_old_format_is_read(path: Path) -> None:
    state = load(path)
    assert read(written(state)) == state
    label = path.stem.partition("synthetic-")[2]
    if label:
        assert state == SAMPLES[label] == load(path, explain)


def test_the_corpus_has_streams_of_both_architectures() -> None:
    assert {"format1-synthetic-x86", "format1-synthetic-arm64-sve"} <= {path.stem for path in STREAMS}


def test_limits_are_the_callers() -> None:
    refused(TINY, "limit", limits=Limits(memory=4096))
    refused(TINY, "limit", limits=Limits(header=10))
    refused(TINY, "limit", limits=Limits(section=10))
    refused(TINY, "more than 2", limits=Limits(sections=2))
    note = sealed(lambda stream: stream.pieces.append(Piece("NOTE", 0, bytes(30000), flags=0)))
    assert read(note, limits=Limits(section=5000, parts=5000)) == tiny_state()
    refused(note, "30000 bytes are above the limit of 29999", limits=Limits(skipped=29999))
    refused(TINY, "more than 20 bytes beside the memory", limits=Limits(parts=20))
    refused(TINY, "CBOR with more than 6 items", limits=Limits(items=6))
    refused(TINY, "section 1 .* CBOR with more than 2 items", limits=Limits(items=9))


# --- the commands ---------------------------------------------------------------------------------

Command = Callable[..., tuple[int, str, str]]
OTHER = "arm64" if ARCHITECTURE == "x86" else "x86"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process; returns status, standard output and standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vmm", *map(str, arguments)])
        status = cli._run()
        return status, *capfd.readouterr()

    return run


def stream(label: str) -> Path:
    return next(path for path in STREAMS if path.stem == f"format1-synthetic-{label}")


def test_inspect_names_sections_and_registers(command: Command) -> None:
    status, out, err = command("inspect", stream("x86"))
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("format 1, x86, sha256 ")
    assert "kernel       6.12.48" in lines and "memory       1048576 bytes at 0x0" in lines
    sections = [line.split()[0] for line in lines[lines.index("") + 2 : lines.index("", lines.index("") + 1)]]
    assert sections == ["VMCONFIG", *SAMPLES["x86"].vcpus[0].parts, "MEMORY"]
    assert "3 pages in 2 sections" in out
    at = lines.index("vCPU 0 MSRS")
    assert lines[at + 1].split() == ["x86", "0x174", "0"]
    assert "VM CLOCK" in lines


def test_inspect_gives_the_same_as_json(command: Command) -> None:
    path = stream("x86-tiles")
    found = json.loads(command("inspect", path, "--json")[1])
    data = path.read_bytes()
    assert (found["format"], found["architecture"]) == (1, "x86")
    assert found["payload"]["sha256"] == SAMPLES["x86-tiles"].payload.digest.hex()  # type: ignore[union-attr]
    assert found["memory"] == [{"gpa": 0, "size": 1 << 20}]
    assert found["sha256"] == data[-64:-32].hex()
    assert [row["kind"] for row in found["sections"]] == [piece.kind for piece in Sealed.open(data).pieces]
    for row in found["sections"]:
        body = data[row["offset"] + 32 : row["offset"] + 32 + row["size"]]
        assert row["sha256"] == hashlib.sha256(data[row["offset"] : row["offset"] + 32] + body).hexdigest()
    assert [row["pages"] for row in found["sections"] if row["kind"] == "MEMORY"] == [1, 2]
    msrs = next(row for row in found["parts"] if row["part"] == "MSRS")
    assert msrs["vcpu"] == 0 and msrs["fields"]["x86 0xc0000103"] == 3 and "raw" not in msrs


@pytest.mark.parametrize("name", ["XSAVE", "CLOCK", "MSRS", "MEMORY", "VMCONFIG"])
def test_inspect_shows_the_section_that_was_asked_for(command: Command, name: str) -> None:
    found = json.loads(command("inspect", stream("x86"), "--json", "--section", name)[1])
    state = SAMPLES["x86"]
    assert {row["kind"] for row in found["sections"]} == ({name} - {"CLOCK"})
    if name == "MEMORY":
        assert not found["parts"]
        return
    (part,) = found["parts"]
    assert part["part"] == ("CLOCK" if name == "VMCONFIG" else name)
    raw = {**state.vcpus[0].parts, **state.machine}[part["part"]]
    expected = raw.hex() if isinstance(raw, bytes) else {f"{n:#x}": value.hex() for n, value in raw.items()}
    assert part["raw"] == expected
    text = command("inspect", stream("x86"), "--section", name)[1]
    assert (raw.hex() if isinstance(raw, bytes) else next(iter(expected.values()))) in text  # type: ignore[union-attr]


def test_inspect_of_an_unknown_section_names_those_there_are(command: Command) -> None:
    status, out, err = command("inspect", stream("x86"), "--section", "NESTED")
    assert (status, out) == (2, "")
    assert "no section 'NESTED'" in err and "XSAVE" in err and "CLOCK" in err


def test_inspect_reads_standard_input() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vmm", "inspect", "-"], input=stream("arm64").read_bytes(), capture_output=True,
        timeout=LIMIT, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith(b"format 1, arm64"), done.stderr


def test_a_foreign_stream_can_be_inspected(command: Command) -> None:
    status, out, _ = command("inspect", stream(OTHER))
    assert status == 0 and f"format 1, {OTHER}" in out and "bytes                    64" in out


def test_a_stream_without_fields_has_registers_where_it_can_be_decoded(command: Command, tmp_path: Path) -> None:
    for arch in ("x86", "arm64"):
        save(tmp_path / arch, SAMPLES[arch])
        out = command("inspect", tmp_path / arch)[1]
        assert ("does not say what it holds" in out) == (arch != ARCHITECTURE)
    if ARCHITECTURE == "x86":
        found = json.loads(command("inspect", tmp_path / "x86", "--json")[1])
        regs = next(row for row in found["parts"] if row["part"] == "REGS")
        assert regs["fields"]["rip"] == "0x74"


@pytest.mark.parametrize("arguments", [("inspect",), ("diff",), ("diff", "only one"), ("inspect", "a", "b")])
def test_wrong_usage_is_status_2(command: Command, arguments: tuple[str, ...]) -> None:
    assert command(*arguments)[0] == 2


def test_a_damaged_file_is_one_sentence_with_status_2(command: Command, tmp_path: Path) -> None:
    data = bytearray(stream("x86").read_bytes())
    data[1000] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    (tmp_path / "short").write_bytes(data[:900])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "other").write_bytes(b"#!/bin/sh\n" * 10)
    for name, what in (
        ("damaged", "its digest"),
        ("short", "cut off"),
        ("empty", "cut off"),
        ("other", "not a VM state stream"),
    ):
        for arguments in (("inspect", tmp_path / name), ("diff", tmp_path / name, stream("x86"))):
            status, out, err = command(*arguments)
            assert (status, out) == (2, "")
            assert err.startswith("vmm: ") and err.count("\n") == 1 and what in err, err
    assert command("inspect", tmp_path / "absent")[0] == 2


def test_a_strangers_control_characters_do_not_reach_the_terminal(command: Command, tmp_path: Path) -> None:
    state = SAMPLES["x86"]
    about = {"kernel\x1b[2J": "6.12\x1b]0;title\x07"}
    save(
        tmp_path / "state",
        VmState("x86", state.vcpus, state.memory, state.machine, PayloadIdentity("\x1b", bytes(32)), about),
    )
    out = command("inspect", tmp_path / "state")[1]
    assert "\x1b" not in out and "\x07" not in out and "kernel?[2J" in out


def test_only_an_unknown_section_that_is_not_critical_is_inspected(command: Command, tmp_path: Path) -> None:
    for flags in (0, 1):
        taken = Sealed.open(stream("x86").read_bytes())
        taken.pieces.insert(3, Piece("NOTE", 0, b"text", flags=flags))
        (tmp_path / "state").write_bytes(taken.seal())
        status, out, err = command("inspect", tmp_path / "state")
        assert (status, "(ancillary)" in out, "is critical" in err) == (
            (2, False, True) if flags else (0, True, False)
        )


def test_two_states_that_are_the_same_do_not_differ(command: Command) -> None:
    for path in STREAMS:
        assert command("diff", path, path) == (0, "", "")
        assert json.loads(command("diff", path, path, "--json")[1]) == {"equal": True, "differences": []}


@pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"names of x86 registers; this is {ARCHITECTURE}")
def test_a_register_that_differs_is_named(command: Command, tmp_path: Path) -> None:
    state = SAMPLES["x86"]
    regs = bytearray(state.vcpus[0].parts["REGS"])
    regs[128:136] = bytes(8)
    changed = (
        state.vcpus[0].with_part("REGS", bytes(regs)).with_part("MSRS", {**registers(state), 0x6A0: b"\1" + bytes(7)})
    )
    clock = {"CLOCK": (6 << 30).to_bytes(8, "little")}
    save(tmp_path / "other", VmState("x86", (changed,), state.memory, clock, state.payload))
    status, out, _ = command("diff", stream("x86"), tmp_path / "other")
    assert status == 1
    assert [line.split(":")[0] for line in out.splitlines()] == ["vCPU 0 MSRS.U_CET", "vCPU 0 REGS.rip"]
    found = json.loads(command("diff", stream("x86"), tmp_path / "other", "--json")[1])
    assert found["equal"] is False
    assert [row["name"] for row in found["differences"]] == ["MSRS.U_CET", "REGS.rip"]


def registers(state: VmState) -> dict[int, bytes]:
    part = state.vcpus[0].parts["MSRS"]
    assert not isinstance(part, bytes)
    return dict(part)


def test_states_of_two_architectures_differ(command: Command) -> None:
    status, out, _ = command("diff", stream("x86"), stream("arm64"))
    assert status == 1 and "arch: x86, arm64" in out


def test_a_state_whose_parts_have_another_shape_is_refused_with_status_2(command: Command, tmp_path: Path) -> None:
    state = SAMPLES["x86"]
    save(
        tmp_path / "state", VmState("x86", (state.vcpus[0].with_part("REGS", b"short"),), state.memory, state.machine)
    )
    status, out, err = command("diff", stream("x86"), tmp_path / "state")
    assert (status, out) == (2, "") and "REGS: it has 5 bytes and not 144" in err


def test_standard_input_is_not_read_twice() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vmm", "diff", "-", "-"], input=b"", capture_output=True, timeout=LIMIT, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 2 and b"only one of the two" in done.stderr
