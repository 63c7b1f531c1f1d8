# SPDX-License-Identifier: Apache-2.0
"""The package as others build it: under the other Pythons that it supports, and with clang.

    cd scripts && python -m labs.variants [--pythons ends|all] [--clang]

Each variant is built from the source distribution, in an environment of its own. The tests that need neither a KVM
nor a machine run there (for clang those of the bindings and the payloads, with a KVM), and `vmm check` has to come to
the verdicts of this environment. A Python that this machine cannot get, or for which it cannot get what the package
needs, is named in a line with the reason, and fails nothing. The exit status is 1 if a variant failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from .cache import Cache
from .errors import LabError, run_tool
from .interpreters import Interpreter, find_interpreter, supported
from .matrix import parse_results
from .sdist import build_sdist

__all__ = ["Variant", "differences", "find_variants", "main"]

_REPOSITORY = Path(__file__).resolve().parents[2]
_AT_ONCE = 2
_SECONDS = 1800.0
_LINES = 60  # of what failing tests printed
_OURS = f"{sys.version_info.major}.{sys.version_info.minor}"
#: What a compiler may do differently.
_COMPILED = ("tests/arm64", "tests/bench", "tests/guest", "tests/kvm", "tests/x86")


@dataclass(frozen=True)
class Variant:
    """A way to build the package, and the tests that show whether it worked."""

    name: str
    program: Path
    tests: Sequence[str]  # arguments of pytest
    environment: Mapping[str, str] = field(default_factory=dict)  # of the build


def find_variants(cache: Cache, *, pythons: str, clang: bool) -> tuple[list[Variant], list[str]]:
    """Return the variants that can be built here, and a line for each that cannot.

    ``pythons`` is all, or ends: the oldest and the newest that this machine can get, or nothing for none.
    """
    variants, missing = [], []
    for versions in _wanted(pythons):
        for version in versions:
            if version == _OURS:
                break
            try:
                found = find_interpreter(cache, version)
            except LabError as error:
                missing.append(f"Python {version}: not tried: {error}")
                continue
            variants.append(_python(found))
            break
    if clang:
        present = [folder for folder in _COMPILED if (_REPOSITORY / folder).is_dir()]
        variants.append(
            Variant("clang", Path(sys.executable), ("-m", "not machine and not package", *present), {"CC": "clang"})
        )
    return variants, missing


def _wanted(pythons: str) -> list[list[str]]:
    """Return lists of versions, of each of which the first that can be had is wanted."""
    versions = supported(_REPOSITORY)
    if pythons == "all":
        return [[version] for version in versions]
    if not pythons:
        return []
    middle = versions.index(_OURS) if _OURS in versions else len(versions)
    return [versions[: middle + 1], list(reversed(versions[middle:]))]


def _python(found: Interpreter) -> Variant:
    headers = {"CFLAGS": f"-idirafter {found.headers}"} if found.headers else {}
    tests = ("-m", "not kvm and not machine and not package")
    return Variant(f"Python {found.version} ({found.origin})", found.program, tests, headers)


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Return the clauses that have another verdict, or are there once, in words."""
    clauses = sorted(ours.keys() | theirs.keys())
    return [
        f"{clause}: {theirs.get(clause, 'missing')}, here {ours.get(clause, 'missing')}"
        for clause in clauses
        if ours.get(clause) != theirs.get(clause)
    ]


def _check(python: Path, clauses: Sequence[str] = ()) -> dict[str, str]:
    """Return the verdict of each clause on the host's own KVM; none if there is no usable one."""
    command = [str(python), "-I", "-m", "vmm", "check", "--format", "json", *clauses]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return parse_results(done.stdout)


