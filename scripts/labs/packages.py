# SPDX-License-Identifier: Apache-2.0
"""Debian packages for the machines, through apt with a configuration of its own.

The host's package state is neither read nor changed: lists, status and cache are private, the architecture
may be a foreign one, and packages are only extracted.  apt itself checks every hash against the signed
indices.  The mirror is the one the host's own apt uses; no server's name is written here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cache import Cache
from .errors import LabError, require_tool, run_tool
from .progress import step

__all__ = ["Archive", "NotServed", "Package", "apt_configuration", "choose_mirror", "find_mirror", "source_list"]

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class NotServed(LabError):
    """The archive does not have, or no longer has, what was asked for; anything else that fails is a LabError."""


@dataclass(frozen=True)
class Package:
    """One binary package of one version."""

    name: str
    version: str
    arch: str

    @property
    def deb(self) -> str:
        """The file name that `apt-get download` gives it."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.arch}.deb"


def choose_mirror(listing: str, *, security: bool = False) -> str | None:
    """Pick the Debian mirror from lines "origin|codename|component|address" of apt-get indextargets.

    Third-party repositories are passed over, and either the archive of security updates, which lacks most
    packages, or everything else.  Before the first update apt knows no origin and prints the field's own name;
    then the address has to look like Debian's.
    """
    fallback = None
    for line in listing.splitlines():
        origin, codename, component, address = (*line.split("|"), "", "", "", "")[:4]
        if component != "main" or not address or ("security" in codename or "security" in address) != security:
            continue
        if origin == "Debian":
            return address
        if origin.startswith("$(") and fallback is None and re.search(r"debian(-security)?/*$", address):
            fallback = address
    return fallback


def find_mirror(suite: str = "") -> str:
    """Return the address of the mirror with a suite: from the host's apt configuration, or of VMM_LAB_MIRROR.

    Suites of security updates are in an archive of their own (VMM_LAB_SECURITY_MIRROR).
    """
    security = suite.endswith("-security")
    variable = "VMM_LAB_SECURITY_MIRROR" if security else "VMM_LAB_MIRROR"
    override = os.environ.get(variable)
    if override:
        return override
    require_tool("apt-get", "apt")
    form = "$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)"
    command = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    mirror = choose_mirror(run_tool(command, "Asking apt for its mirror").decode(), security=security)
    if mirror is None and security:
        raise NotServed(
            f"The host's apt configuration names no mirror of Debian's security updates, where {suite} is; "
            f"add one to the apt sources or set {variable} to its address."
        )
    if mirror is None:
        raise LabError(
            "The host's apt configuration names no Debian mirror, from which the machines are built; "
            "add one to the apt sources or set VMM_LAB_MIRROR to its address."
        )
    return mirror


def apt_configuration(folder: Path, arch: str) -> str:
    """Return the text of an apt.conf that keeps all of apt's state below `folder`."""
    return "\n".join(
        [
            f'APT::Architecture "{arch}";',
            "#clear APT::Architectures;",
            f'APT::Architectures {{ "{arch}"; }};',
            'APT::Default-Release "";',
            'APT::Install-Recommends "false";',
            'APT::Sandbox::User "root";',
            'Acquire::Languages "none";',
            'Acquire::Retries "3";',
            'Acquire::Check-Valid-Until "false";',
            "#clear APT::Update::Post-Invoke-Success;",
            "#clear APT::Update::Post-Invoke;",
            'Debug::NoLocking "true";',
            f'Dir::Etc::SourceList "{folder}/sources.list";',
            'Dir::Etc::SourceParts "/dev/null";',
            'Dir::Etc::Preferences "/dev/null";',
            'Dir::Etc::PreferencesParts "/dev/null";',
            f'Dir::State "{folder}";',
            f'Dir::State::Lists "{folder}/lists";',
            f'Dir::State::Status "{folder}/status";',
            f'Dir::Cache "{folder}/cache";',
            "",
        ]
    )


def source_list(mirror: str, suite: str, *, sources: bool, keyring: Path = _KEYRING) -> str:
    """Return the text of a sources.list for one suite, with source packages when asked for."""
    kinds = ["deb", "deb-src"] if sources else ["deb"]
    return "".join(f"{kind} [signed-by={keyring}] {mirror} {suite} main\n" for kind in kinds)


