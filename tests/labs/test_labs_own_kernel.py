# SPDX-License-Identifier: Apache-2.0
"""A kernel of one's own in a machine: `scripts/lab sve --kernel PATH`."""

from pathlib import Path

import pytest
from labs.cache import Cache
from labs.cli import make_plans, parse
from labs.errors import LabError
from labs.kernels import own_kernel
from labs.machines import Machine
from labs.session import MACHINES, _instructions

RELEASE = "7.2.13-mine"


def image(path: Path, *, magic: bytes = b"ARM\x64", banner: bytes = RELEASE.encode(), rest: bytes = b"") -> Path:
    text = b"\0Linux version " + banner + b" (someone)" if banner else b""
    path.write_bytes(bytes(56) + magic + bytes(4) + text + rest)
    return path


def machine(cache: Path, name: str, kernel: str) -> Machine:
    (plan,) = make_plans(Cache(cache), *parse([name, "--kernel", kernel, "--", "true"]))
    return plan.machine


def test_a_path_is_the_kernel_that_the_machine_starts(tmp_path: Path) -> None:
    path = image(tmp_path / "Image")
    kernel = machine(tmp_path / "cache", "sve", str(path)).kernel()
    assert kernel.release == RELEASE
    assert kernel.image.read_bytes() == path.read_bytes()


def test_a_machine_inserts_no_module_into_it(tmp_path: Path) -> None:
    words = ["sve", "--kernel", str(image(tmp_path / "Image")), "--", "true"]
    (plan,) = make_plans(Cache(tmp_path / "cache"), *parse(words))
    setup, _ = _instructions(plan, plan.machine.kernel())
    assert MACHINES["sve"].modules and not setup.modules


def test_a_kernel_is_stored_by_what_it_holds_so_that_a_kept_machine_is_of_one_kernel(tmp_path: Path) -> None:
    first = machine(tmp_path / "cache", "sve", str(image(tmp_path / "Image", rest=b"1"))).kernel().image
    again = machine(tmp_path / "cache", "sve", str(image(tmp_path / "copy", rest=b"1"))).kernel().image
    other = machine(tmp_path / "cache", "sve", str(image(tmp_path / "Image", rest=b"2"))).kernel().image
    # The path is one of the words of the emulator's command line, which keys a kept machine.
    assert first == again != other


@pytest.mark.parametrize(
    ("arch", "magic", "banner", "reason"),
    [
        ("amd64", b"ARM\x64", b"7.2.13-mine", "only sve takes the file of a kernel"),
        ("arm64", b"\x1f\x8b\0\0", b"7.2.13-mine", r"no arm64 Image \(is it packed\?\)"),
        ("arm64", b"ARM\x64", b"", "does not say which Linux it is"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, arch: str, magic: bytes, banner: bytes, reason: str) -> None:
    with pytest.raises(LabError, match=reason):
        own_kernel(Cache(tmp_path / "cache"), image(tmp_path / "Image", magic=magic, banner=banner), arch)


def test_a_path_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        parse(["sve", "--kernel", str(tmp_path / "missing")])
    assert end.value.code == 2
