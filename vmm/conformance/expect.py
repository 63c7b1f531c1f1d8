# SPDX-License-Identifier: Apache-2.0
"""What a clause says with: each function passes silently or raises a Violation with the evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from vmm.ioctl import KvmError, errno_name

__all__ = [
    "Skipped",
    "Violation",
    "equal",
    "no_difference",
    "refused",
    "refused_indicative",
    "subset",
    "succeeds",
    "true",
]

T = TypeVar("T")


class Violation(Exception):
    """The kernel broke a clause: what was looked at, what was expected, what was observed."""

    def __init__(self, what: str, expected: str, observed: str, finding: str = "mismatch") -> None:
        super().__init__(f"{what}: expected {expected}, observed {observed}")
        self.what, self.expected, self.observed, self.finding = what, expected, observed, finding


class Notes(Protocol):
    """Whatever takes remarks on a result: a Context."""

    def note(self, text: str) -> None:
        """Add a remark."""


class Skipped(Exception):
    """A clause found out by itself that it does not apply; the message has the measured value."""


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:#x}" if abs(value) > 9 else str(value)
    if isinstance(value, bytes):
        return value.hex(" ", 4) if len(value) <= 64 else f"{value[:64].hex(' ', 4)}... ({len(value)} bytes)"
    if hasattr(value, "_fields"):  # an exit: a named tuple says what it is
        return str(value)
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return "[" + ", ".join(_text(item) for item in items) + "]"
    return str(value)


def equal(what: str, observed: Any, expected: Any) -> None:
    """``observed`` has to equal ``expected``."""
    if observed != expected:
        raise Violation(what, _text(expected), _text(observed))


def true(what: str, holds: bool, observed: Any, expected: str) -> None:
    """``holds`` has to be true; ``expected`` says in words what that means."""
    if not holds:
        raise Violation(what, expected, _text(observed))


def subset(what: str, observed: int, allowed: int) -> None:
    """The bits of ``observed`` have to be among those of ``allowed``."""
    if observed & ~allowed:
        raise Violation(what, f"no bits outside {allowed:#x}", f"{observed:#x} (extra {observed & ~allowed:#x})")


def no_difference(what: str, differences: Sequence[object]) -> None:
    """Two states have to be equal; the first differences, as they print, are the evidence."""
    if differences:
        shown = "; ".join(str(difference) for difference in differences[:4])
        raise Violation(what, "no difference", f"{len(differences)} or more: {shown}")


def succeeds(what: str, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """``call(*arguments)`` has to succeed; its result is returned."""
    try:
        return call(*arguments, **options)
    except KvmError as error:
        raise Violation(what, "success", f"{error.call} failed with {error.errno_name}", "rejected") from error


def refused(
    what: str, errnos: int | tuple[int, ...], call: Callable[..., Any], *arguments: Any, **options: Any
) -> None:
    """``call(*arguments)`` has to fail with ``errnos`` (one of them)."""
    allowed = (errnos,) if isinstance(errnos, int) else errnos
    wanted = " or ".join(errno_name(number) for number in allowed)
    try:
        result = call(*arguments, **options)
    except KvmError as error:
        if error.errno in allowed:
            return
        raise Violation(what, wanted, f"{error.call} failed with {error.errno_name}", "errno-drift") from error
    raise Violation(what, wanted, "success" if result is None else f"success ({_text(result)})", "accepted")


def refused_indicative(
    context: Notes,
    what: str,
    errnos: int | tuple[int, ...],
    call: Callable[..., Any],
    *arguments: Any,
    **options: Any,
) -> None:
    """``call(*arguments)`` has to fail; another errno than ``errnos`` is a note and no failure.

    For calls whose documentation calls the errnos indicative, such as KVM_GET_ONE_REG and KVM_SET_ONE_REG.
    """
    try:
        refused(what, errnos, call, *arguments, **options)
    except Violation as violation:
        if violation.finding != "errno-drift":
            raise
        context.note(f"errno drift: {violation}")
