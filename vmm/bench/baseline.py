# SPDX-License-Identifier: Apache-2.0
"""The C program to compare with: compiled on the spot, driven over a pipe, ended whatever happens."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Baseline", "BenchUnavailable", "build", "compiler"]

SOURCE = Path(__file__).resolve().parents[1] / "bench_baseline.c"
_COMPILE_TIMEOUT = 60.0
_ANSWER_TIMEOUT = 20.0
_FLAGS = ("-O2", "-std=gnu11")


class BenchUnavailable(Exception):
    """There is nothing to compare with; the message is one sentence that says why and what to do."""


def compiler() -> list[str]:
    """Return the C compiler's command: $CC, else cc, else gcc; BenchUnavailable if there is none."""
    wanted = shlex.split(os.environ.get("CC", ""))
    candidates = [wanted] if wanted else [["cc"], ["gcc"]]
    for command in candidates:
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
            [*command, *_FLAGS, str(SOURCE), "-o", str(program)],
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_COMPILE_TIMEOUT,
        )
    except subprocess.CalledProcessError as error:
        raise BenchUnavailable(
            f"{_reason(command, error.stderr)}: the headers of libc and Linux are needed"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BenchUnavailable(f"{command[0]} took more than {_COMPILE_TIMEOUT:.0f} s for {SOURCE.name}") from error
    except OSError as error:
        raise BenchUnavailable(f"{command[0]} could not be started ({error.strerror}): set $CC to another") from error
    return program


def _reason(command: list[str], messages: str) -> str:
    lines = [line for line in messages.splitlines() if "error" in line] or messages.splitlines()
    return f"{command[0]} does not compile {SOURCE.name}" + (f" ({lines[0].strip()})" if lines else "")


class Baseline:
    """The running C program; a context manager, because it must not outlive who asks it."""

    def __init__(self, program: Path, folder: Path, memory_size: int, tick: int) -> None:
        # Unbuffered, so that select sees all there is to read.
        self._child = subprocess.Popen(
            [str(program), str(folder), str(memory_size), str(tick)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def measure(self, operation: str, count: int) -> int:
        """Return the nanoseconds that ``count`` operations (see bench_baseline.c) took together.

        Raises BenchUnavailable if the program failed, ended, or has not answered after 20 seconds.
        """
        assert self._child.stdin
        try:
            self._child.stdin.write(f"{operation} {count}\n".encode())
        except BrokenPipeError:
            pass  # it has ended; its last line says why
        answer = self._line().decode(errors="replace").strip()
        if not answer.isdigit():
            said = answer.removeprefix("error: ") or "it ended without a word"
            raise BenchUnavailable(f"the C program to compare with failed: {said}")
        return int(answer)

    def _line(self) -> bytes:
        assert self._child.stdout
        line = b""
        deadline = time.monotonic() + _ANSWER_TIMEOUT
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._child.stdout], [], [], left)[0]:
                raise BenchUnavailable(f"the C program to compare with did not answer for {_ANSWER_TIMEOUT:.0f} s")
            part = os.read(self._child.stdout.fileno(), 4096)
            if not part:
                break
            line += part
        return line

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
