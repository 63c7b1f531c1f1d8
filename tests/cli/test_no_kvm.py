# SPDX-License-Identifier: Apache-2.0
"""Where there is no KVM that can be used: its likely cause, in one sentence with exit status 2."""

from __future__ import annotations

import errno
import grp
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.command_line import BARE_DEV, Command, hidden, python, sentence
from vmm._kvm import lib
from vmm.kvm.ioctl import Call, interpose
from vmm.kvm.system import Kvm, KvmUnavailable


def open_fds() -> set[str]:
    """The descriptors of this process."""
    return set(os.listdir("/proc/self/fd"))


def unavailable(path: str) -> str:
    """Open a KVM that must not be usable; return the sentence, having looked that nothing stays open."""
    before = open_fds()
    with pytest.raises(KvmUnavailable) as caught:
        Kvm(path)
    assert len(open_fds()) == len(before)
    message = str(caught.value)
    assert path in message and "\n" not in message
    return message


def test_a_missing_device_is_unavailable(tmp_path: Path) -> None:
    assert "does not exist: load kvm_intel, kvm_amd" in unavailable(str(tmp_path / "kvm"))


def test_a_device_other_than_kvm_is_unavailable() -> None:
    assert unavailable("/dev/null").endswith("it is not a KVM device")


def test_a_folder_in_place_of_the_device_is_unavailable(tmp_path: Path) -> None:
    assert "could not be opened: Is a directory" in unavailable(str(tmp_path))


@pytest.mark.parametrize(
    ("version", "part"), [(11, "version 11, not 12"), (13, "version 13, not 12"), (0, "version 0")]
)
def test_another_api_version_is_unavailable(version: int, part: str) -> None:
    def kernel(call: Call, proceed: Callable[[], int]) -> int:
        return version if call.request == lib.KVM_GET_API_VERSION else proceed()

    with interpose(kernel):
        assert part in unavailable("/dev/null")


@pytest.mark.parametrize(
    ("number", "part"),
    [
        (errno.EPERM, "is forbidden here"),
        (errno.ENODEV, "no KVM answers"),
        (errno.ENXIO, "no KVM answers"),
        (errno.EBUSY, "another hypervisor"),
        (errno.EMFILE, "could not be opened: Too many open files"),
    ],
)
def test_an_open_error_gives_its_likely_cause(
    command: Command, monkeypatch: pytest.MonkeyPatch, number: int, part: str
) -> None:
    real = os.open

    def refuse(path: str, *arguments: int, **options: int) -> int:
        if path == "/dev/kvm":
            raise OSError(number, os.strerror(number), path)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    status, out, err = command("probe")
    assert status == 2 and out == ""
    assert part in sentence(err)


@pytest.mark.parametrize(
    ("user", "nodev", "sentence"),
    [
        (1000, False, "no permission to open PATH: join the group that owns it (here: GROUP) or run as root"),
        (0, False, "no permission to open PATH, although this is root: have the container or the sandbox pass it on"),
        (0, True, "PATH is on a file system that is mounted nodev, where no device may be opened: mount it without"),
        (
            1000,
            True,
            "PATH is on a file system that is mounted nodev, where no device may be opened: mount it without",
        ),
    ],
)
def test_a_missing_permission_is_explained_by_its_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: int, nodev: bool, sentence: str
) -> None:
    path = tmp_path / "kvm"
    path.touch()
    group = path.stat().st_gid

    def refuse(*arguments: object, **options: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NODEV if nodev else 0))
    expected = sentence.replace("PATH", str(path)).replace("GROUP", grp.getgrgid(group).gr_name)
    assert unavailable(str(path)) == expected


def test_a_device_on_a_nodev_mount_says_so_to_root() -> None:
    setup = "mkdir /dev/x && mount -t tmpfs -o nodev none /dev/x && mknod /dev/x/kvm c 10 232"
    setup += " && touch /dev/kvm && mount --bind /dev/x/kvm /dev/kvm"
    done = python("-m", "vmm", "probe", before=hidden(setup=f"{BARE_DEV} && {setup}"))
    assert done.returncode == 2 and "mounted nodev" in sentence(done.stderr)


def test_a_missing_dev_kvm_is_one_sentence_with_status_2() -> None:
    done = python("-m", "vmm", "check", "--format", "json", "--kselftest", before=hidden(setup=BARE_DEV))
    assert done.returncode == 2
    assert "/dev/kvm does not exist: load " in sentence(done.stderr)
    assert done.stdout == ""


def test_a_dev_kvm_that_is_not_kvm_is_one_sentence_with_status_2() -> None:
    if not Path("/dev/kvm").exists():
        pytest.skip("there is no /dev/kvm to hide")
    done = python("-m", "vmm", "check", before=hidden(setup="mount --bind /dev/null /dev/kvm"))
    assert done.returncode == 2
    assert sentence(done.stderr).endswith("it is not a KVM device")


@pytest.mark.parametrize("arguments", [("check",), ("probe",)])
def test_a_missing_permission_is_one_sentence_with_status_2(arguments: tuple[str, ...]) -> None:
    try:
        mode = os.stat("/dev/kvm")
    except FileNotFoundError:
        pytest.skip("there is no /dev/kvm to be kept from")
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root with setpriv can become somebody else")
    if stat.S_IMODE(mode.st_mode) & 0o006 == 0o006:
        pytest.skip(f"everybody may open this /dev/kvm: mode {stat.S_IMODE(mode.st_mode):o}")
    # Somebody who may read every file, so that Python and the package are found wherever they are.
    caps = (
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=-all,+dac_read_search",
        "--bounding-set=-all,+dac_read_search",
    )
    before = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *caps)
    tried = subprocess.run([*before, sys.executable, "-c", ""], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"an unprivileged Python does not start here: {tried.stderr.strip()[-200:]}")
    done = python("-m", "vmm", *arguments, before=before)
    assert done.returncode == 2
    assert sentence(done.stderr).startswith("no permission to open /dev/kvm: ")
    assert done.stdout == ""
