# SPDX-License-Identifier: Apache-2.0
"""bindings/build.py: the source that it makes for another machine."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

BINDINGS = Path(__file__).resolve().parents[2] / "bindings"
MACHINE = platform.machine()


@pytest.fixture(scope="module")
def arm64_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bindings") / "kvm_arm64.c"
    command = [sys.executable, str(BINDINGS / "build.py"), "--arch", "aarch64", "--emit", str(out)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return out


def test_the_arm64_source_can_be_generated(arm64_source: Path) -> None:
    text = arm64_source.read_text()
    assert '#include "shim.c"' in text
    for name in ("kvm_vcpu_init", "KVM_ARM_VCPU_FINALIZE", "KVM_REG_ARM64_SVE_VLS", "vmm_run"):
        assert name in text
    for name in ("vmm_cpuid", "kvm_xcrs", "KVM_GET_XSAVE2", "ARCH_REQ_XCOMP_GUEST_PERM"):
        assert name not in text


def test_the_arm64_source_compiles(arm64_source: Path) -> None:
    compiler = "gcc" if MACHINE == "aarch64" else "aarch64-linux-gnu-gcc"
    found = shutil.which(compiler)
    if found is None:
        pytest.skip(f"there is no {compiler} on PATH")
    includes = ["-I", str(BINDINGS), "-I", sysconfig.get_path("include")]
    command = [found, "-O0", "-fPIC", "-Werror=implicit-function-declaration", *includes, "-c", str(arm64_source)]
    made = subprocess.run([*command, "-o", str(arm64_source.with_suffix(".o"))], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


def test_an_unknown_machine_is_refused_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, str(BINDINGS / "build.py"), "--arch", "s390x", "--emit", str(tmp_path / "out.c")]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 2
    assert "Traceback" not in made.stderr
    assert "aarch64" in made.stderr and "x86_64" in made.stderr
