# SPDX-License-Identifier: Apache-2.0
"""Kept machines: when one is booted, what is saved, what goes wrong; a Python program is the emulator."""

import sys
from pathlib import Path

import pytest
from labs.cache import Cache
from labs.cli import make_plans, parse
from labs.errors import LabError
from labs.kept import CONSOLE, POOL_SIZE, STATE, keep_machine
from labs.kernels import Kernel
from labs.machines import Boot, Machine, Options

# An agent that is ready at once, and a monitor with QMP's commands.
EMULATOR = """
import json, os, socket, sys
data, control, console, log = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
open(log, "a").write("booted\\n")
open(console, "a").write("[ 0.1] hello\\n")
FAULT
os.write(data, b"\\xf5LR" + bytes(4))
monitor, state, asked = socket.socket(fileno=control), None, 0
def say(**words):
    monitor.sendall(json.dumps(words).encode() + b"\\n")
say(QMP={})
while True:
    line, descriptors, _, _ = socket.recv_fds(monitor, 4096, 1)
    command = json.loads(line)
    name, arguments = command["execute"], command["arguments"]
    if name == "getfd":
        state, named = descriptors[0], arguments["fdname"]
    elif name == "migrate":
        scheme, place = arguments["uri"].split(":")
        assert scheme == "file" or place == named
        say(event="STOP")
        os.write(os.open(place, os.O_WRONLY | os.O_CREAT) if scheme == "file" else state, b"the machine")
    if name == "query-migrate":
        asked += 1
        say(**{"return": {"status": "active"} if asked < 3 else ANSWER})
    elif name == "REFUSED":
        say(error={"desc": "not now"})
    else:
        say(**{"return": {}})
    if name == "quit":
        break
"""
COMPLETED = '{"status": "completed"}'


class Emulated(Machine):
    """A machine whose emulator is a program here."""

    name, arch, modules, channel, power, console_device = "test", "amd64", (), "port", "acpi", "none"
    keeps_state = True

    def __init__(
        self, cache: Cache, log: Path, *, fault: str = "", answer: str = COMPLETED, refused: str = ""
    ) -> None:
        super().__init__(cache, Options("7.2"))
        program = EMULATOR.replace("FAULT", fault).replace("ANSWER", answer)
        self._program, self._log = program.replace("REFUSED", refused or "nothing"), log

    def prepare(self) -> None:
        pass

    def command(self, boot: Boot) -> list[str]:
        words = [boot.data, boot.control, boot.console, self._log]
        return [sys.executable, "-c", self._program, *map(str, words)]


def keep(machine: Emulated, last: bytes = b"last", pool: str = "") -> Path:
    archive = machine.cache.root / "archive"
    archive.write_bytes(b"archive")
    return keep_machine(machine.cache, machine, Kernel(machine.cache.root, "7.2.1"), [archive], last, pool)


def test_a_machine_is_booted_once_and_again_for_another_file_system(tmp_path: Path) -> None:
    log = tmp_path / "log"
    machine = Emulated(Cache(tmp_path / "cache"), log)
    first = keep(machine)
    assert (first / STATE).read_bytes() == b"the machine"
    assert (first / CONSOLE).read_text() == "[ 0.1] hello\n"
    assert keep(machine) == first
    assert log.read_text() == "booted\n"
    assert keep(machine, b"other") != first
    assert log.read_text() == "booted\n" * 2


def test_an_emulator_that_takes_no_file_is_told_its_name(tmp_path: Path) -> None:
    machine = Emulated(Cache(tmp_path / "cache"), tmp_path / "log")
    machine.opens_state = True
    assert (keep(machine) / STATE).read_bytes() == b"the machine"


def test_a_pool_has_its_own_machines_and_pushes_none_out_of_another(tmp_path: Path) -> None:
    machine = Emulated(Cache(tmp_path / "cache"), tmp_path / "log")
    usual = keep(machine)
    others = [keep(machine, str(number).encode(), "others") for number in range(POOL_SIZE + 1)]
    assert [path.exists() for path in (usual, *others)] == [True, False, *[True] * POOL_SIZE]
    assert {path.parent.name for path in others} == {"kept-others"}
    assert keep(machine) == usual


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"answer": '{"status": "failed", "error-desc": "no space"}'}, r"could not save its machine \(no space\)"),
        ({"refused": "migrate"}, "refuses migrate: not now"),
        (
            {"fault": "open(console, 'a').write('Kernel panic - not syncing: no init'); sys.exit(3)"},
            "panicked: no init",
        ),
        ({"fault": "sys.exit('no such CPU')"}, "status 1 before the command did. Its last words were:\n  .* hello"),
    ],
)
def test_what_cannot_be_kept_is_a_sentence_and_leaves_nothing(
    fault: dict[str, str], text: str, tmp_path: Path
) -> None:
    machine = Emulated(Cache(tmp_path / "cache"), tmp_path / "log", **fault)
    with pytest.raises(LabError, match=text):
        keep(machine)
    assert not list((tmp_path / "cache" / "kept").iterdir())


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("svm", True),
        ("sve --kernel 6.1 --cpu vq=1,2", True),
        ("sve --fresh", False),
        ("sve --cpus 1", False),
        ("svm --cpus 1", True),
        ("svm --shell", False),
        ("sve --pair", False),
        ("amx", False),
    ],
)
def test_what_has_a_terminal_or_an_address_of_its_own_is_booted(words: str, kept: bool, tmp_path: Path) -> None:
    plans = make_plans(Cache(tmp_path), *parse(words.split()))
    assert {plan.kept for plan in plans} == {kept}
