# SPDX-License-Identifier: Apache-2.0
"""Running: the command line, frames, the supervision of an emulator, what it leaves; no machine is booted."""

import hashlib
import io
import os
import random
import socket
import sys
import tarfile
import time
from pathlib import Path

import pytest
from labs.cache import Cache
from labs.cli import main, make_plans, parse
from labs.errors import LabError
from labs.frames import FrameReader, frame
from labs.kernels import Kernel
from labs.machines import Boot, Options, Port
from labs.qemu import Sve, Svm
from labs.session import StreamSink, _status, extract_files
from labs.supervise import Guest, console_tail, supervise

from tests.patience import LIMIT, patiently

# the command line


def test_the_default_command_is_the_conformance_run(tmp_path: Path) -> None:
    options, commands = parse(["svm"])
    (plan,) = make_plans(Cache(tmp_path), options, commands)
    assert plan.command[:4] == ["vmm", "check", "--format", "json"]
    assert (plan.machine.name, plan.machine.options.kernel) == ("svm", "7.2")


def test_a_commands_own_options_are_not_ours() -> None:
    options, commands = parse(["svm", "--kernel", "6.1", "--", "vmm", "check", "--kernel", "x"])
    assert options.kernel == ["6.1"]
    assert commands == [["vmm", "check", "--kernel", "x"]]


def test_a_pair_has_two_commands_kernels_and_sets_of_lengths(tmp_path: Path) -> None:
    words = [
        "sve",
        "--pair",
        "--kernel",
        "6.12",
        "--kernel",
        "7.2",
        "--cpu",
        "vq=1,2",
        "--",
        "one",
        "--",
        "two",
        "x",
    ]
    plans = make_plans(Cache(tmp_path), *parse(words))
    assert [plan.command for plan in plans] == [["one"], ["two", "x"]]
    assert [plan.machine.options.kernel for plan in plans] == ["6.12", "7.2"]
    assert [plan.machine.options.cpu for plan in plans] == ["vq=1,2", "vq=1,2"]
    assert [plan.address for plan in plans] == ["10.9.0.1", "10.9.0.2"]
    assert plans[0].port is not None and plans[1].port is not None
    assert plans[0].port.mac != plans[1].port.mac
    os.write(plans[0].port.socket, b"ping")
    assert os.read(plans[1].port.socket, 4) == b"ping"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["vax"],
        ["svm", "--kernel", "2.4"],
        ["svm", "--kernel", "sid:sid"],
        ["svm", "--cpu", "max,max"],
        ["svm", "--cpus", "3"],
        ["svm", "--pool", "../x"],
        ["svm", "--emulator", "trixie/x"],
        ["svm", "--", "a", "--", "b"],
        ["svm", "--shell", "--", "a"],
        ["svm", "--kernel", "6.1", "--kernel", "7.2"],
    ],
)
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(words)
    assert end.value.code == 2


@pytest.mark.apart  # scripts/lab takes SIGTERM over
def test_a_lab_failure_is_one_sentence_and_125(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["amx", "--pair"]) == 125
    assert capsys.readouterr().err.startswith("scripts/lab: Only svm and sve can be paired")


# the emulators' command lines


class FakeRoot:
    def __init__(self, root: Path, version: tuple[int, int] = (7, 2)) -> None:
        self.root, self._version = root, version

    def version(self, package: str) -> tuple[int, int]:
        return self._version

    def command(self, program: str) -> list[str]:
        return [program]


def fake_qemu(kind: type, tmp_path: Path, options: Options) -> list[str]:
    machine = kind(None, options)
    machine._root = FakeRoot(tmp_path)
    kernel = Kernel(tmp_path, "7.2")
    boot = Boot(tmp_path, kernel, tmp_path / "initrd", 7, tmp_path / "console", port=Port(9, "m"))
    words: list[str] = machine.command(boot)
    return words


