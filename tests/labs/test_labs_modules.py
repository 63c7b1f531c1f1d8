# SPDX-License-Identifier: Apache-2.0
"""Modules of one's own in a machine: `scripts/lab --modules`."""

import json
from pathlib import Path

import pytest
from labs.cache import Cache
from labs.cli import make_plans, parse
from labs.errors import LabError
from labs.image import agent_archive
from labs.kernels import Kernel, replace_modules
from labs.session import MACHINES, _instructions

RELEASE = "7.2.13+deb14-cloud-amd64"


def module(path: Path, release: str = RELEASE, content: bytes = b"") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x7fELF\0vermagic=" + release.encode() + b" SMP preempt \0" + content)
    return path


@pytest.fixture
def inserted(tmp_path: Path) -> list[Path]:
    """The modules of a kernel, in their order."""
    return [module(tmp_path / "kernel" / name) for name in ("irqbypass.ko", "kvm.ko", "kvm_amd.ko")]


def test_modules_replace_those_of_their_names_in_the_kernels_order(tmp_path: Path, inserted: list[Path]) -> None:
    amd = module(tmp_path / "mine" / "kvm-amd.ko")  # as the build names it, with a hyphen
    kvm = module(tmp_path / "mine" / "kvm.ko")
    module(tmp_path / "mine" / "kvm-intel.ko")  # which this machine does not insert
    assert replace_modules(inserted, tmp_path / "mine", RELEASE) == [inserted[0], kvm, amd]


def test_a_module_for_another_kernel_is_refused(tmp_path: Path, inserted: list[Path]) -> None:
    module(tmp_path / "mine" / "kvm.ko", "6.12.1-cloud-amd64")
    with pytest.raises(LabError, match=r"kvm\.ko was built for 6\.12\.1-cloud-amd64, the machine runs 7\.2\.13"):
        replace_modules(inserted, tmp_path / "mine", RELEASE)


def test_what_is_no_module_is_refused(tmp_path: Path, inserted: list[Path]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kvm.ko").write_bytes(b"text")
    with pytest.raises(LabError, match="built for no kernel"):
        replace_modules(inserted, tmp_path / "mine", RELEASE)


def test_a_folder_that_replaces_nothing_is_refused(tmp_path: Path, inserted: list[Path]) -> None:
    module(tmp_path / "mine" / "kvm-intel.ko")
    with pytest.raises(LabError, match=r"none of the modules that this machine inserts \(irqbypass\.ko, kvm\.ko"):
        replace_modules(inserted, tmp_path / "mine", RELEASE)


def test_a_machine_inserts_the_modules_of_the_folder_and_is_kept_by_their_content(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, RELEASE)
    groups = {name: ["kvm.ko"] if name == "kvm_amd" else [] for name in MACHINES["svm"].modules}
    (tmp_path / "modules.json").write_text(json.dumps(groups))
    module(tmp_path / "modules" / "kvm.ko")
    agent = module(tmp_path / "agent")

    def last(*words: str) -> bytes:
        (plan,) = make_plans(Cache(tmp_path / "cache"), *parse(["svm", *words]))
        setup, _ = _instructions(plan, kernel)
        return agent_archive(agent, setup, None)  # what keys a kept machine

    mine = module(tmp_path / "mine" / "kvm.ko", content=b"one")
    first = last("--modules", str(mine.parent))
    assert b"one" in first and first != last()
    module(mine, content=b"two")
    assert last("--modules", str(mine.parent)) != first


def test_a_folder_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        parse(["amx", "--modules", str(tmp_path / "missing")])
    assert end.value.code == 2
