# SPDX-License-Identifier: Apache-2.0
"""The two programs that are compared: built, driven over pipes, and ended whatever happens."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from vmm.bench.result import BenchUnavailable

__all__ = ["Program", "baseline", "build", "compiler", "subject"]

_PACKAGE = Path(__file__).resolve().parents[1]
_SOURCE = _PACKAGE / "bench" / "baseline.c"
_FLAGS = ("-O2", "-std=gnu11")
_COMPILE_TIMEOUT = 60.0
_ANSWER_TIMEOUT = 20.0


def compiler() -> list[str]:
    """Return the C compiler's command: $CC, else cc, else gcc; BenchUnavailable if there is none."""
    wanted = shlex.split(os.environ.get("CC", ""))
    for command in [wanted] if wanted else [["cc"], ["gcc"]]:
        if shutil.which(command[0]):
            return command
    missing = f"$CC names {wanted[0]}, which is not there" if wanted else "neither cc nor gcc is there"
    raise BenchUnavailable(
        f"vmm bench compiles a C program to compare with, and {missing}: install a C compiler or set $CC"
    )


def build(folder: Path) -> Path:
    """Compile the baseline into ``folder`` and return the program; BenchUnavailable if that fails."""
    command = compiler()
    program = folder / "baseline"
    try:
        subprocess.run(
            [*command, *_FLAGS, str(_SOURCE), "-o", str(program)],
            check=True,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_COMPILE_TIMEOUT,
        )
    except subprocess.CalledProcessError as error:
        reason = _first_error(error.stderr)
        raise BenchUnavailable(
            f"{command[0]} does not compile {_SOURCE.name}{reason}: it needs the headers of libc and of Linux"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BenchUnavailable(f"{command[0]} took over {_COMPILE_TIMEOUT:.0f} s for {_SOURCE.name}") from error
    except OSError as error:
        raise BenchUnavailable(f"{command[0]} could not be started ({error.strerror}): set $CC") from error
    return program


def _first_error(messages: str) -> str:
    lines = [line for line in messages.splitlines() if "error" in line] or messages.splitlines()
    return f" ({lines[0].strip()})" if lines else ""


def subject(folder: Path, name: str = "subject") -> Program:
    """Start a Python side, the module ``name``, which writes into ``folder`` what the C program needs of it."""
    # -P: nothing in the current folder can stand in for a module.
    command = [sys.executable, "-P", "-m", f"vmm.bench.{name}", str(folder)]
    path = os.pathsep.join([str(_PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return Program("the Python program", command, {**os.environ, "PYTHONPATH": path})


def baseline(program: Path, folder: Path, memory_size: int, tick: int) -> Program:
    """Start the C side with the guest in ``folder``."""
    return Program("the C program", [str(program), str(folder), str(memory_size), str(tick)], None)


class Program:
    """A running program of the comparison; a context manager, because it must not outlive who asks it."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str] | None) -> None:
        self._name = name
        # Unbuffered, so that select sees all there is to read.
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
        )

    def measure(self, operation: str, count: int) -> int:
        """Return the nanoseconds that ``count`` operations took together.

        Raises BenchUnavailable if the program failed, ended, or has not answered after 20 seconds.
        """
        assert self._child.stdin
        with contextlib.suppress(BrokenPipeError):  # then it has ended, and its last line says why
            self._child.stdin.write(f"{operation} {count}\n".encode())
        return self.numbers(1)[0]

    def numbers(self, count: int) -> list[int]:
        """Return the next line's ``count`` numbers; raises like measure."""
        line = self._line()
        words = line.split()
        if len(words) != count or not all(word.isdigit() for word in words):
            said = line.removeprefix("error: ") or "it ended without a word"
            raise BenchUnavailable(f"{self._name} of the benchmark failed: {said}")
        return [int(word) for word in words]

    def _line(self) -> str:
        assert self._child.stdout
        line = b""
        deadline = time.monotonic() + _ANSWER_TIMEOUT
        while not line.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._child.stdout], [], [], left)[0]:
                raise BenchUnavailable(f"{self._name} of the benchmark was silent for {_ANSWER_TIMEOUT:.0f} s")
            part = self._child.stdout.read(4096)
            if not part:
                break
            line += part
        return line.decode(errors="replace").strip()

    def close(self) -> None:
        """End the program."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
