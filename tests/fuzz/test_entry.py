# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.fuzz``: what it says and how it ends, where there is no atheris too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import __main__ as entry
from tests.fuzz.targets import RECORDED, TARGETS, Target


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr("sys.argv", ["tests.fuzz", *map(str, arguments)])
    return entry.main()


def test_without_atheris_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(entry, "find_spec", lambda name: None)
    assert _run(monkeypatch, "probe", "--corpus", tmp_path / "corpus", "--findings", tmp_path / "found") == 2
    assert "pip install" in capsys.readouterr().err


def test_a_finding_is_replayed_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fails(data: bytes) -> bool:
        raise ZeroDivisionError("a fault")

    good = next((RECORDED / "probe").iterdir())
    assert _run(monkeypatch, "probe", "--replay", good) == 0
    monkeypatch.setitem(TARGETS, "probe", Target(lambda: [], fails, lambda source, data, leaf: data))
    assert _run(monkeypatch, "probe", "--replay", good) == 1
    assert "ZeroDivisionError: a fault" in capsys.readouterr().out


def test_what_is_kept_for_the_tests_is_all_that_they_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(entry, "RECORDED", tmp_path)
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "old").write_bytes(b"[]")
    assert _run(monkeypatch, "probe", "--minimise", "--corpus", tmp_path / "corpus") == 0
    kept = {path.read_bytes() for path in (tmp_path / "probe").iterdir()}
    assert not (tmp_path / "probe" / "old").exists() and kept
    assert f"probe: {len(kept)} inputs" in capsys.readouterr().out
