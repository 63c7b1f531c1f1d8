# SPDX-License-Identifier: Apache-2.0
"""The build of an arm64 kernel: what it reads, how faults get into a copy of a build; nothing is compiled."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from labs.cache import Cache
from labs.errors import LabError
from labs.packages import Package

from tests.kernels import image as images
from tests.kernels.image import ImageSource, build_image, is_needed, missing_options
from tests.kernels.patch import Edit
from tests.kernels.table import Fault

ARM = "arch/arm64/kvm/arm.c"
SOURCE = "int f(int a)\n{\n\treturn a;\n}\n"
FAULT = Fault(7, "f-is-0", "wrong", ("a.*",), (Edit(ARM, "f", "value", r"return (a)", "0"),), ("sve",))
CONFIG = "CONFIG_KVM=y\n"


@pytest.mark.parametrize(
    ("path", "needed"),
    [
        ("arch/arm64/kvm/arm.c", True),
        ("arch/x86/kvm/x86.c", False),
        ("arch/x86/Kconfig", True),
        ("drivers/gpu/drm/drm_drv.c", False),
        ("drivers/gpu/drm/amd/amdgpu/Kconfig", True),
        ("drivers/virtio/virtio.c", True),
        ("drivers/net/virtio_net.c", True),
        ("drivers/net/ethernet/intel/e1000.c", False),
        ("tools/include/linux/types.h", True),
        ("tools/perf/perf.c", False),
        ("Makefile", True),
    ],
)
def test_of_the_source_is_kept_what_a_build_reads(path: str, needed: bool) -> None:
    assert is_needed(path) == needed


def test_options_that_a_kernel_does_not_take_are_named() -> None:
    wanted = "# what it needs\n\nCONFIG_KVM=y\nCONFIG_VIRTUAL=y\nCONFIG_NR_CPUS=8\n"
    assert missing_options(wanted, "CONFIG_KVM=y\nCONFIG_NR_CPUS=512\n") == ["CONFIG_VIRTUAL=y", "CONFIG_NR_CPUS=8"]
    assert not missing_options(wanted, wanted)


def source(tmp_path: Path) -> Any:
    """The source of a kernel, whose packages are there already."""
    folder = tmp_path / "source"
    for name, text in ((ARM, SOURCE), ("arch/arm64/kvm/Makefile", "kvm-y += arm.o\n"), ("virt/kvm/kvm_main.c", "")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        os.utime(folder / name, (1000, 1000))
    return SimpleNamespace(cache=Cache(tmp_path / "cache"), folder=folder, release="7.2.1", root=lambda: tmp_path)


class Build:
    """What stands in for make: a configuration, and an image that is the text of a file of KVM's."""

    def __init__(self, config: str = CONFIG) -> None:
        self.config = config
        self.goals: list[str] = []
        self.kvm: list[Path] = []

    def __call__(
        self, root: Path, mounts: Sequence[tuple[Path, str]], command: Sequence[str], what: str, log: Path
    ) -> None:
        where = {path: folder for folder, path in mounts}
        build, kvm = where["tmp/out"], where["tmp/src/arch/arm64/kvm"]
        goal = "allnoconfig" if "allnoconfig" in command else command[-1]
        self.goals.append(goal)
        self.newer = {path.name for path in kvm.iterdir() if path.stat().st_mtime > 1000}
        if goal == "allnoconfig":
            (build / ".config").write_text(self.config)
            return
        (build / "arch/arm64/boot").mkdir(parents=True, exist_ok=True)
        assert "faults.o" in (kvm / "Makefile").read_text() and (kvm / "faults.h").exists()
        (build / "arch/arm64/boot/Image").write_text((kvm / "arm.c").read_text())


def test_a_kernel_without_faults_is_built_once_and_those_with_faults_in_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, there = Build(), source(tmp_path)
    monkeypatch.setattr(images, "run_in", make)
    monkeypatch.setattr(images, "_CONFIG", tmp_path / "sve.config")
    (tmp_path / "sve.config").write_text(CONFIG)
    plain, _ = build_image(there, [])
    assert plain.read_text() == SOURCE
    faulty, unplaced = build_image(there, [FAULT])
    assert "FAULT(7) ? (0) : (a)" in faulty.read_text() and not unplaced
    assert make.goals == ["allnoconfig", "Image", "Image", "Image"]
    # make compiles what is newer than its object.
    assert make.newer == {"arm.c"}
    assert (there.folder / ARM).read_text() == SOURCE
    assert build_image(there, [FAULT])[0] == faulty and len(make.goals) == 4


def test_a_fault_without_a_place_is_left_out_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "run_in", Build())
    monkeypatch.setattr(images, "_CONFIG", tmp_path / "sve.config")
    (tmp_path / "sve.config").write_text(CONFIG)
    lost = Fault(8, "g-is-0", "wrong", ("a.*",), (Edit(ARM, "g", "entry", "", "return 0;"),), ("sve",))
    image, unplaced = build_image(source(tmp_path), [lost])
    assert unplaced == {"g-is-0": "0 functions g"} and image.read_text() == SOURCE


def test_a_kernel_that_does_not_take_the_configuration_is_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Build(config="")
    monkeypatch.setattr(images, "run_in", make)
    with pytest.raises(LabError, match=r"Linux 7\.2\.1 cannot be built with .*CONFIG_KVM=y"):
        build_image(source(tmp_path), [])
    assert make.goals == ["allnoconfig"]


def test_sources_of_another_version_than_the_kernels_are_refused(tmp_path: Path) -> None:
    def archive(version: str) -> Any:
        def candidate(name: str) -> Package:
            return Package(name, version if "source" in name else "7.2.13-1", "arm64")

        return SimpleNamespace(suite="sid", candidate=candidate)

    release = "7.2.13+deb14-cloud-arm64"
    assert ImageSource(Cache(tmp_path), archive("7.2.13-1"), release).package.name == "linux-source-7.2"
    with pytest.raises(LabError, match=r"the sources of 7\.2\.14-1 and the kernel of 7\.2\.13-1"):
        ImageSource(Cache(tmp_path), archive("7.2.14-1"), release)