@pytest.mark.parametrize("kind", [Svm, Sve])
def test_an_emulator_has_no_network_but_the_cable(kind: type, tmp_path: Path) -> None:
    words = fake_qemu(kind, tmp_path, Options("7.2"))
    assert words[words.index("-netdev") + 1] == "socket,id=cable,fd=9"
    assert words.count("-netdev") == 1
    assert "-nodefaults" in words
    assert not any("user" in word.split(",") or "tcp:" in word for word in words)


@pytest.mark.parametrize("mode", ["nvhe", "protected", "nested"])
def test_how_kvm_uses_el2_is_a_kernel_argument(mode: str, tmp_path: Path) -> None:
    words = fake_qemu(Sve, tmp_path, Options("7.2", mode=mode))
    assert f"kvm-arm.mode={mode}" in words[words.index("-append") + 1].split()
    assert "kvm-arm" not in fake_qemu(Sve, tmp_path, Options("7.2"))[words.index("-append") + 1]


def test_what_is_not_a_feature_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="features"):
        fake_qemu(Svm, tmp_path, Options("7.2", cpu="host,x=1"))


@pytest.mark.parametrize(
    ("kind", "cpu", "expected"),
    [
        (Svm, None, "max,+svm,-cx16"),
        (Svm, "-pku,+la57", "max,+svm,-cx16,-pku,+la57"),
        (Svm, "EPYC-Milan,-avx2", "EPYC-Milan,+svm,-cx16,-avx2"),
        (Sve, "a64fx", "a64fx"),
        (Sve, "cortex-a76,-pmu", "cortex-a76,pmu=off"),
        (Sve, "max,-pauth,-sve", "max,pauth-impdef=off,lpa2=off,sve=off,pauth=off"),
        (Sve, "max,-sve,+lpa2", "max,pauth-impdef=on,lpa2=on,sve=off"),
        (Sve, "cortex-a76,+mte,-pmu", "cortex-a76,pmu=off"),
    ],
)
def test_a_processor_is_a_model_with_features(kind: type, cpu: str | None, expected: str, tmp_path: Path) -> None:
    words = fake_qemu(kind, tmp_path, Options("7.2", cpu=cpu))
    assert words[words.index("-cpu") + 1] == expected


def test_memory_tags_are_the_boards(tmp_path: Path) -> None:
    for cpu, tags in ((None, False), ("+mte", True), ("neoverse-n2,+mte", True), ("-mte", False)):
        words = fake_qemu(Sve, tmp_path, Options("7.2", cpu=cpu))
        assert ("mte=on" in words[words.index("-machine") + 1].split(",")) == tags
        assert "mte" not in words[words.index("-cpu") + 1]


def test_memory_tags_that_do_not_work_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, works in (((7, 2), False), ((10, 0), True)):
        monkeypatch.setattr("labs.qemu.HostRoot", lambda *_, version=version: FakeRoot(tmp_path, version))
        monkeypatch.setattr(Sve, "_try_processor", lambda machine: None)
        machine = Sve(None, Options("7.2", cpu="+mte"))  # type: ignore[arg-type]
        if works:
            machine.prepare()
        else:
            with pytest.raises(LabError, match=r"--cpu \+mte: the memory tags of this QEMU overwrite each other"):
                machine.prepare()


@pytest.mark.parametrize(("opens", "source"), [(False, "fd:5"), (True, "file:/proc/self/fd/5")])
def test_a_kept_state_is_given_to_qemu_as_its_release_takes_it(opens: bool, source: str, tmp_path: Path) -> None:
    machine = Sve(None, Options("7.2"))  # type: ignore[arg-type]
    machine._root = FakeRoot(tmp_path)  # type: ignore[assignment]
    machine.opens_state = opens
    boot = Boot(tmp_path, Kernel(tmp_path, "7.2"), None, 7, tmp_path / "console", state=5)
    words = machine.command(boot)
    assert words[words.index("-incoming") + 1] == source


