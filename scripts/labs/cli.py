# SPDX-License-Identifier: Apache-2.0
"""The command line of `scripts/lab`."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from .cache import Cache
from .config import CHECK, DEFAULT_KERNEL, KERNELS, TOOL_SUITE
from .errors import LabError
from .kept import POOL_SIZE
from .kernels import is_path
from .machines import MODES, Machine, Options, Port
from .processors import parse_processor
from .releases import parse_kernel
from .session import LAB_FAILURE, MACHINES, Plan, run_plans
from .shards import Merger, divisible, shard_command

__all__ = ["main", "make_plans", "parse"]

_REPOSITORY = Path(__file__).resolve().parents[2]
_MOST_SHARDS = 2

_DESCRIPTION = """\
Boot a Debian kernel with its own KVM on an emulated CPU and run a command there.

  svm   x86-64, AMD SVM with nested paging (QEMU)
  amx   x86-64, Intel VMX with AMX, XFD, AVX-512 and CET (Bochs, built with the project's patches)
  sve   arm64 at EL2 with SVE (QEMU)
"""

_EPILOG = """\
The command's output and exit status become those of scripts/lab; 125 says that the machine failed, not the
command.  Files that the command writes to /out come back with --out; it finds those of --in in /in.  The first
run of a machine builds it (minutes), later ones take seconds: svm and sve resume from the state in which they were
booted once with the same kernel, options and package.

  scripts/lab amx                                      the conformance run with AMX, half of it in each of two
  scripts/lab svm --kernel 6.1 -- vmm check 'cpuid.*'  some clauses on an older kernel
  scripts/lab sve --cpu vq=1,2,4 --mode nvhe           another set of vector lengths, KVM without VHE
  scripts/lab amx --modules DIR -- vmm check 'xfd.*'   with a kvm.ko of one's own, built for the machine's kernel
  scripts/lab sve --shell                              a shell in the machine
  scripts/lab sve --pair -- vmm receive 0.0.0.0:5555 -- vmm send a:5555 PAYLOAD
                                                       two machines, "a" (10.9.0.1) and "b" (10.9.0.2)

KERNEL is WHERE[:WHAT]...: a series or one of Debian's suites, then a flavour (cloud, unless something else is said;
full, rt, 16k), a version, which is the newest that begins so, or the name of a package:

  --kernel 6.12:full                                   the flavour for everything, with all drivers
  --kernel trixie-backports:6.16.3                     of the cloud flavour
  --kernel bookworm-backports:6.12.43:full
  --kernel sid:linux-image-7.2.13+deb14-rt-amd64

or, for sve, the path (with a slash in it) of an arm64 Image that has what the machine needs built in:

  --kernel ./Image
"""


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[list[str]]]:
    """Return the options and the commands after "--", two at most."""
    own, commands = _split(arguments)
    parser = argparse.ArgumentParser(
        prog="scripts/lab",
        usage="scripts/lab NAME [options] [-- COMMAND ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=sorted(MACHINES), metavar="NAME", help="svm, amx or sve")
    parser.add_argument(
        "--kernel",
        action="append",
        metavar="KERNEL",
        help=f"a series ({', '.join(KERNELS)}; default {DEFAULT_KERNEL}), or a kernel that Debian has: see below",
    )
    parser.add_argument(
        "--cpu",
        action="append",
        metavar="SPEC",
        help="[MODEL][,vq=1,2,4][,+FEATURE][,-FEATURE]: a model and features of the emulator's, and for sve the "
        "vector lengths in units of 128 bits; --cpu=-pku, with '=', where it begins with '-'",
    )
    parser.add_argument("--cpus", type=int, choices=(1, 2), help="number of processors (default 1, sve 2)")
    parser.add_argument("--mode", choices=MODES, default="vhe", help="sve: how KVM uses EL2 (default vhe)")
    parser.add_argument(
        "--emulator", default=TOOL_SUITE, metavar="SUITE", help=f"svm, sve: whose QEMU to use (default {TOOL_SUITE})"
    )
    parser.add_argument(
        "--modules",
        type=Path,
        metavar="DIR",
        help="insert the modules (.ko) of a folder instead of the kernel's of the same names",
    )
    parser.add_argument("--memory", type=int, metavar="MIB", help="the machine's RAM (default 1024, amx 512)")
    parser.add_argument(
        "--append",
        default="",
        metavar="ARGS",
        help="more arguments for the kernel and, as MODULE.NAME=VALUE, modules",
    )
    parser.add_argument(
        "--timeout", type=float, default=300, metavar="S", help="end the machine after S seconds (300)"
    )
    parser.add_argument(
        "--in", type=Path, dest="files", metavar="DIR", help="put the files of a folder into the machine's /in"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="bring back what the command writes to /out")
    parser.add_argument("--shell", action="store_true", help="an interactive shell on the machine's console")
    parser.add_argument(
        "--pair",
        action="store_true",
        help="two machines joined by a cable; --kernel and --cpu may be given for each",
    )
    parser.add_argument(
        "--shards",
        type=int,
        metavar="N",
        help="divide `vmm check --format json` among N machines and join the reports (amx and sve's own command: 2)",
    )
    parser.add_argument("--fresh", action="store_true", help="boot, instead of continuing a machine booted before")
    parser.add_argument(
        "--pool",
        default="",
        metavar="NAME",
        help=f"keep the booted machine in a pool of its own, of {POOL_SIZE}, out of the way of the usual ones",
    )
    parser.add_argument("--keep", action="store_true", help="keep the run's files: console, initrd, command line")
    parser.add_argument("--clean", action="store_true", help="remove everything that was fetched and built")
    options = parser.parse_args(own)
    if options.name is None and not options.clean:
        parser.error("which machine? svm, amx or sve")
    if len(commands) > (2 if options.pair else 1):
        parser.error("a second command after '--' is for --pair")
    if options.files is not None and not options.files.is_dir():
        parser.error(f"--in {options.files} is not a folder")
    if options.modules is not None and not options.modules.is_dir():
        parser.error(f"--modules {options.modules} is not a folder")
    if options.shell and (commands or options.pair):
        parser.error("--shell goes with neither a command nor --pair")
    try:
        for kernel in options.kernel or ():
            _check_kernel(kernel)
        for cpu in options.cpu or ():
            parse_processor(cpu)
    except LabError as error:
        parser.error(str(error))
    for option, value in (("pool", options.pool), ("emulator", options.emulator)):
        if not re.fullmatch(r"([a-z]+(-[a-z]+)*)?", value):
            parser.error(f"--{option} {value} is not a word of small letters")
    if not options.pair and (len(options.kernel or ()) > 1 or len(options.cpu or ()) > 1):
        parser.error("a second --kernel or --cpu is for --pair")
    return options, commands


def _check_kernel(kernel: str) -> None:
    """Raise LabError for what --kernel does not take."""
    if not is_path(kernel):
        parse_kernel(kernel)
    elif not Path(kernel).is_file():
        raise LabError(f"--kernel {kernel} is not a file.")


def _split(arguments: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Cut the words at each "--"."""
    parts: list[list[str]] = [[]]
    for word in arguments:
        if word == "--":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts[0], [part for part in parts[1:] if part]


