# SPDX-License-Identifier: Apache-2.0
"""``vmm send``: run a payload and migrate it while it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from vmm.cli import guests
from vmm.cli.lines import address, line_files, line_options, place_of_state, probe, say, show_end, tls
from vmm.cli.options import Count, Places, Seconds, Size, guest_options
from vmm.guest.base import BaseGuest
from vmm.kvm.dirty_log import RingKvm
from vmm.kvm.system import Kvm
from vmm.migration.convergence import STALLS, Limits
from vmm.migration.errors import MigrationError
from vmm.migration.handover import At
from vmm.migration.runner import Journal, Lease, Runner
from vmm.migration.source import Options, Progress, Report, Source
from vmm.migration.transport import TIMEOUT, Connector, parse
from vmm.state.policy import Policy

__all__ = ["command"]

_LASTING = 20.0  # seconds
_ON_DEADLINE = ("cancel", "force")
_WORDS = {
    At.MOVED: "the guest runs there",
    At.KEPT: "the guest was not migrated and continues here",
    At.LOST: "the guest is lost: it was started there, and its process died",
    At.HELD: "the guest's whereabouts are unknown, so it does not run here",
}


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Progress], None] | None]:
    """Show a bar on a terminal; nothing anywhere else."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("round 1", total=total)
        sent_before, seen = 0, 1

        def show(state: Progress) -> None:
            nonlocal sent_before, seen
            if state.round != seen:
                sent_before, seen = state.sent, state.round
                throttled = f", guest slowed by {state.throttle:.0%}" if state.throttle else ""
                bar.reset(task, total=state.of_round, description=f"round {state.round}{throttled}")
            bar.update(task, completed=state.sent - sent_before)

        yield show


def _summary(report: Report) -> str:
    traffic = report.traffic
    sentence = _WORDS[report.at]
    if report.reason:
        sentence += f": {report.reason}"
    if report.at is At.MOVED:
        assert report.downtime is not None
        speed = traffic.sent / traffic.seconds / 1e6 if traffic.seconds else 0.0
        sentence += (
            f" after {traffic.rounds} rounds, {traffic.sent} bytes ({speed:.0f} MB/s) and "
            f"{report.downtime * 1000:.1f} ms of downtime"
        )
    if report.file:
        sentence += (
            f"; check whether it is running there; if not, `vmm restore {report.file}` resumes it from the handover"
        )
    return sentence


@click.command("send")
@click.argument("destination")
@click.argument("payload")
@click.argument("entry", required=False)
@click.argument("parameters", nargs=-1)
@click.option("--privilege", type=click.IntRange(0, 3), default=0, show_default=True, help="CPL 0 or 3 (x86).")
@click.option("--downtime", type=Seconds(0), default=0.1, show_default=True, help="Seconds the guest may be paused.")
@click.option("--rate", type=Size(), help="Bytes per second at most, while the guest runs; such as 100M.")
@click.option("--rounds", type=Count(), default=30, show_default=True, help="Rounds over memory at most.")
@click.option("--stall", type=click.Choice(STALLS), default=STALLS[0], show_default=True,
              help="A guest that writes too fast is slowed down, stopped all the same, or stays.")  # fmt: skip
@click.option("--compress", is_flag=True, help="Compress memory with zstandard.")
@click.option("--ring", type=Count(1 << 20), metavar="ENTRIES", help="Use dirty rings with this many entries.")
@click.option("--audit", is_flag=True, help="Check that no page changed unlogged; the guest is paused longer.")
@click.option("--timeout", type=Seconds(0.1), default=TIMEOUT, show_default=True, help="Seconds of silence.")
@click.option("--longest-pause", type=Seconds(0.01), metavar="SECONDS",
              help="Longest pause before the handover (default: --timeout, none with force).")  # fmt: skip
@click.option("--deadline", type=Seconds(0.01), metavar="SECONDS",
              help="How long the migration may take until the handover (default: no bound).")  # fmt: skip
@click.option("--on-deadline", type=click.Choice(_ON_DEADLINE), default=_ON_DEADLINE[0], show_default=True,
              help="Then the guest stays here, or is stopped to copy the rest.")  # fmt: skip
@click.option("--patience", type=Seconds(1), default=60.0, show_default=True,
              help="Seconds to ask about a guest whose line was lost at the handover.")  # fmt: skip
