# SPDX-License-Identifier: Apache-2.0
"""What README, CONTRIBUTING and SECURITY show of the tree exists: links, paths, imports, modules."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
_FOLDERS = "bindings|guest_payloads|scripts|tests|vmm|\\.github"
# A placeholder, such as vmm/state/ARCH/, is no path.
_PATH = re.compile(rf"(?<![\w./-])(?:{_FOLDERS})/[\w./-]*[\w/]")
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
_MODULE = re.compile(r"\bvmm(?:\.[a-z]\w*)+")


def _found(pattern: re.Pattern[str], page: str) -> list[str]:
    return sorted(set(pattern.findall((_ROOT / page).read_text())))


def _cases(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    return [(page, found) for page in _PAGES for found in _found(pattern, page)]


@pytest.mark.parametrize(("page", "path"), [*_cases(_LINK), *_cases(_PATH)])
def test_a_path_that_is_shown_exists(page: str, path: str) -> None:
    for arch in ("x86", "arm64"):
        assert _ROOT.joinpath(*(arch if part == "ARCH" else part for part in path.split("/"))).exists()


@pytest.mark.parametrize(("page", "name"), _cases(_MODULE))
def test_a_module_that_is_shown_exists(page: str, name: str) -> None:
    module, _, rest = name.rpartition(".")
    place = _ROOT.joinpath(*name.split("."))
    if not place.is_dir() and not place.with_suffix(".py").exists():
        assert hasattr(importlib.import_module(module), rest)


def test_the_library_s_example_imports_what_there_is() -> None:
    block = re.search(r"## As a library\n\n((?:    .*\n|\n)+)", (_ROOT / "README.md").read_text())
    assert block
    code = re.sub(r"^    ", "", block[1], flags=re.MULTILINE)
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = importlib.import_module(node.module or "")
        assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_every_page_shows_something_of_the_tree() -> None:
    assert all(_found(_PATH, page) for page in _PAGES)
    assert _cases(_LINK) and _cases(_MODULE)
