# SPDX-License-Identifier: Apache-2.0
"""What ends a migration, each as one sentence for the operator."""

from __future__ import annotations

__all__ = ["LineLost", "MigrationError", "PeerAborted", "ProtocolError", "Unreachable"]


class MigrationError(Exception):
    """A migration that does not take place; the message is one sentence."""


class LineLost(MigrationError):
    """The line is closed, broken, or was silent for too long."""


class Unreachable(MigrationError):
    """No line could be made; ``refused`` if the other host answered that nothing listens there."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class ProtocolError(MigrationError):
    """The other side said what it must not, or what it said arrived damaged."""


class PeerAborted(MigrationError):
    """The other side gave up and said why."""
