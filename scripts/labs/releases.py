# SPDX-License-Identifier: Apache-2.0
"""Which of Debian's kernels is meant: what `--kernel` takes, and the package that a suite has for it.

`WHERE[:WHAT]...`, where WHERE is one of the series of `config.KERNELS` or the name of a suite, and each WHAT

* a flavour: `cloud` (what nothing else asks for), `full`, `rt`, or `16k` and `rt-16k` of arm64;
* a version, the newest that begins so: of the release (`6.16.3`, `6.1.0-47`) or of the package (`6.1.170`);
* a package, as `linux-image-6.16.3+deb13-cloud-amd64`, which says all of this by itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .config import KERNELS
from .errors import LabError
from .packages import Archive, NotServed

__all__ = ["FLAVOURS", "IMAGES", "KernelName", "find_release", "parse_kernel"]

#: flavour -> how the names of its packages end
FLAVOURS = {
    "cloud": "cloud-{arch}",
    "full": "{arch}",
    "rt": "rt-{arch}",
    "16k": "{arch}-16k",
    "rt-16k": "rt-{arch}-16k",
}

_DEFAULT_FLAVOUR = "cloud"  # it has fewer drivers to start, and all that is needed here
IMAGES = "linux-image-"


@dataclass(frozen=True)
class KernelName:
    """A kernel as the user names it."""

    text: str
    suite: str
    series: str = ""  # what the release begins with, if a series was named
    flavour: str = _DEFAULT_FLAVOUR
    version: str = ""
    package: str = ""


def parse_kernel(text: str) -> KernelName:
    """Return what a `--kernel` names; raise LabError for what names none.

    >>> parse_kernel("trixie-backports:6.16.3:full").flavour
    'full'
    """
    where, *words = text.split(":")
    if where not in KERNELS and not re.fullmatch(r"[a-z]+(-[a-z]+)*", where):
        raise LabError(
            f"--kernel {text}: '{where}' is neither a series ({', '.join(KERNELS)}) nor the name of a Debian suite."
        )
    found: dict[str, str] = {}
    for word in words:
        kind = _kind(word)
        if not kind or kind in found or "package" in found:
            raise LabError(
                f"--kernel {text}: '{word}' is one word too many, or none of a version, "
                f"a flavour ({', '.join(FLAVOURS)}) and a package."
            )
        found[kind] = word
    if "package" in found and len(found) > 1:
        raise LabError(f"--kernel {text}: the name of a package says the version and the flavour; leave them out.")
    series = where if where in KERNELS else ""
    return KernelName(text, KERNELS.get(where, where), series, **found)


def _kind(word: str) -> str:
    """Return which field of a KernelName a word is for, or nothing."""
    if word in FLAVOURS:
        return "flavour"
    if re.fullmatch(r"\d[a-z0-9.+~-]*", word):
        return "version"
    return "package" if re.fullmatch(rf"{IMAGES}\d[a-z0-9.+~-]+", word) else ""


def find_release(archive: Archive, name: KernelName) -> str:
    """Return the release (what `uname -r` will say) that a suite has for a name; raise NotServed if it has none."""
    if name.package:
        if name.package not in archive.versions(IMAGES):
            raise _not_served(archive, name)
        return name.package.removeprefix(IMAGES)
    ending = FLAVOURS[name.flavour].format(arch=archive.arch)
    if not name.version:
        return _newest(archive, name, ending)
    served = _releases(archive, ending)
    matching = [
        release
        for release, version in served.items()
        if any(_begins(text, name.version) for text in (release, version))
    ]
    if not matching:
        raise _not_served(archive, name)
    return max(matching, key=lambda release: _order(served[release]))


def _newest(archive: Archive, name: KernelName, ending: str) -> str:
    """Return the release that the suite's package without a version stands for."""
    depends = archive.fields(f"{IMAGES}{ending}").get("Depends", "")
    match = re.search(rf"\b{IMAGES}(\d[^ ,]*)", depends)
    if match is None or not _begins(match[1], name.series):
        raise _not_served(archive, name)
    return match[1]


def _releases(archive: Archive, ending: str) -> dict[str, str]:
    """Return the releases with an ending, and the version of the package of each."""
    pattern = re.compile(rf"{IMAGES}(\d.*)")
    found = {}
    for package, version in archive.versions(IMAGES).items():
        match = pattern.fullmatch(package)
        if match is not None and _flavour_of(match[1]) == ending:
            found[match[1]] = version
    return found


def _flavour_of(release: str) -> str:
    """Return the end of a release that says its flavour, such as "cloud-amd64"."""
    match = re.search(r"((?:[a-z]+-)*(?:amd64|arm64)(?:-16k)?)$", release)
    return match[1] if match else ""


def _begins(text: str, start: str) -> bool:
    """Tell whether a version begins with another, not in the middle of a number."""
    return not start or (text.startswith(start) and not text[len(start) : len(start) + 1].isdigit())


def _order(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _not_served(archive: Archive, name: KernelName) -> NotServed:
    return NotServed(
        f"Debian {archive.suite} no longer serves the kernel {name.text} for {archive.arch}; choose another --kernel."
    )
