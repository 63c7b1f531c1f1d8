# SPDX-License-Identifier: Apache-2.0
"""Fetching and keeping: the apt configuration, the cache, and the rule that no server is named."""

import json
import multiprocessing
import re
import time
from pathlib import Path

import pytest
from labs.cache import Cache, default_root, hash_files, key_of
from labs.errors import LabError, require_tool, run_tool
from labs.hostroot import HostRoot
from labs.packages import Archive, Package, apt_configuration, choose_mirror, source_list

from tests.patience import LIMIT

LABS = Path(__file__).resolve().parents[2] / "scripts" / "labs"


def test_the_mirror_is_debians_and_no_third_partys() -> None:
    listing = (
        "Vendor|stable|main|https://vendor.example/apt\n"
        "Debian|bookworm-security|main|https://mirror.example/debian-security/\n"
        "Debian|bookworm|contrib|https://other.example/debian/\n"
        "Debian|bookworm|main|https://mirror.example/debian/\n"
    )
    assert choose_mirror(listing) == "https://mirror.example/debian/"


def test_before_the_first_update_the_address_decides() -> None:
    listing = (
        "$(ORIGIN)|$(CODENAME)|main|https://vendor.example/apt/\n"
        "$(ORIGIN)|$(CODENAME)|main|https://mirror.example/debian-security/\n"
        "$(ORIGIN)|$(CODENAME)|main|https://mirror.example/debian\n"
    )
    assert choose_mirror(listing) == "https://mirror.example/debian"


def test_security_updates_are_another_archive() -> None:
    listing = (
        "Vendor|stable-security|main|https://vendor.example/apt\n"
        "Debian|bookworm|main|https://mirror.example/debian/\n"
        "$(ORIGIN)|$(CODENAME)|main|https://mirror.example/debian-security\n"
    )
    assert choose_mirror(listing, security=True) == "https://mirror.example/debian-security"
    assert choose_mirror("Debian|bookworm|main|https://mirror.example/debian/\n", security=True) is None


def test_no_mirror_is_chosen_where_none_is_debians() -> None:
    assert choose_mirror("") is None
    assert choose_mirror("Vendor|stable|main|https://vendor.example/apt\n") is None


def test_apts_state_is_private_and_names_no_server() -> None:
    text = apt_configuration(Path("/private"), "arm64")
    assert "://" not in text
    assert 'APT::Architecture "arm64";' in text
    for setting in (
        "Dir::Etc::SourceList",
        "Dir::State",
        "Dir::State::Lists",
        "Dir::State::Status",
        "Dir::Cache",
    ):
        assert re.search(rf'^{setting} "/private', text, re.MULTILINE), setting
    for weak in ("AllowUnauthenticated", "AllowInsecure", "trusted=yes", "Verify-Peer"):
        assert weak not in text


def test_every_source_is_bound_to_the_archives_keys() -> None:
    text = source_list("https://mirror.example/debian", "sid", sources=True)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines] == ["deb", "deb-src"]
    assert all("[signed-by=/" in line for line in lines)
    assert source_list("m", "sid", sources=False).count("\n") == 1


def test_no_server_and_no_private_path_is_in_any_file() -> None:
    for path in sorted(LABS.rglob("*")):
        if path.suffix in (".py", ".c", ".md", ".patch"):
            text = path.read_text()
            assert not re.search(r"\w+://", text), path
            assert not re.search(r"\b[\w-]+\.(?:org|com|net)\b", text), path
            assert not re.search(r"(?:/root|/home|/work)/\w", text), path


def test_a_package_is_stored_under_the_name_apt_gives_it() -> None:
    assert Package("python3-rich", "1:13.9~x+dfsg-1", "all").deb == "python3-rich_1%3a13.9~x+dfsg-1_all.deb"


def test_the_cache_is_below_the_xdg_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "xstate-vmm" / "labs"


def test_keys_follow_content_not_order() -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_the_hash_of_files_sees_names_contents_and_modes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    before = hash_files([one, two], tmp_path)
    assert before == hash_files([two, one], tmp_path)
    one.chmod(0o755)
    executable = hash_files([one, two], tmp_path)
    one.write_text("3")
    assert len({before, executable, hash_files([one, two], tmp_path)}) == 3


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    cache, calls = Cache(tmp_path), []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "file").write_text("content")

    first = cache.build("kind", ["input"], make)
    assert first == cache.build("kind", ["input"], make)
    assert (first / "file").read_text() == "content"
    assert len(calls) == 1
    assert cache.build("kind", ["other"], make) != first


def test_a_failed_build_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise LabError("no")

    with pytest.raises(LabError):
        cache.build("kind", 1, fail)
    assert not list((tmp_path / "tmp").iterdir())
    assert not (tmp_path / "kind").exists() or not list((tmp_path / "kind").iterdir())
    assert cache.build("kind", 1, lambda folder: None).is_dir()


def _build_slowly(root: Path, log: Path) -> None:
    def make(folder: Path) -> None:
        with open(log, "a") as stream:
            stream.write("built\n")
        time.sleep(0.3)
        (folder / "whole").touch()

    assert (Cache(root).build("kind", 1, make) / "whole").exists()


def test_two_processes_build_the_same_thing_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    workers = [context.Process(target=_build_slowly, args=(tmp_path / "cache", log)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(LIMIT)
        assert worker.exitcode == 0
    assert log.read_text() == "built\n"


def test_pruning_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entries = [cache.build("kind", number, lambda folder: None) for number in range(4)]
    for age, entry in enumerate(entries):
        import os

        os.utime(entry, (age, age))
    cache.build("kind", 0, lambda folder: None)  # used again
    cache.prune("kind", keep=2)
    assert {entry for entry in entries if entry.exists()} == {entries[0], entries[3]}


def test_cleaning_a_cache_in_use_is_refused(tmp_path: Path) -> None:
    cache, other = Cache(tmp_path / "cache"), Cache(tmp_path / "cache")
    with pytest.raises(LabError, match="in use"):
        cache.clean()
    import os

    os.close(other._use)
    cache.clean()
    assert not (tmp_path / "cache").exists()


def test_backports_are_completed_by_the_suite_they_are_for(tmp_path: Path) -> None:
    def folder(suite: str, *, complete: bool) -> str:
        return Archive(Cache(tmp_path), suite, "amd64", complete=complete)._folder.name

    assert folder("trixie-backports", complete=True) == "trixie-backports+trixie-amd64"
    assert folder("trixie-backports", complete=False) == "trixie-backports-amd64"
    assert folder("trixie", complete=True) == "trixie-amd64"


@pytest.mark.parametrize(("text", "version"), [("1:11.1.3+ds-1~bpo13+1", (11, 1)), ("7.2+dfsg-7", (7, 2))])
def test_the_version_of_an_extracted_package_is_known(
    text: str, version: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps([{"package": "qemu", "version": text}]))
    monkeypatch.setattr("labs.hostroot.extract_closure", lambda *_: tmp_path)
    assert HostRoot(None, "suite", ["qemu"]).version("qemu") == version  # type: ignore[arg-type]


def test_a_missing_tool_is_named_with_its_package() -> None:
    with pytest.raises(LabError, match="install the package some-package"):
        require_tool("no-such-tool", "some-package")


def test_a_failing_tool_is_quoted() -> None:
    with pytest.raises(LabError, match=r"(?s)Trying failed with status 3.*the reason"):
        run_tool(["sh", "-c", "echo the reason >&2; exit 3"], "Trying")
    assert run_tool(["cat"], "Copying", stdin=b"x") == b"x"
