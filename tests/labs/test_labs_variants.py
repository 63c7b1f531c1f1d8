# SPDX-License-Identifier: Apache-2.0
"""Which Pythons there are, and what is said of a build under another one; scripts stand in for Pythons."""

from __future__ import annotations

import sys
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from labs import interpreters, variants
from labs.cache import Cache
from labs.interpreters import Interpreter, NotFound, find_interpreter, supported
from labs.packages import Archive
from labs.variants import Variant, differences, find_variants

_REPOSITORY = Path(__file__).resolve().parents[2]
_OURS = f"3.{sys.version_info.minor}"


def _python(folder: Path, version: str, says: str) -> Path:
    """A program that answers any question with a version."""
    program = folder / f"python{version}"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!/bin/sh\necho {says}\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without other Pythons, whose suites have none; its PATH is the folder `bin`."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setattr(Archive, "versions", lambda self, prefix: {})
    monkeypatch.setattr(interpreters, "host_arch", lambda: "amd64")
    return tmp_path


def test_the_supported_pythons_begin_where_the_package_may_be_installed() -> None:
    versions = supported(_REPOSITORY)
    project = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={versions[0]}"
    assert versions == [f"3.{minor}" for minor in range(11, 11 + len(versions))]


def test_a_python_in_path_is_taken_if_it_is_the_one_that_its_name_says(host: Path) -> None:
    program = _python(host / "bin", "3.99", "3.99")
    assert find_interpreter(Cache(host), "3.99") == Interpreter("3.99", program, "of this machine")
    _python(host / "bin", "3.99", "pyenv: no such command; ")
    pyenv = _python(host / "pyenv/versions/3.99.9/bin", "3.99", "3.99")
    assert find_interpreter(Cache(host), "3.99") == Interpreter("3.99", pyenv, "of pyenv")


def test_the_newest_patch_level_is_taken(host: Path) -> None:
    for level in (9, 10, 2):
        program = _python(host / f"pyenv/versions/3.99.{level}/bin", "3.99", "3.99")
    found = find_interpreter(Cache(host), "3.99").program
    assert found != program and "3.99.10" in found.parts


def test_a_python_that_cannot_be_had_is_a_line_with_the_reason_and_fails_nothing(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound, match=r"no python3\.99 in PATH, none of pyenv's, and none in Debian's .*trixie"):
        find_interpreter(Cache(host), "3.99")
    monkeypatch.setattr(variants, "supported", lambda repository: [_OURS, "3.99"])
    found, missing = find_variants(Cache(host), pythons="all", clang=False)
    assert (
        found == [] and len(missing) == 1 and missing[0].startswith("Python 3.99: not tried: no python3.99 in PATH")
    )


@pytest.mark.parametrize(
    ("versions", "there", "wanted"),
    [
        ([_OURS, "3.97", "3.98", "3.99"], ["3.97", "3.98"], ["3.98"]),
        (["3.1", "3.2", _OURS], ["3.2"], ["3.2"]),
        (["3.1", "3.2", _OURS, "3.98", "3.99"], ["3.1", "3.2", "3.98", "3.99"], ["3.1", "3.99"]),
        ([_OURS], [], []),
        ([_OURS, "3.99"], [], []),
    ],
)
def test_the_ends_are_the_oldest_and_the_newest_that_can_be_had(
    host: Path, monkeypatch: pytest.MonkeyPatch, versions: list[str], there: list[str], wanted: list[str]
) -> None:
    for version in there:
        _python(host / "bin", version, version)
    monkeypatch.setattr(variants, "supported", lambda repository: versions)
    found, missing = find_variants(Cache(host), pythons="ends", clang=False)
    assert [variant.name for variant in found] == [f"Python {version} (of this machine)" for version in wanted]
    assert all("not tried" in line for line in missing)


