# SPDX-License-Identifier: Apache-2.0
"""The command ``vmm``: one module per subcommand, imported when it is used.

Exit status: 0 nothing failed, 1 something failed, 2 wrong usage or no usable KVM, 4 nothing could run,
130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
from contextlib import suppress

import click

from vmm.kvm import signals

__all__ = ["main"]

# The help is here and not in the modules, so that `vmm --help` imports none of them.
_COMMANDS = {
    "bench": "Compare this VMM's speed with a C program that does the same.",
    "check": "Check this KVM clause by clause.",
    "compat": "Judge from two probes whether a guest of one host may move to the other.",
    "diff": "Show how two saved states differ.",
    "inspect": "Show what a saved state holds.",
    "order": "Find the orders in which this KVM lets a state be restored.",
    "probe": "Show what this host's KVM offers.",
    "receive": "Receive guests that are migrated to this host.",
    "restore": "Restore a saved guest and run it on.",
    "roundtrip": "Migrate a guest many times and see that it ends as if it had never moved.",
    "run": "Run one payload and show its exits and registers.",
    "save": "Run a payload for a while and save its VM to a file.",
    "send": "Run a payload and migrate it to another process or host while it runs.",
}
# What a shell sets that wants to complete a command line.
_COMPLETE = "_VMM_COMPLETE"


class _LazyGroup(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command = importlib.import_module(f"vmm.cli.{name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


def _show_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata

    try:
        click.echo(f"vmm, version {metadata.version('xstate-vmm')}")
    except metadata.PackageNotFoundError:
        click.echo("vmm, not installed")
    context.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def _vmm() -> None:
    """Prove, clause by clause, that a KVM keeps a guest's extended state as its ABI promises."""


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _discard_output() -> None:
    """Nobody reads our output any longer: what is still buffered must not fail again at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run() -> int:
    if instruction := os.environ.get(_COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(_vmm, {}, "vmm", _COMPLETE, instruction)
    try:
        # Not _vmm.main: it would turn a broken pipe into status 1 by itself.
        with _vmm.make_context("vmm", sys.argv[1:]) as context:
            result = _vmm.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as exit:
        return exit.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("vmm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard_output()
        return 141
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        if isinstance(error, OSError):
            _discard_output()
        print(f"vmm: {sentence}", file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0


def _sentence(error: Exception) -> str | None:
    """Return the sentence of an error that is the user's to mend, None for a fault of ours."""
    if isinstance(error, ModuleNotFoundError):
        return f"the Python module {error.name} is missing: install this package with pip, or run scripts/check"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG):
        return f"the output could not be written: {error.strerror}"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return (
            "this process cannot have the memory that it needs: see ulimit -v, the control group, and the host's own"
        )
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN):
        return f"this process cannot open or start what it needs ({error.strerror}): raise ulimit -n or ulimit -u"
    if isinstance(error, OSError) and error.filename is not None and error.filename != "/dev/kvm":
        return f"{error.filename or 'an empty file name'}: {error.strerror}"
    from vmm.guest.payload import PayloadError
    from vmm.kvm.ioctl import HostError, KvmError
    from vmm.kvm.memory import MemoryUnavailable
    from vmm.kvm.system import KvmUnavailable
    from vmm.migration.errors import MigrationError
    from vmm.probe.document import ProbeError
    from vmm.state.errors import StateRefused, StreamError

    known = (
        KvmUnavailable | PayloadError | MemoryUnavailable | KvmError | HostError | StreamError | StateRefused
        | MigrationError | ProbeError
    )  # fmt: skip
    return str(error) if isinstance(error, known) else None


def _open_standard_streams() -> None:
    """Open descriptors 0, 1 and 2 where they are closed, so that no file becomes one; print in any encoding."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command line and exit with its status."""
    signals.reset()
    _open_standard_streams()
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_run())
