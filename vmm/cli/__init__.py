# SPDX-License-Identifier: Apache-2.0
"""The command ``vmm``: one module a subcommand, imported when it is used.

Exit status: 0 nothing failed, 1 something failed, 2 wrong usage or no usable KVM, 4 nothing could run,
130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys

import click

__all__ = ["main"]

# The help is here and not in the modules, so that `vmm --help` imports none of them.
_COMMANDS = {
    "bench": "Compare this VMM's speed with a C program that does the same.",
    "check": "Check this KVM clause by clause.",
    "probe": "Show what this host's KVM offers.",
    "run": "Run one payload and show its exits and registers.",
}


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


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xstate-vmm", prog_name="vmm")
def _vmm() -> None:
    """Prove, clause by clause, that a KVM keeps a guest's extended state as its ABI promises."""


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _run() -> int:
    try:
        result = _vmm.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("vmm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has had enough; nothing may be written to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        print(f"vmm: {sentence}", file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0


def _sentence(error: Exception) -> str | None:
    """Return the sentence of an error that is the user's to mend, None for a fault of ours."""
    if isinstance(error, ModuleNotFoundError):
        return f"the Python module {error.name} is missing: install this package with pip, or run scripts/check"
    from vmm.memory import MemoryUnavailable
    from vmm.payload import PayloadError
    from vmm.system import KvmUnavailable

    return str(error) if isinstance(error, KvmUnavailable | PayloadError | MemoryUnavailable) else None


def main() -> None:
    """Run the command line and exit with its status."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_run())