@click.option("--trust-refusal", is_flag=True, help="Take a refused connection as the receiver's end; see below.")
@click.option("--hold", metavar="FILE", help="Save the guest's state here if its fate is unknown.")
@click.option("--limit", type=Seconds(0.001), default=3600.0, show_default=True, help="Seconds the guest may run.")
@click.option("--tls-name", metavar="NAME", help="Who the other side's certificate is for, if not HOST.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with all figures.")
@guest_options
@line_options
def command(
    destination: str, payload: str, entry: str | None, parameters: tuple[str, ...], privilege: int, downtime: float,
    rate: int | None, rounds: int, stall: str, compress: bool, ring: int | None, audit: bool, timeout: float,
    longest_pause: float | None, deadline: float | None, on_deadline: str, patience: float, trust_refusal: bool,
    hold: str | None, limit: float, tls_name: str | None, as_json: bool, tls_cert: str | None, tls_key: str | None,
    tls_ca: str | None, lease: str | None, journal: str | None, tolerate: tuple[str, ...], memory: Places | None,
    vcpus: int,
) -> int:  # fmt: skip
    """Run PAYLOAD as `vmm run` does and migrate it to DESTINATION, where `vmm receive` waits.

    DESTINATION is HOST:PORT, unix:PATH, exec:COMMAND (such as exec:'ssh HOST vmm receive -'), fd:N, fd:IN,OUT
    or -.

    The payload writer writes memory at a rate: pages of 4096 bytes per second of all vCPUs together, the percentage
    of memory that is written, and seconds, after which it looks at every page. It has filled all of its memory when
    the migration begins. So `vmm send HOST:PORT writer write 51200 25 60 --memory 8G --vcpus 2` sends a guest that
    dirties 200 MiB/s.

    Until the handover the guest is here whatever happens, and if the migration fails it runs here to its end.
    If the line is lost at the handover, vmm send asks the receiver whether the guest runs there, and does not
    run it as long as it does not know. If --patience is over, it writes the guest's state to a file and says what
    to check. A refused connection does not count, because a firewall refuses too: --trust-refusal is for networks
    without one.

    Exits with 0 if the guest was migrated, 1 if it was not and has come to its end here, 3 if it was lost or
    its fate is unknown.
    """
    found = address(parse, destination)
    security = tls(tls_cert, tls_key, tls_ca, tls_name)
    try:
        connector = Connector(found, timeout, security)
    except MigrationError as error:
        raise click.UsageError(str(error)) from None
    with Kvm() as kvm:
        facts = probe(kvm)
    forced = deadline is not None and on_deadline == "force"
    options = Options(
        limits=Limits(downtime, rounds, rate or 0, stall), compress=compress, audit=audit, patience=patience,
        longest_pause=longest_pause or (None if forced else timeout), deadline=deadline, force=forced,
        trust_refusal=trust_refusal, hold=hold, policy=Policy(tolerate), facts=facts,
    )  # fmt: skip
    line_files(lease, journal)
    place_of_state("--hold", hold)
    log = Journal(journal)

    def make_guest(kvm: Kvm) -> BaseGuest:
        # A chain whose length was not chosen is still running when it is handed over.
        return guests.make(kvm, payload, entry, parameters, privilege, memory=memory, vcpus=vcpus, lasting=_LASTING)

    with RingKvm(ring) if ring else Kvm() as kvm, make_guest(kvm) as guest:
        runner = Runner(guest, limit=limit, lease=Lease(lease), journal=log)
        try:
            runner.go()
            with _progress(sum(one.size for one in guest.vm.memories)) as progress:
                source = Source(runner, connector, options, journal=log, progress=progress, warn=say)
                try:
                    report = source.migrate()
                except BaseException:
                    if source.report.at is At.HELD:
                        say(_summary(source.report))
                    raise
            say(_summary(report))
            for note in [*report.notes, *options.policy.notes, *filter(None, [log.failure])]:
                say(note)
            outcome = runner.wait() if report.at is At.KEPT else None
        finally:
            runner.close()
        if as_json:
            ended = {"well": outcome.well, "why": outcome.why} if outcome else None
            print(json.dumps({**report.to_json(), "guest": ended}, indent=2))
        elif outcome:
            show_end(guest, outcome)
    return {At.MOVED: 0, At.KEPT: 1}.get(report.at, 3)
