# SPDX-License-Identifier: Apache-2.0
"""The source distribution holds all that the package is built from, and what is built from it can be used."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from labs.sdist import build_sdist

from tests.patience import LIMIT

_REPOSITORY = Path(__file__).resolve().parents[2]
#: Run apart from the working tree and from what is installed: what is imported comes out of the wheel.
_USE = """
import sys
sys.path.insert(0, sys.argv[1])
import vmm, vmm._kvm
from vmm.conformance.registry import all_clauses
from vmm.guest.payload import load, names
for module in (vmm, vmm._kvm):
    assert module.__file__.startswith(sys.argv[1]), module.__file__
assert all(load(name).symbols for name in names()) and names() and all_clauses()
print(vmm._kvm.lib.KVM_GET_API_VERSION)
"""

pytestmark = pytest.mark.package


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sdist(_REPOSITORY, tmp_path_factory.mktemp("sdist"))


def test_the_source_distribution_has_what_the_package_is_built_and_tested_from(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("bindings", "guest_payloads", "scripts", "tests", "vmm"):
        here = {path.relative_to(_REPOSITORY) for path in (_REPOSITORY / folder).rglob("*") if path.is_file()}
        sources = {
            str(path) for path in here if "__pycache__" not in path.parts and path.suffix not in (".so", ".elf")
        }
        assert sources <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"} <= names


def test_the_source_distribution_has_nothing_that_was_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if name.endswith((".so", ".elf", ".pyc"))]


def test_a_wheel_built_from_the_source_distribution_can_be_imported(sdist: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    words = [*pip, "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path), str(sdist)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    words = [sys.executable, "-I", "-c", _USE, str(tmp_path / "installed")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
