# SPDX-License-Identifier: Apache-2.0
"""What --kernel takes, and which of a suite's packages is meant; the suite is made up."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labs import kernels
from labs.cache import Cache
from labs.config import KERNELS
from labs.errors import LabError
from labs.kernels import fetch_kernel
from labs.packages import NotServed
from labs.releases import FLAVOURS, find_release, parse_kernel

SERVED = {
    "linux-image-cloud-amd64": "6.12.117-1",
    "linux-image-6.12.9+deb13-cloud-amd64": "6.12.9-1~bpo13+1",
    "linux-image-6.12.90+deb13-cloud-amd64": "6.12.90-1~bpo13+1",
    "linux-image-6.12.90+deb13.1-cloud-amd64": "6.12.90-2~bpo13+1",
    "linux-image-6.12.90+deb13-amd64": "6.12.90-1~bpo13+1",
    "linux-image-6.12.117+deb13-cloud-amd64": "6.12.117-1",
    "linux-image-6.12.117+deb13-rt-amd64": "6.12.117-1",
    "linux-image-6.1.0-47-cloud-amd64": "6.1.170-3",
    "linux-image-6.12.117+deb13-cloud-amd64-unsigned": "6.12.117-1",
    "linux-image-6.12.117+deb13-amd64-dbg": "6.12.117-1",
}


class Suite:
    """An archive with these packages."""

    suite, arch = "made-up", "amd64"
    newest = "linux-image-6.12.117+deb13-cloud-amd64 (= 6.12.117-1)"

    def versions(self, prefix: str) -> dict[str, str]:
        return SERVED

    def fields(self, name: str) -> dict[str, str]:
        return {"Depends": self.newest} if name == "linux-image-cloud-amd64" else {}


@pytest.mark.parametrize(
    ("text", "suite", "series", "flavour", "version"),
    [
        ("7.2", KERNELS["7.2"], "7.2", "cloud", ""),
        ("6.12:full", KERNELS["6.12"], "6.12", "full", ""),
        ("sid", "sid", "", "cloud", ""),
        ("trixie-backports:6.16.3", "trixie-backports", "", "cloud", "6.16.3"),
        ("trixie-backports:6.16.3:full", "trixie-backports", "", "full", "6.16.3"),
        ("trixie-backports:rt:6.16.3", "trixie-backports", "", "rt", "6.16.3"),
        ("bookworm:6.1.0-47", "bookworm", "", "cloud", "6.1.0-47"),
    ],
)
def test_a_kernel_is_a_place_with_a_version_and_a_flavour(
    text: str, suite: str, series: str, flavour: str, version: str
) -> None:
    name = parse_kernel(text)
    assert (name.suite, name.series, name.flavour, name.version) == (suite, series, flavour, version)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2.4",
        "6.13",
        "Sid",
        "sid:",
        "sid:cloudy",
        "sid:full:cloud",
        "sid:6.1:6.2",
        "sid:linux-image-6.1:full",
        "/x",
    ],
)
def test_what_names_no_kernel_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(LabError, match=r"^--kernel .*\.$") as refusal:
        parse_kernel(text)
    assert "\n" not in str(refusal.value)


@settings(deadline=None)
@given(st.text(st.sampled_from("6.12:sid-fulcox+/ "), max_size=20))
def test_any_text_is_a_kernel_or_refused(text: str) -> None:
    try:
        name = parse_kernel(text)
    except LabError:
        return
    assert name.text == text and name.flavour in FLAVOURS


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("6.12", "6.12.117+deb13-cloud-amd64"),
        ("made-up", "6.12.117+deb13-cloud-amd64"),
        ("made-up:6.12.9", "6.12.9+deb13-cloud-amd64"),
        ("made-up:6.12", "6.12.117+deb13-cloud-amd64"),
        ("made-up:6.12.90", "6.12.90+deb13.1-cloud-amd64"),
        ("made-up:6.12.90+deb13:full", "6.12.90+deb13-amd64"),
        ("made-up:6.12.90-1", "6.12.90+deb13-cloud-amd64"),
        ("made-up:6.1.170", "6.1.0-47-cloud-amd64"),
        ("made-up:6.12:rt", "6.12.117+deb13-rt-amd64"),
        ("made-up:linux-image-6.12.90+deb13-amd64", "6.12.90+deb13-amd64"),
    ],
)
def test_the_newest_release_that_begins_with_the_text_is_meant(text: str, release: str) -> None:
    assert find_release(Suite(), parse_kernel(text)) == release  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["6.1", "made-up:6.12.1", "made-up:6.16", "made-up:full", "made-up:linux-image-7-x"])
def test_what_a_suite_no_longer_serves_is_said_to_be_so(text: str) -> None:
    with pytest.raises(NotServed, match=r"^Debian made-up no longer serves the kernel .* for amd64; .*\.$"):
        find_release(Suite(), parse_kernel(text))  # type: ignore[arg-type]


class Mirror(Suite):
    """An archive whose mirror has gone on since its indices were fetched."""

    def __init__(self, cache: Cache, suite: str, arch: str) -> None:
        self.cache, self.fresh = cache, False

    def refresh(self) -> None:
        self.fresh = True

    def versions(self, prefix: str) -> dict[str, str]:
        return {name: version for name, version in SERVED.items() if "117" not in version} if self.fresh else SERVED


def fail(archive: Mirror, release: str) -> object:
    if release == "6.12.117+deb13-cloud-amd64":
        raise LabError("Fetching packages failed")
    return SimpleNamespace(release=release, fresh=archive.fresh)


def test_a_kernel_that_cannot_be_fetched_is_looked_for_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "Archive", Mirror)
    monkeypatch.setattr(kernels, "_fetch", fail)
    found = fetch_kernel(Cache(tmp_path), "sid:6.12", "amd64")
    assert (found.release, found.fresh) == ("6.12.90+deb13.1-cloud-amd64", True)  # type: ignore[attr-defined]
    with pytest.raises(NotServed):
        fetch_kernel(Cache(tmp_path), "sid:6.12.117", "amd64")


def test_a_mirror_that_fails_is_not_said_to_have_stopped_serving(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernels, "Archive", Mirror)
    monkeypatch.setattr(kernels, "_fetch", fail)
    monkeypatch.setattr(Mirror, "versions", Suite.versions)
    with pytest.raises(LabError, match="Fetching packages failed") as failure:
        fetch_kernel(Cache(tmp_path), "sid:6.12.117", "amd64")
    assert not isinstance(failure.value, NotServed)
