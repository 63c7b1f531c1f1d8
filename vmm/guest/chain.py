# SPDX-License-Identifier: Apache-2.0
"""The chain payload's hash: a digest of 128 bits that runs through a vCPU's registers and some memory, step by step.

What is here is the same for every architecture; ``vmm.x86.chain`` and ``vmm.arm64.chain`` add the registers. They
compute in Python what guest_payloads/*/chain.S computes in a guest, so that a guest which computes rubbish, and
the same rubbish every time, does not pass for right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from vmm.guest.payload import Mailbox

__all__ = [
    "LINE",
    "WINDOW_LINES",
    "WORD",
    "Chain",
    "HasMailbox",
    "HasVcpus",
    "digest",
    "digests",
    "progress",
    "seeds",
]

WORD = (1 << 64) - 1
# Words in a line, which is the unit that is mixed; lines of memory that take part (8 pages of 4096 bytes).
LINE, WINDOW_LINES = 8, 512
_MULTIPLIER = 0x9E3779B97F4A7C15
# From one tick's line of memory to the next one's: a page and a line.
_WINDOW_STEP = 65


class HasMailbox(Protocol):
    """A guest, as far as its digest is concerned."""

    mailbox: Mailbox


class HasVcpus(Protocol):
    """A guest with all of its vCPUs."""

    @property
    def processors(self) -> Sequence[HasMailbox]:
        """Its vCPUs with their mailboxes."""


class Chain(ABC):
    """The chain before its next tick: ``ticks`` so far, and the words that are to become registers.

    A subclass says what the registers make of these words. ``second`` is the payload's PARAM(2), ``lines`` the
    length of its image.
    """

    def __init__(self, seed: int, second: int, lines: int) -> None:
        self.ticks = 0
        self.words = (seed & WORD, second & WORD)
        self._lanes: list[int] = []
        self._image = [0] * (LINE * lines)
        self._window = [0] * (LINE * WINDOW_LINES)
        self._spread()
        self._mix(self._window)
        self._fold()
        self._mix_step()

    @abstractmethod
    def _registers(self, words: list[int]) -> list[int]:
        """Return the image that the guest stores after a tick, of the words that it loads before."""

    def tick(self) -> None:
        """Continue beyond the next tick."""
        self.ticks += 1
        self._image = self._registers(self._image)
        self._mix_step()

    @property
    def running(self) -> bytes:
        """The digest that the guest's mailbox holds at the next tick: 16 bytes, little-endian."""
        return b"".join(word.to_bytes(8, "little") for word in self.words)

    def final(self) -> bytes:
        """Return the digest of a chain that ends here, over all of the memory."""
        kept = self.words, self._window
        self._window = list(self._window)
        self._spread()
        self._mix(self._window)
        self._fold()
        value = self.running
        self.words, self._window = kept
        return value

    def _mix_step(self) -> None:
        self._spread()
        self._mix(self._image)
        line = LINE * (self.ticks * _WINDOW_STEP % WINDOW_LINES)
        part = self._window[line : line + LINE]
        self._mix(part)
        self._window[line : line + LINE] = part
        self._fold()

    def _spread(self) -> None:
        """Have the digest become the lanes."""
        self._lanes = [self.words[lane % 2] + (lane + 1) * _MULTIPLIER & WORD for lane in range(LINE)]

    def _mix(self, words: list[int]) -> None:
        """Put whole lines of words into the lanes; each word becomes what its lane then is.

        That is a bijection of the word and one of the lane, so one word that differs changes its lane for certain.
        """
        for lane, value in enumerate(self._lanes):
            column = words[lane::LINE]
            for row, word in enumerate(column):
                value = (value ^ word) * _MULTIPLIER & WORD
                column[row] = value = value << 29 & WORD | value >> 35
            words[lane::LINE] = column
            self._lanes[lane] = value

    def _fold(self) -> None:
        """Have the lanes become part of the digest."""
        first, second = self.words
        for lane in self._lanes:
            first = (first ^ lane) * _MULTIPLIER & WORD
            first = first << 31 & WORD | first >> 33
            first, second = second + first & WORD, first
        self.words = (first, second)


def digest(guest: HasMailbox) -> bytes:
    """Return the digest in the guest's mailbox, 16 bytes: at a tick the running one, after DONE the final one."""
    return b"".join(guest.mailbox.read("values", index).to_bytes(8, "little") for index in range(2))


def digests(guest: HasVcpus) -> list[bytes]:
    """Return the digest of each vCPU."""
    return [digest(processor) for processor in guest.processors]


def seeds(seed: int, vcpus: int) -> list[int]:
    """Return the seed of each vCPU's chain: no two of them have the same registers."""
    return [seed + index & WORD for index in range(vcpus)]


def progress(guest: HasMailbox) -> int:
    """Return the number of the tick that the guest's chain is at or was at last; 0 before the first."""
    return guest.mailbox.read("values", 2)