def _compare(python: Path) -> tuple[bool, list[str]]:
    """Return whether `vmm check` agrees with ours, and what to say; a clause that measures time may err once."""
    here = Path(sys.executable)
    ours = _check(here)
    if not ours:
        return True, ["no usable KVM here, so no verdicts were compared"]
    found = differences(ours, _check(python))
    again = [line.partition(":")[0] for line in found]
    left = differences(_check(here, again), _check(python, again)) if again else []
    return not left, left


def _build(variant: Variant, sdist: Path, pip: Path, folder: Path) -> tuple[Path, Path]:
    """Install a variant from the unpacked source distribution; return its Python and the unpacked tree."""
    shutil.unpack_archive(sdist, folder)
    (tree,) = folder.iterdir()
    run_tool([variant.program, "-m", "venv", "--without-pip", folder / "environment"], "Making the environment")
    python = folder / "environment/bin/python"
    install: list[str | Path] = [python, pip / "pip", "--quiet", "--disable-pip-version-check", "install"]
    try:
        run_tool([*install, *_needs()], "Installing what the package needs", env=variant.environment)
    except LabError as error:
        raise _NotHere(str(error)) from error
    run_tool([*install, "--editable", f"{tree}[test]"], "Installing the package", env=variant.environment)
    return python, tree


class _NotHere(Exception):
    """The registries have not what the package needs for a variant."""


def _needs() -> list[str]:
    project = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text())
    return [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["test"],
    ]


def _try(variant: Variant, sdist: Path, pip: Path, folder: Path) -> tuple[bool, str]:
    """Build and test a variant; return whether it is well, and what to say of it."""
    folder.mkdir()
    log = folder.with_suffix(".log")
    environment = {"VMM_TEST_SUMMARY": "", "LC_ALL": os.environ.get("LC_ALL", "")}
    try:
        python, tree = _build(variant, sdist, pip, folder)
        words: list[str | Path] = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *variant.tests]
        said = run_tool(words, "Running the tests", cwd=tree, env=environment, log=log, timeout=_SECONDS)
    except _NotHere as error:
        return True, f"{variant.name}: not tried: {error}"
    except LabError as error:
        lines = log.read_text(errors="replace").splitlines()[-_LINES:] if log.exists() else []
        reason = str(error).replace(f" (whole log: {log})", "")  # its end follows, and it does not stay
        return False, "\n    ".join([f"{variant.name}: {reason}", *lines])
    well, lines = _compare(python)
    shutil.rmtree(folder, ignore_errors=True)
    return well, "\n    ".join([f"{variant.name}: {said.decode().splitlines()[-1]}", *lines])


def _fetch_pip(folder: Path) -> Path:
    """Return the newest pip, which runs as it is: the environments have none, and ours may not know a new Python."""
    fetch = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps", "--dest", str(folder), "pip"]
    run_tool(fetch, "Fetching pip")
    (pip,) = folder.glob("*.whl")
    return pip


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and test the variants asked for and return the exit status."""
    parser = argparse.ArgumentParser(description="build and test the package under other Pythons and with clang")
    parser.add_argument(
        "--pythons",
        choices=("ends", "all"),
        default="",
        help="of those that pyproject.toml declares",
    )
    parser.add_argument("--clang", action="store_true", help="bindings and payloads compiled by clang")
    options = parser.parse_args(arguments)
    variants, missing = find_variants(Cache(), pythons=options.pythons, clang=options.clang)
    print("".join(f"{line}\n" for line in missing), end="", flush=True)
    well = True
    with tempfile.TemporaryDirectory(prefix="variants-") as name, ThreadPoolExecutor(_AT_ONCE) as pool:
        folder = Path(name)
        (folder / "sdist").mkdir()
        sdist = build_sdist(_REPOSITORY, folder / "sdist")
        pip = _fetch_pip(folder / "pip")
        tried = [
            pool.submit(_try, variant, sdist, pip, folder / str(index)) for index, variant in enumerate(variants)
        ]
        for each in tried:
            fine, text = each.result()
            print(text, flush=True)
            well = well and fine
    return int(not well)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"scripts/test: {error}")