def test_clang_compiles_with_the_python_that_runs_and_is_judged_by_what_is_compiled(host: Path) -> None:
    ((variant,), missing) = find_variants(Cache(host), pythons="", clang=True)
    assert (variant.name, variant.program, missing) == ("clang", Path(sys.executable), [])
    assert variant.environment == {"CC": "clang"} and "tests/kvm" in variant.tests


def test_another_verdict_is_named() -> None:
    ours = {"a.same": "PASS", "a.other": "PASS", "a.gone": "SKIP"}
    theirs = {"a.same": "PASS", "a.other": "FAIL", "a.new": "PASS"}
    assert differences(ours, ours) == []
    assert differences(ours, theirs) == [
        "a.gone: missing, here SKIP",
        "a.new: PASS, here missing",
        "a.other: FAIL, here PASS",
    ]


@pytest.fixture
def tried(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """What is said of a variant with this program, after the exit status."""

    def tried(program: Path) -> list[str]:
        variant = Variant("Python 3.99", program, ())
        monkeypatch.setattr(variants, "Cache", lambda: None)
        monkeypatch.setattr(variants, "find_variants", lambda cache, pythons, clang: ([variant], ["3.98: not tried"]))
        monkeypatch.setattr(variants, "_fetch_pip", lambda folder: folder)
        monkeypatch.setattr(variants, "build_sdist", lambda repository, into: _archive(into))
        status = variants.main(["--pythons", "all"])
        return [str(status), *capsys.readouterr().out.splitlines()]

    return tried


def test_a_variant_that_cannot_be_built_fails_with_the_reason(tried: Callable[..., list[str]], host: Path) -> None:
    status, missing, said = tried(host / "absent")
    assert (status, missing) == ("1", "3.98: not tried")
    assert said.startswith(f"Python 3.99: Making the environment could not start {host / 'absent'}: ")


def test_a_variant_whose_tests_fail_fails_with_what_they_printed(tried: Callable[..., list[str]], host: Path) -> None:
    lines = tried(_environment(host, 1))
    assert lines[0] == "1" and lines[2].startswith("Python 3.99: Running the tests failed with status 1")
    assert [line.strip() for line in lines[-2:]] == ["it is broken", "3 tests"]


@pytest.mark.parametrize(
    ("verdicts", "status", "said"),
    [
        ([{"a.b": "PASS"}] * 2, "0", []),
        ([{"a.b": "PASS"}, {"a.b": "FAIL"}, {"a.b": "PASS"}, {"a.b": "PASS"}], "0", []),
        ([{"a.b": "PASS"}, {"a.b": "FAIL"}] * 2, "1", ["a.b: FAIL, here PASS"]),
        ([{}], "0", ["no usable KVM here, so no verdicts were compared"]),
    ],
    ids=["the same", "another once", "another twice", "none"],
)
def test_a_variant_whose_verdicts_differ_twice_fails(
    tried: Callable[..., list[str]], host: Path, monkeypatch: pytest.MonkeyPatch,
    verdicts: list[dict[str, str]], status: str, said: list[str],
) -> None:  # fmt: skip
    answers = iter(verdicts)
    monkeypatch.setattr(variants, "_check", lambda python, clauses=(): next(answers))
    lines = tried(_environment(host, 0))
    assert [lines[0], lines[2], *(line.strip() for line in lines[3:])] == [status, "Python 3.99: 3 tests", *said]
    assert list(answers) == []


def _environment(folder: Path, status: int) -> Path:
    """A program that makes environments with itself, and whose tests end with a status."""
    program = folder / "python"
    program.write_text(
        '#!/bin/sh\ncase "$*" in\n*venv*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;\n'
        f'*-m\\ pytest*) echo "it is broken" && echo "3 tests" && exit {status} ;;\nesac\n'
    )
    program.chmod(0o755)
    return program


def _archive(folder: Path) -> Path:
    """A source distribution with nothing in it."""
    (folder / "tree").mkdir()
    with tarfile.open(folder / "tree.tar.gz", "w:gz") as archive:
        archive.add(folder / "tree", "tree")
    return folder / "tree.tar.gz"