class Archive:
    """One suite of Debian for one architecture.

    The indices are fetched once and then stay, so what they name stays the same from run to run; `refresh`
    fetches them again when the mirror has replaced a package that they name.  A suite of backports holds what differs
    from the suite it is for: where it is to be `complete`, that one belongs to it.
    """

    def __init__(self, cache: Cache, suite: str, arch: str, *, sources: bool = False, complete: bool = False) -> None:
        self.cache = cache
        self.suite = suite
        self.arch = arch
        self._sources = sources
        base = suite.removesuffix("-backports")
        self._suites = [suite, base] if complete and base != suite else [suite]
        self._folder = cache.root / "apt" / f"{'+'.join(self._suites)}-{arch}{'-src' if sources else ''}"
        self._environment = {"APT_CONFIG": str(self._folder / "apt.conf")}

    def closure(self, names: Sequence[str]) -> list[Package]:
        """Return the named packages with all they depend on, as apt resolves it for an empty system."""
        # What both suites have is the one of backports.
        target = ["--target-release", self.suite] if len(self._suites) > 1 else []
        command = ["apt-get", "--simulate", "--quiet", *target, "install", *names]
        pattern = re.compile(r"^Inst (\S+?)(?::\S+)? \((\S+) .*\[(\S+)\]\)", re.MULTILINE)
        found = pattern.findall(self._query(command))
        missing = set(names) - {name for name, _, _ in found}
        if missing:
            raise LabError(
                f"Debian {self.suite} has no package {', '.join(sorted(missing))}; run scripts/lab --clean."
            )
        return [Package(*fields) for fields in found]

    def candidate(self, name: str) -> Package:
        """Return the version of one package that this suite offers."""
        fields = self.fields(name)
        if "Version" not in fields:
            raise NotServed(f"Debian {self.suite} serves no package {name}, which another one needs.")
        return Package(name, fields["Version"], fields["Architecture"])

    def fields(self, name: str) -> dict[str, str]:
        """Return the control fields of a package."""
        text = self._query(["apt-cache", "show", "--no-all-versions", name])
        return dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", text, re.MULTILINE))

    def versions(self, prefix: str) -> dict[str, str]:
        """Return the packages whose names begin with `prefix`, and the version of each that the suite offers."""
        names = self._query(["apt-cache", "pkgnames", prefix]).split()
        if not names:
            return {}
        text = self._query(["apt-cache", "show", "--no-all-versions", *sorted(names)])
        return dict(re.findall(r"^Package: (\S+)\n(?:.+\n)*?Version: (\S+)$", text, re.MULTILINE))

    def refresh(self) -> None:
        """Fetch the indices again; raise NotServed if the suite is gone."""
        with self.cache.lock(self._folder.name, f"indices of {self.suite}"):
            self._update()

    def extract(self, packages: Iterable[Package], into: Path) -> None:
        """Fetch packages into the pool where they are missing, and unpack all of them into `into`."""
        packages = list(packages)
        self.fetch(packages)
        for package in packages:
            run_tool(["dpkg-deb", "-x", self._pool / package.deb, into], f"Extracting {package.name}")

    def fetch(self, packages: Iterable[Package]) -> None:
        """Fetch packages into the pool; what is there already is kept."""
        self._pool.mkdir(parents=True, exist_ok=True)
        missing = [package for package in packages if not (self._pool / package.deb).exists()]
        if not missing:
            return
        self._ready()
        words = [f"{package.name}={package.version}" for package in missing]
        with step(f"fetching {len(words)} packages of {self.suite}"), self.cache.scratch("debs-") as folder:
            what = f"Fetching packages of {self.suite} (the mirror may have newer ones: scripts/lab --clean)"
            run_tool(["apt-get", "--quiet", "download", *words], what, cwd=folder, env=self._environment)
            for package in missing:
                os.rename(folder / package.deb, self._pool / package.deb)

    def source_tarball(self, name: str, version: str, into: Path) -> Path:
        """Fetch the upstream tarball of a source package into `into` and return its path."""
        self._ready()
        command = ["apt-get", "--quiet", "source", "--tar-only", "--download-only", f"{name}={version}"]
        run_tool(command, f"Fetching the source of {name}", cwd=into, env=self._environment)
        tarballs = list(into.glob(f"{name}_*.orig.tar.*"))
        if len(tarballs) != 1:
            raise LabError(f"The source package {name} {version} has no single tarball; is it still in the archive?")
        return tarballs[0]

    def describe(self, packages: Iterable[Package]) -> list[dict[str, str]]:
        """Return what was used of this archive, with the hashes apt has checked, for a manifest."""
        listing = []
        for package in packages:
            content = (self._pool / package.deb).read_bytes()
            listing.append({"package": package.name, "version": package.version, "arch": package.arch,
                            "suite": self.suite, "sha256": hashlib.sha256(content).hexdigest()})  # fmt: skip
        return listing

    @property
    def _pool(self) -> Path:
        return self.cache.root / "pool"

    def _query(self, command: Sequence[str]) -> str:
        """Ask apt, remembering the answer beside the indices: a warm start must not load them again."""
        self._ready()
        memory = self._folder / "answers" / (hashlib.sha256(json.dumps(command).encode()).hexdigest()[:16] + ".txt")
        if not memory.exists():
            answer = run_tool(command, f"Asking the indices of {self.suite}", env=self._environment)
            if not answer:
                return ""  # nothing is known of it now, which is not worth remembering
            memory.parent.mkdir(exist_ok=True)
            with self.cache.scratch("answer-") as folder:
                (folder / "answer").write_bytes(answer)
                os.rename(folder / "answer", memory)
        return memory.read_text()

    def _ready(self) -> None:
        """Fetch the indices when there are none."""
        if (self._folder / "apt.conf").exists():
            return
        require_tool("apt-get", "apt")
        require_tool("dpkg-deb", "dpkg")
        if not _KEYRING.exists():
            raise LabError("The host has no keys of the Debian archive; install the package debian-archive-keyring.")
        with self.cache.lock(self._folder.name, f"indices of {self.suite}"):
            if not (self._folder / "apt.conf").exists():
                self._update()

    def _update(self) -> None:
        """Fetch the indices beside what is there, which is replaced only by a whole new folder."""
        folder = self._folder.with_name(self._folder.name + ".new")
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        lists = [source_list(find_mirror(suite), suite, sources=self._sources) for suite in self._suites]
        (folder / "sources.list").write_text("".join(lists))
        configuration = folder / "apt.conf"
        configuration.write_text(apt_configuration(folder, self.arch))
        with step(f"fetching the indices of Debian {self.suite} for {self.arch}"):
            command = ["apt-get", "--quiet", "--error-on=any", "update"]
            try:
                run_tool(command, f"Fetching the indices of {self.suite}", env={"APT_CONFIG": str(configuration)})
            except LabError as error:
                if "does not have a Release file" not in str(error):
                    raise
                raise NotServed(f"The mirror has no suite {self.suite} of Debian, or no longer has it.") from None
        configuration.write_text(apt_configuration(self._folder, self.arch))
        shutil.rmtree(self._folder, ignore_errors=True)
        folder.rename(self._folder)
