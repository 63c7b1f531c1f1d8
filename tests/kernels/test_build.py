# SPDX-License-Identifier: Apache-2.0
"""The build: which sources it takes, and what is refused before anything is compiled."""

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from labs.cache import Cache
from labs.errors import LabError
from labs.kernels import Kernel
from labs.packages import Package

from tests.kernels.__main__ import main
from tests.kernels.build import Source, is_of_kvm, read_sources
from tests.kernels.source import unpack
from tests.kernels.table import load

FILES = ("arch/x86/kvm/x86.c", "arch/x86/kvm/vmx/vmx.c", "virt/kvm/kvm_main.c", "fs/exec.c", "arch/x86/kvmx/a.c")


def packed(path: Path) -> Path:
    with tarfile.open(path, "w:xz") as tar:
        for file in FILES:
            member = tarfile.TarInfo(f"linux-source-7.2/{file}")
            member.size = len(file)
            tar.addfile(member, io.BytesIO(file.encode()))
    return path


def test_of_the_kernels_source_only_kvm_is_unpacked(tmp_path: Path) -> None:
    unpack(packed(tmp_path / "source.tar.xz"), tmp_path / "source", is_of_kvm)
    found = [path for path in (tmp_path / "source").rglob("*") if path.is_file()]
    assert {str(path.relative_to(tmp_path / "source")) for path in found} == set(FILES[:3])
    assert (tmp_path / "source" / FILES[1]).read_text() == FILES[1]


def test_only_the_files_with_faults_are_read(tmp_path: Path) -> None:
    unpack(packed(tmp_path / "source.tar.xz"), tmp_path / "source", is_of_kvm)
    faults = [fault for fault in load() if fault.edits[0].file == "arch/x86/kvm/x86.c"][:1]
    assert read_sources(tmp_path / "source", faults) == {FILES[0]: FILES[0]}
    assert read_sources(tmp_path, faults) == {}


def archive(**versions: str) -> Any:
    def candidate(name: str) -> Package:
        return Package(name, versions["source" if "source" in name else "headers"], "amd64")

    return SimpleNamespace(suite="sid", candidate=candidate, fields=lambda name: {"Depends": "linux-base"})


def test_sources_of_another_version_than_the_kernels_are_refused(tmp_path: Path) -> None:
    kernel, cache = Kernel(tmp_path, "7.2.13+deb14-cloud-amd64"), Cache(tmp_path / "cache")
    assert Source(cache, kernel, archive(source="7.2.13-1", headers="7.2.13-1")).package.name == "linux-source-7.2"
    with pytest.raises(LabError, match=r"the sources of 7\.2\.14-1 and the kernel of 7\.2\.13-1"):
        Source(cache, kernel, archive(source="7.2.14-1", headers="7.2.13-1"))


def test_headers_without_a_compiler_are_an_error_with_what_they_depend_on(tmp_path: Path) -> None:
    source = Source(Cache(tmp_path), Kernel(tmp_path, "7.2.1-amd64"), archive(source="7", headers="7"))
    with pytest.raises(LabError, match="names no compiler among what it depends on: linux-base"):
        source.root()


@pytest.mark.parametrize("words", [[], ["list", "no-such-fault"], ["list", "--table", "/missing"]], ids=str)
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2


def test_the_list_says_what_is_to_notice_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "xcr0-half-of-*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[2].startswith("    xcrs.rules*: ")
