# SPDX-License-Identifier: Apache-2.0
"""The kernel's log as /dev/kmsg gives it, and what in it is about KVM."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, Self

__all__ = ["KernelLog", "about_kvm"]

_DEVICE = "/dev/kmsg"
_ALARM = re.compile(r"WARNING: |Internal error: |kernel BUG at |Unable to handle kernel ")
_END, _LONGEST = "---[ end trace", 80
# Files and functions of KVM, and of the vector registers that it shares with the rest of the kernel.
_KVM = re.compile(r"arch/arm64/kvm/|virt/kvm/|arch/arm64/kernel/.*fpsimd|\b(?:kvm|vgic|fpsimd|sve)_")


class KernelLog:
    """The log from its first record on or, with ``new``, from now on. Raises OSError where it may not be read."""

    def __init__(self, *, new: bool = False) -> None:
        self._fd = os.open(_DEVICE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if new:
                os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self.close()
            raise

    def lines(self) -> Iterator[str]:
        """Give the text of each record that has not been read yet; records that were overwritten are left out."""
        with suppress(BlockingIOError):
            while True:
                try:
                    record = os.read(self._fd, 8192)
                except BrokenPipeError:
                    continue
                if not record:
                    return
                yield record.decode("utf-8", "replace").partition(";")[2].split("\n")[0]

    def close(self) -> None:
        """Close the log."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def about_kvm(lines: Sequence[str], processes: Sequence[int] = ()) -> list[str]:
    """Return the first lines of the warnings and faults in ``lines`` that are KVM's or one of the ``processes``'.

    What other drivers complain of at the same time is not told.
    """
    ours = re.compile("|".join([_KVM.pattern, *(rf"PID: {number}\b" for number in processes)]))
    starts = [at for at, line in enumerate(lines) if _ALARM.search(line)]
    found = []
    for start, following in pairwise([*starts, len(lines)]):
        report = list(lines[start : min(following, start + _LONGEST)])
        ends = [at for at, line in enumerate(report) if _END in line]
        if any(ours.search(line) for line in report[: ends[0] if ends else None]):
            found.append(lines[start])
    return found
