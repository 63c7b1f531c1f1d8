# SPDX-License-Identifier: Apache-2.0
"""What ``vmm send`` and ``vmm receive`` share: options, sizes, whether the hosts fit, what is said at the end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from vmm.compat.offer import Verdict
from vmm.compat.report import compare, parse
from vmm.guest.base import BaseGuest
from vmm.kvm.system import Kvm
from vmm.migration.errors import MigrationError
from vmm.migration.runner import Outcome
from vmm.probe.document import ProbeError, document
from vmm.probe.host import measure
from vmm.state.stream.files import check_place

if TYPE_CHECKING:
    from vmm.migration.tls import Tls

__all__ = [
    "address",
    "blockers",
    "line_files",
    "line_options",
    "place_of_state",
    "probe",
    "say",
    "show_end",
    "tls",
]

_Command = Callable[..., int]


def line_options(command: _Command) -> _Command:
    """Add the options that both ends of a line have."""
    options = (
        click.option("--tls-cert", metavar="PEM", help="This side's certificate; makes TLS compulsory."),
        click.option("--tls-key", metavar="PEM", help="Its key."),
        click.option("--tls-ca", metavar="PEM", help="The authorities that sign the other side's certificate."),
        click.option("--lease", metavar="FILE", help="Run the guest only with this file locked; for all sides."),
        click.option("--journal", metavar="FILE", help="Append JSON lines of what happens, and when."),
        click.option("--tolerate", multiple=True, metavar="GLOB",
                     help="Continue without registers that differ, such as 'MSRS.KVM_*'; repeatable."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def tls(
    certificate: str | None,
    key: str | None,
    authorities: str | None,
    name: str | None = None,
    allow: tuple[str, ...] = (),
) -> Tls | None:
    """Return what the options say about TLS; UsageError unless all of them are there, or none."""
    if "" in allow:
        raise click.UsageError("--tls-allow '' names nobody: give a host name, or a distinguished name as CN=HOST")
    if certificate and key and authorities:
        from vmm.migration.tls import Tls

        return Tls(certificate, key, authorities, name, allow)
    if certificate or key or authorities or name or allow:
        raise click.UsageError("TLS needs --tls-cert, --tls-key and --tls-ca: both sides show a certificate")
    return None


def address(parse: Callable[[str], Any], text: str) -> Any:
    """Return an address; UsageError if it is none."""
    try:
        return parse(text)
    except MigrationError as error:
        raise click.UsageError(str(error)) from None


def probe(kvm: Kvm) -> dict[str, Any]:
    """Return what `vmm probe --json` prints."""
    return document(kvm, measure(kvm))


def blockers(source: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return why no guest of a host with the probe ``source`` can run here, as `vmm compat` would say.

    What masking a guest makes possible is no such reason: whether this guest can run is found out by restoring it.
    """
    try:
        report = compare(*(parse(json.dumps(dict(facts)).encode(), "") for facts in (source, here)))
    except ProbeError as error:
        return [f"the source's probe is not usable: {error}"]
    return [
        f"{found.name} is {found.source} at the source and {found.destination} here"
        for found in report.findings
        if found.verdict is Verdict.NO
    ]


def say(sentence: str) -> None:
    """Tell the operator something, if anybody can be told: a full disk or a closed pipe must not end a migration."""
    with suppress(OSError, ValueError):
        print(f"vmm: {sentence}", file=sys.stderr, flush=True)


def line_files(lease: str | None, journal: str | None) -> None:
    """Open and close the files of a line's options; UsageError for one that cannot be, before a guest exists."""
    for option, path in (("--lease", lease), ("--journal", journal)):
        if path is None:
            continue
        try:
            os.close(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise click.UsageError(f"{option} {path!r} cannot be opened for writing: {error.strerror}") from None


def place_of_state(option: str, path: str | None) -> None:
    """UsageError unless ``path`` can become a file that keeps a state; None is left to whoever saves."""
    try:
        if path is not None:
            check_place(path)
    except OSError as error:
        raise click.UsageError(f"{option} {path!r} cannot keep a state: {error.strerror}") from None


def show_end(guest: BaseGuest, outcome: Outcome) -> None:
    """Print how a guest ended, and its registers."""
    print(outcome.why)
    guest.complete()
    for line in guest.registers():
        print(line)
    sys.stdout.flush()
