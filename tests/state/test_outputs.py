# SPDX-License-Identifier: Apache-2.0
"""Where a state is written to: links, devices, pipes and folders that somebody else owns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.patience import LIMIT
from tests.state.state_samples import x86_state
from vmm.state.stream import files
from vmm.state.stream.encode import write_state
from vmm.state.stream.files import check_place, load, save

STATE = x86_state()


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    target = tmp_path / "other" / "real.vm"
    target.write_bytes(b"old")
    link = tmp_path / "link.vm"
    link.symlink_to(target)
    save(link, STATE)
    assert link.is_symlink() and not target.is_symlink()
    assert load(target) == load(link)


def test_a_link_that_leads_nowhere_makes_the_file_that_it_names(tmp_path: Path) -> None:
    link = tmp_path / "link.vm"
    link.symlink_to(tmp_path / "new.vm")
    save(link, STATE)
    assert link.is_symlink() and (tmp_path / "new.vm").is_file()


def test_a_character_device_is_written_to_and_stays_one() -> None:
    before = os.stat("/dev/null")
    save("/dev/null", STATE)
    after = os.stat("/dev/null")
    assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)


def test_a_fifo_is_written_to_and_stays_one(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()), daemon=True)
    reader.start()
    save(fifo, STATE)
    reader.join(LIMIT)
    whole = tmp_path / "whole.vm"
    with open(whole, "wb") as file:
        write_state(file, STATE, None)
    assert got == [whole.read_bytes()]
    assert fifo.is_fifo()


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: None], ids=["a folder", "a missing folder"])
def test_what_cannot_become_a_file_is_refused_by_the_name_that_was_given(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    place = tmp_path / "place"
    make(place)
    given = place if place.is_dir() else place / "state.vm"
    calls: list[Callable[[], object]] = [lambda: save(given, STATE), lambda: check_place(given)]
    for call in calls:
        with pytest.raises(OSError) as error:
            call()
        assert error.value.filename == os.fspath(given)
    assert sorted(tmp_path.rglob("*")) == ([place] if place.is_dir() else [])


@pytest.mark.parametrize("place", ["/dev/null", "/", ""])
def test_a_place_that_does_not_keep_a_state_is_found_before_there_is_one(place: str) -> None:
    with pytest.raises(OSError):
        check_place(place)


def test_asking_for_a_place_leaves_nothing_there(tmp_path: Path) -> None:
    check_place(tmp_path / "state.vm")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_killed_while_it_writes_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from vmm.state.stream import files\n"
        "def die(file, *rest):\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_state = die\n"
        "files.save(sys.argv[1], None)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "state.vm")], timeout=LIMIT)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "state.vm"
    target.write_bytes(b"old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_state", full)
    with pytest.raises(OSError) as error:
        save(target, STATE)
    assert (error.value.errno, error.value.filename) == (28, str(target))
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]