def make_plans(cache: Cache, options: argparse.Namespace, commands: Sequence[Sequence[str]]) -> list[Plan]:
    """Return the machines to run: one, or two with a cable."""
    if not options.pair:
        command = _shell() if options.shell else [*(commands[0] if commands else CHECK)]
        shards = _shards(options, commands, command)
        if shards > 1:
            merger = Merger(shards)
            parts = [shard_command(command, part + 1, shards) for part in range(shards)]
            return [
                Plan(_machine(cache, options, 0), one, fresh=options.fresh, pool=options.pool, merger=merger)
                for one in parts
            ]
        machine = _machine(cache, options, 0)
        return [Plan(machine, command, options.out, options.shell, options.files, options.fresh, options.pool)]
    if options.name == "amx":
        raise LabError("Only svm and sve can be paired: the emulator of amx has no network in this configuration.")
    ends = [end.detach() for end in socket.socketpair()]
    plans = []
    for index, label in enumerate("ab"):
        words = commands[min(index, len(commands) - 1)] if commands else CHECK
        plans.append(
            Plan(
                _machine(cache, options, index),
                words,
                options.out / label if options.out else None,
                files=options.files,
                label=f"{label}| ",
                address=f"10.9.0.{index + 1}",
                port=Port(ends[index], mac=f"52:54:00:00:00:0{index + 1}"),
                environment={"LAB_SELF": label, "LAB_PEER": "ba"[index]},
            )
        )
    return plans


def _shards(options: argparse.Namespace, commands: Sequence[Sequence[str]], command: Sequence[str]) -> int:
    """Return among how many machines to divide the command."""
    wanted: int | None = options.shards
    if wanted is None:
        divided = MACHINES[options.name].one_thread and not commands and not options.shell and options.out is None
        return min(_MOST_SHARDS, os.cpu_count() or 1) if divided else 1
    if wanted > 1 and not divisible(command):
        raise LabError("--shards divides `vmm check --format json` without --output and nothing else.")
    return max(1, wanted)


def _shell() -> list[str]:
    """Return the command of `--shell`: a serial line cannot tell the size of the user's terminal, so we do."""
    size = shutil.get_terminal_size()
    return ["sh", "-c", f"stty rows {size.lines} cols {size.columns}; export TERM=linux; exec sh -i"]


def _machine(cache: Cache, options: argparse.Namespace, index: int) -> Machine:
    """Return a machine with the options of its place: the last one given serves the rest."""

    def choose(values: list[str] | None, default: str | None) -> str | None:
        return values[min(index, len(values) - 1)] if values else default

    kernel = choose(options.kernel, DEFAULT_KERNEL) or DEFAULT_KERNEL
    cpu = choose(options.cpu, None)
    chosen = Options(
        kernel,
        cpu,
        options.mode,
        options.memory,
        options.append,
        cpus=options.cpus,
        emulator=options.emulator,
        replacements=options.modules,
    )
    return MACHINES[options.name](cache, chosen)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `scripts/lab` and return its exit status."""
    options, commands = parse(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        cache = Cache()
        if options.clean:
            cache.clean()
            if options.name is None:
                return 0
            cache = Cache()
        return run_plans(cache, _REPOSITORY, make_plans(cache, options, commands), options.timeout, options.keep)
    except LabError as error:
        print(f"scripts/lab: {error}", file=sys.stderr)
        return LAB_FAILURE
    except BrokenPipeError:
        return 141
    except OSError as error:
        print(f"scripts/lab: {error}; is the disk full, or a file not readable?", file=sys.stderr)
        return LAB_FAILURE
    except KeyboardInterrupt:
        print("scripts/lab: interrupted; the machine was ended", file=sys.stderr)
        return 130


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
