# SPDX-License-Identifier: Apache-2.0
"""``vmm receive``: take a guest that ``vmm send`` sends, and run it to its end."""

from __future__ import annotations

import click

from vmm.cli.lines import address, blockers, line_files, line_options, probe, say, show_end, tls
from vmm.cli.options import Seconds, Size
from vmm.guest.base import BaseGuest
from vmm.kvm.system import Kvm
from vmm.migration.errors import MigrationError
from vmm.migration.keeper import Keeper
from vmm.migration.link import Link
from vmm.migration.messages import Hello
from vmm.migration.runner import Outcome
from vmm.migration.target import Options, Target
from vmm.migration.transport import TIMEOUT, Listener, inherited_line, loopback, parse
from vmm.migration.wire import Channel
from vmm.state.policy import Policy

__all__ = ["command"]


@click.command("receive")
@click.argument("where", metavar="ADDRESS")
@click.option("--once", is_flag=True, help="End after the first guest; always so with - and fd:.")
@click.option("--guests", type=click.IntRange(1, 32), default=4, show_default=True, help="At most this many at once.")
@click.option("--memory", type=Size(), default="4G", show_default=True, help="The largest guest to accept.")
@click.option("--any-host", is_flag=True, help="Do not ask whether the hosts fit: restoring the guest will tell.")
@click.option("--reread", is_flag=True, help="Read all memory once more before the guest may run here.")
@click.option("--populate", is_flag=True, help="Have the host give all of the memory before it is copied.")
@click.option("--timeout", type=Seconds(0.1), default=TIMEOUT, show_default=True, help="Seconds of silence.")
@click.option("--limit", type=Seconds(0.001), default=3600.0, show_default=True, help="Seconds a guest may run.")
@click.option(
    "--tls-allow", multiple=True, metavar="NAME", help="Who may send: a name in its certificate; repeatable."
)
@line_options
def command(
    where: str, once: bool, guests: int, memory: int, any_host: bool, reread: bool, populate: bool, timeout: float,
    limit: float, tls_allow: tuple[str, ...], tls_cert: str | None, tls_key: str | None, tls_ca: str | None,
    lease: str | None, journal: str | None, tolerate: tuple[str, ...],
) -> int:  # fmt: skip
    """Receive guests at ADDRESS and run them to their end.

    ADDRESS is HOST:PORT, unix:PATH, fd:N, fd:IN,OUT or - (standard input and output, as in
    exec:'ssh HOST vmm receive -' on the other side; what is printed goes to standard error then). Without TLS
    whoever can connect can have a guest run here, with it whoever has a certificate of --tls-ca.

    With --tls-allow only those may whose certificate has one of the NAMEs. Where NAME has a = it is the whole
    distinguished name of the subject (CN=host-a,O=Example, as `openssl x509 -subject -nameopt RFC2253` prints it),
    else its common name or one of its DNS names. NAME is no pattern.

    Hosts that do not fit, as `vmm compat` judges them, are refused at once; then the guest's registers are restored
    on trial, before any memory is copied.

    Exits with 0 or 1 as the guest ended here, 75 if none ever ran here, 74 if its process died.
    """
    found = address(parse, where)
    security = tls(tls_cert, tls_key, tls_ca, allow=tls_allow)
    if security and not found.is_socket:
        raise click.UsageError(f"TLS needs TCP or a Unix socket, and {where} is neither: leave out the --tls options")
    line_files(lease, journal)
    if found.kind == "tcp" and not security and not loopback(found.host):
        say("without TLS whoever can connect can have a guest run here: give --tls-cert, --tls-key and --tls-ca")
    with Kvm() as kvm:
        here = {} if any_host else probe(kvm)

    def check(hello: Hello) -> list[str]:
        return [] if any_host else blockers(hello.facts, here)

    def finished(guest: BaseGuest, outcome: Outcome) -> None:
        show_end(guest, outcome)

    def work(channel: Channel, hello: Hello, link: Link) -> int:
        options = Options(
            memory=memory, limit=limit, reread=reread, populate=populate, policy=Policy(tolerate), check=check,
            finished=finished, lease=lease, journal=journal,
        )  # fmt: skip
        return Target(channel, hello, link, options, say).serve()

    try:
        if not found.is_socket:
            return Keeper(work, say=say).serve_line(inherited_line(found, timeout))
        listener = Listener(found, timeout, security)
    except MigrationError as error:
        raise click.UsageError(str(error)) from None
    try:
        say(f"receiving at {listener.text}")
        return Keeper(work, listener=listener, once=once, most=guests, say=say).serve()
    finally:
        listener.close()