def test_sve_has_four_lengths_and_with_a_set_those_of_the_set(tmp_path: Path) -> None:
    for cpu, largest in ((None, 512), ("vq=1,2", 256), ("a64fx,vq=1", 128)):
        words = fake_qemu(Sve, tmp_path, Options("7.2", cpu=cpu))[:]
        properties = words[words.index("-cpu") + 1].split(",")
        assert f"sve{largest}=on" in properties and f"sve{2 * largest}=off" in properties
    with pytest.raises(LabError, match="is for sve"):
        fake_qemu(Svm, tmp_path, Options("7.2", cpu="vq=1"))


@pytest.mark.parametrize("kind", [Svm, Sve])
def test_two_processors_share_a_thread(kind: type, tmp_path: Path) -> None:
    words = fake_qemu(kind, tmp_path, Options("7.2", cpus=2))
    assert words[words.index("-smp") + 1] == "2"
    assert words[words.index("-accel") + 1] == "tcg,thread=single"
    one = fake_qemu(kind, tmp_path, Options("7.2", cpus=1))
    assert one[one.index("-smp") + 1] == "1"


# frames


def test_frames_survive_any_cutting() -> None:
    payloads = [("H", b"hello"), ("O", b"\xf5"), ("O", b"\xf5LO\xff" * 50), ("E", b""), ("X", b"3")]
    stream = b"emulator's banner \xf5 \xf5L" + b"".join(frame(*payload) for payload in payloads) + b"bye"
    chance = random.Random(1)
    for _ in range(50):
        reader, found, rest = FrameReader(), [], stream
        while rest:
            size = chance.randint(1, 9)
            found += list(reader.feed(rest[:size]))
            rest = rest[size:]
        assert found == payloads
        assert reader.noise.startswith(b"emulator's banner")


def test_the_sink_labels_whole_lines(tmp_path: Path) -> None:
    output, errors = io.BytesIO(), io.BytesIO()
    sink = StreamSink(tmp_path / "tar", "a| ", output, errors)
    sink.output(b"one\ntw")
    sink.error(b"oops\n")
    sink.output(b"o\nlast")
    sink.finish()
    assert output.getvalue() == b"a| one\na| two\na| last\n"
    assert errors.getvalue() == b"a| oops\n"


# supervision, with a Python program as the emulator


class Collector:
    def __init__(self) -> None:
        self.out, self.err, self.tar = b"", b"", b""

    def output(self, data: bytes) -> None:
        self.out += data

    def error(self, data: bytes) -> None:
        self.err += data

    def files(self, data: bytes) -> None:
        self.tar += data


PRELUDE = """
import os, sys, time
fd, console = int(sys.argv[1]), sys.argv[2]
def frame(kind, payload):
    os.write(fd, b"\\xf5L" + kind + len(payload).to_bytes(4, "little") + payload)
def say(text):
    open(console, "a").write(text)
"""


def emulate(
    tmp_path: Path, program: str, timeout: float = LIMIT, outgoing: bytes = b""
) -> tuple[Guest, Collector, float]:
    ours, theirs = (end.detach() for end in socket.socketpair())
    console, sink = tmp_path / "console", Collector()
    command = [sys.executable, "-c", PRELUDE + program, str(theirs), str(console)]
    guest = Guest("test", command, {}, (ours, theirs), False, console, tmp_path / "log", (), sink, outgoing)
    start = time.monotonic()
    supervise([guest], timeout)
    assert guest.ended
    return guest, sink, time.monotonic() - start


def test_output_files_and_status_arrive(tmp_path: Path) -> None:
    program = "frame(b'H', b'hi'); frame(b'O', b'out'); frame(b'E', b'err'); frame(b'F', b'tar'); frame(b'X', b'7')"
    guest, sink, _ = emulate(tmp_path, program)
    assert (sink.out, sink.err, sink.tar) == (b"out", b"err", b"tar")
    assert (guest.status, guest.failure) == (7, None)


def test_a_task_larger_than_the_channel_arrives_whole_while_output_comes(tmp_path: Path) -> None:
    program = """
import hashlib
total, left = hashlib.sha256(), 5000000
while left:
    data = os.read(fd, min(left, 50000)); total.update(data); left -= len(data); frame(b'O', data[:1])
frame(b'E', total.hexdigest().encode()); frame(b'X', b'0')
"""
    task = random.Random(1).randbytes(5000000)
    guest, sink, _ = emulate(tmp_path, program, outgoing=task)
    assert (sink.err.decode(), guest.status) == (hashlib.sha256(task).hexdigest(), 0)


