# SPDX-License-Identifier: Apache-2.0
"""The working tree's package as a small archive of its own: an edit costs a second and not a new image.

The extension module and the guest payloads are built for the machine's architecture, each kept by the
content of its sources; the Python files are taken as they are, with byte code beside them.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from .bytecode import compile_all
from .cache import Cache, hash_files
from .config import PYTHON_VERSION
from .cpio import CpioWriter
from .errors import LabError, run_tool
from .toolchain import MACHINE_NAMES, Compiler, find_compiler, python_headers

__all__ = ["build_product", "source_files"]

_SITE = "usr/lib/python3/dist-packages"
_BUILT = (".so", ".elf", ".pyc")


def source_files(folder: Path) -> list[Path]:
    """Return the files below a source folder, without what was built into it or left by an editor."""
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix not in _BUILT:
            found.append(path)
    return found


def build_product(cache: Cache, repository: Path, arch: str) -> Path:
    """Return the archive with the package of the working tree for a Debian architecture."""
    package = repository / "vmm"
    if not (package / "__init__.py").exists():
        raise LabError(f"The repository {repository} has no package vmm; run scripts/lab from a whole checkout.")
    compiler = find_compiler(cache, arch)
    extension = _build_extension(cache, repository, compiler)
    payloads = _build_payloads(cache, repository, compiler)
    # The mutations go along: each of them has to be caught on the machines' kernels too.
    tests = repository / "tests"
    sources = [*source_files(package), *source_files(tests / "mutations"), *tests.glob("__init__.py")]

    def make(folder: Path) -> None:
        with open(folder / "vmm.cpio", "wb") as stream, CpioWriter(stream) as out:
            _write_sources(cache, out, repository, sources)
            if extension is not None:
                out.file(f"{_SITE}/vmm/_kvm.abi3.so", extension.read_bytes(), 0o755)
            for payload in sorted(payloads.glob("*.elf")) if payloads else []:
                out.file(f"{_SITE}/vmm/payloads/{payload.name}", payload.read_bytes())
            for name, content in _metadata(repository).items():
                out.file(f"{_SITE}/{name}", content)

    here = Path(__file__).parent
    recipe = hash_files([here / "product.py", here / "cpio.py", here / "bytecode.py"], here)
    inputs = [
        arch,
        recipe,
        hash_files(sources, repository),
        str(extension),
        str(payloads),
        _metadata_key(repository),
    ]
    archive = cache.build("product", inputs, make, f"packing vmm for {arch}") / "vmm.cpio"
    for kind in ("product", "extension", "payloads"):
        cache.prune(kind, keep=12)
    return archive


def _write_sources(cache: Cache, out: CpioWriter, repository: Path, sources: Iterable[Path]) -> None:
    names = {}
    for path in sources:
        place = f"{_SITE}/{path.relative_to(repository)}"
        out.file(place, path.read_bytes())
        if path.suffix == ".py":
            names[path] = "/" + place
    suffix = f"cpython-{PYTHON_VERSION.replace('.', '')}.pyc"
    for path, code in compile_all(cache, names).items():
        folder = path.parent.relative_to(repository)
        out.file(f"{_SITE}/{folder}/__pycache__/{path.stem}.{suffix}", code)


def _build_extension(cache: Cache, repository: Path, compiler: Compiler) -> Path | None:
    """Return the extension module, or None as long as the repository has no bindings."""
    bindings = repository / "bindings"
    if not (bindings / "build.py").exists():
        return None
    machine = MACHINE_NAMES[compiler.arch]
    headers = python_headers(cache, compiler.arch)

    def make(folder: Path) -> None:
        source = folder / "_kvm.c"
        emit: list[str | Path] = [
            _python_with_cffi(cache, repository),
            bindings / "build.py",
            "--arch",
            machine,
            "--emit",
            source,
        ]
        run_tool(emit, f"Generating the extension module for {machine}", cwd=repository)
        flags = ["-O2", "-shared", "-fPIC", "-DPy_LIMITED_API=0x030b0000", f"-I{bindings}", *headers]
        what = f"Compiling the extension module for {machine}"
        compiler.compile([*flags, source, "-o", folder / "_kvm.abi3.so"], what, cwd=repository)

    inputs = [machine, compiler.identity, hash_files(source_files(bindings), repository)]
    return cache.build("extension", inputs, make, f"building the extension module for {machine}") / "_kvm.abi3.so"


def _build_payloads(cache: Cache, repository: Path, compiler: Compiler) -> Path | None:
    """Return the folder with the guest payloads, or None as long as the repository has none."""
    folder = repository / "guest_payloads"
    if not (folder / "build.py").exists():
        return None
    machine = MACHINE_NAMES[compiler.arch]

    def make(out: Path) -> None:
        command: list[str | Path] = [sys.executable, folder / "build.py"]
        command += ["--arch", machine, "--cc", compiler.cc, "--out", out]
        run_tool(command, f"Building the guest payloads for {machine}", cwd=repository)

    inputs = [machine, compiler.identity, hash_files(source_files(folder), repository)]
    return cache.build("payloads", inputs, make, f"building the guest payloads for {machine}")


def _python_with_cffi(cache: Cache, repository: Path) -> str:
    """Return a Python that can import cffi: this one, the repository's environment's, or one made for it."""
    if importlib.util.find_spec("cffi") is not None:
        return sys.executable
    environment = repository / ".venv/bin/python"
    if os.access(environment, os.X_OK):
        probe = subprocess.run([environment, "-c", "import cffi"], capture_output=True)
        if probe.returncode == 0:
            return str(environment)

    def make(folder: Path) -> None:
        what = "Making a Python environment with cffi (is the package python3-venv installed?)"
        run_tool([sys.executable, "-m", "venv", folder / "venv"], what)
        install: list[str | Path] = [folder / "venv/bin/python", "-m", "pip", "install", "--quiet"]
        run_tool([*install, "--disable-pip-version-check", "cffi"], "Installing cffi")

    # Called by its path, the environment works after the rename that finishes a cache entry.
    entry = cache.build("cffi", [sys.executable, sys.version], make, "installing cffi in an environment of its own")
    return str(entry / "venv/bin/python")


def _project(repository: Path) -> tuple[str, str] | None:
    file = repository / "pyproject.toml"
    if not file.exists():
        return None
    project = tomllib.loads(file.read_text()).get("project", {})
    return (project["name"], project["version"]) if "name" in project and "version" in project else None


def _metadata_key(repository: Path) -> list[str]:
    return list(_project(repository) or ())


def _metadata(repository: Path) -> dict[str, bytes]:
    """Return what importlib.metadata needs to know the package's version."""
    project = _project(repository)
    if project is None:
        return {}
    name, version = project
    folder = f"{name.replace('-', '_')}-{version}.dist-info"
    return {f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()}