def test_an_emulator_that_dies_before_it_takes_its_task_is_named(tmp_path: Path) -> None:
    guest, _, _ = emulate(tmp_path, "sys.exit('no such state')", outgoing=bytes(5000000))
    assert guest.failure is not None and "status 1" in guest.failure
    assert console_tail(guest) == ["no such state"]


def test_a_machine_that_hangs_is_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def attempt(scale: float) -> Guest:
        guest, _, seconds = emulate(tmp_path, "say('the last line\\n'); time.sleep(3600)", timeout=scale)
        assert guest.failure is not None and f"within {scale:g} s" in guest.failure
        assert scale <= seconds < scale + LIMIT
        assert console_tail(guest)[-1:] == ["the last line"]
        return guest

    guest = patiently(attempt)
    assert _status([guest]) == 125
    assert "the last line" in capsys.readouterr().err


def test_a_panic_ends_the_machine_before_the_time_limit(tmp_path: Path) -> None:
    panic = "say('[ 1.0] Kernel panic - not syncing: no init\\r\\n[ 1.1] more\\r\\n'); time.sleep(3600)"
    guest, _, seconds = emulate(tmp_path, panic)
    assert guest.failure == "The kernel of the machine test panicked: no init."
    assert seconds < LIMIT
    assert console_tail(guest)[-1] == "[ 1.1] more"


def test_a_warning_that_the_kernel_survived_is_passed_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guest, _, _ = emulate(tmp_path, "say('[ 1.0] WARNING: CPU: 0 at x.c:1\\r\\n'); frame(b'X', b'0')")
    assert _status([guest]) == 0
    assert "reported: [ 1.0] WARNING: CPU: 0 at x.c:1\n" in capsys.readouterr().err


def test_an_emulator_that_dies_is_named(tmp_path: Path) -> None:
    guest, _, _ = emulate(tmp_path, "print('cannot map', file=sys.stderr); sys.exit(4)")
    assert guest.failure is not None and "status 4" in guest.failure
    assert console_tail(guest) == ["cannot map"]


def test_a_second_start_is_a_failure(tmp_path: Path) -> None:
    guest, _, _ = emulate(tmp_path, "frame(b'H', b'1'); frame(b'H', b'2'); time.sleep(3600)")
    assert guest.failure is not None and "second time" in guest.failure


def test_a_machine_that_does_not_switch_off_is_ended_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labs.supervise._END_GRACE", 0.5)
    guest, _, seconds = emulate(tmp_path, "frame(b'X', b'0'); time.sleep(3600)")
    assert (guest.status, guest.failure) == (0, None)
    assert seconds < LIMIT


def test_the_first_status_that_is_not_zero_counts(tmp_path: Path) -> None:
    good, _, _ = emulate(tmp_path, "frame(b'X', b'0')")
    bad, _, _ = emulate(tmp_path, "frame(b'X', b'9')")
    assert _status([good, bad]) == 9
    assert _status([good, good]) == 0


# what comes back


def test_files_come_back_and_none_escapes(tmp_path: Path) -> None:
    archive = tmp_path / "out.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("./report.json", "deep/file", "../escape", "/absolute"):
            member = tarfile.TarInfo(name)
            member.size = 2
            tar.addfile(member, io.BytesIO(b"ok"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    out = tmp_path / "out"
    extract_files(archive, out)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*")) == [
        "deep",
        "deep/file",
        "report.json",
    ]
    assert not (tmp_path / "escape").exists()


def test_no_files_make_an_empty_folder_and_damage_is_named(tmp_path: Path) -> None:
    extract_files(tmp_path / "none", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "bad.tar").write_bytes(b"x" * 1000)
    with pytest.raises(LabError, match="damaged"):
        extract_files(tmp_path / "bad.tar", tmp_path / "out")
