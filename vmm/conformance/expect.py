# SPDX-License-Identifier: Apache-2.0
"""Assertions for clauses: each one passes silently or raises a Violation with the evidence.

Only they make a FAIL. A call that fails outside of them is set-up that failed, which is the harness's ERROR; a guest
that ran into its deadline is a TIMEOUT, whoever looks at it; running out of descriptors is an ERROR even inside,
since it says nothing about KVM. Each assertion counts what it looked at: a clause without any checked nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from vmm.conformance.texts import pair, text
from vmm.guest.base import GuestError
from vmm.kvm.exits import Deadline, InternalError
from vmm.kvm.ioctl import KvmError, Refused, errno_name

__all__ = [
    "Finding",
    "Looks",
    "Skipped",
    "TimedOut",
    "Violation",
    "equal",
    "judged",
    "looks",
    "no_difference",
    "refused",
    "refused_indicative",
    "subset",
    "succeeds",
    "true",
]

T = TypeVar("T")

# Errnos with which any call says that the process has used up its descriptors: no clause is about that.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE})


class Looks:
    """How many things the assertions of this process have looked at. A process runs one clause."""

    def __init__(self) -> None:
        self.count = 0


looks = Looks()


class Finding(NamedTuple):
    """One thing that was looked at and is wrong."""

    what: str
    expected: str
    observed: str


class Violation(Exception):
    """The kernel broke a clause: what was looked at, what was expected, what was observed.

    ``fields`` are all findings, of a clause that looks at many fields before it ends.
    """

    def __init__(
        self, what: str, expected: str, observed: str, finding: str = "mismatch", *, fields: Sequence[Finding] = ()
    ) -> None:
        super().__init__(f"{what}: expected {expected}, observed {observed}")
        self.what, self.expected, self.observed, self.finding = what, expected, observed, finding
        self.fields = list(fields)


class TimedOut(Exception):
    """What was looked at is a guest that did not leave in time."""


class Drifts(Protocol):
    """Whatever takes refusals with another errno: a Context."""

    def drift(self, text: str) -> None:
        """Add one."""


class Skipped(Exception):
    """A clause found out by itself that it does not apply; the message has the measured value."""


def _look(observed: Any = None) -> None:
    """Count one look; a deadline is not an observation that a clause could be right or wrong about."""
    looks.count += 1
    if isinstance(observed, Deadline):
        raise TimedOut("the guest did not leave in time")


def equal(what: str, observed: Any, expected: Any) -> None:
    """``observed`` has to equal ``expected``."""
    if observed != expected:
        _look(observed)
        raise Violation(what, *pair(expected, observed))
    looks.count += 1


def true(what: str, holds: bool, observed: Any, expected: str) -> None:
    """``holds`` has to be true; ``expected`` says in words what that means."""
    if not holds:
        _look(observed)
        raise Violation(what, expected, text(observed))
    looks.count += 1


def subset(what: str, observed: int, allowed: int) -> None:
    """The bits of ``observed`` have to be among those of ``allowed``."""
    _look()
    if observed & ~allowed:
        raise Violation(what, f"no bits outside {allowed:#x}", f"{observed:#x} (extra {observed & ~allowed:#x})")


def no_difference(what: str, differences: Sequence[object], compared: int = 1) -> None:
    """Two states have to be equal; the first differences, as they print, are the evidence.

    ``compared`` is how many values were held against each other: with 0 nothing was looked at.
    """
    looks.count += compared
    if differences:
        shown = "; ".join(str(difference) for difference in differences[:4])
        raise Violation(what, "no difference", f"{len(differences)} or more: {shown}")


def _broken(what: str, expected: str, error: BaseException | None) -> Violation | None:
    """Return what an exception says about KVM where a clause judges; None if nothing, or nothing of the clause's."""
    if isinstance(error, KvmError) and error.errno not in _EXHAUSTED:
        return Violation(what, expected, f"{error.call} failed with {error.errno_name}", "rejected")
    if isinstance(error, Refused):
        return Violation(what, expected, str(error), "rejected")
    if isinstance(error, GuestError) and not isinstance(error.exit, Deadline | InternalError):
        return Violation(what, expected, str(error))
    return None


class judged:
    """Everything inside the block has to succeed: an ioctl that fails there, or a guest that faults, is a Violation.

    Outside of such a block it is set-up that failed. KVM_EXIT_INTERNAL_ERROR stays one here too: a KVM that cannot
    emulate one of the guest's instructions did not come as far as what the clause is about.
    """

    __slots__ = ("_expected", "_what")

    def __init__(self, what: str, expected: str = "success") -> None:
        self._what, self._expected = what, expected

    def __enter__(self) -> None:
        _look()

    def __exit__(self, kind: object, error: BaseException | None, place: object) -> None:
        if error is not None and (violation := _broken(self._what, self._expected, error)):
            raise violation from error


def succeeds(what: str, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """``call(*arguments)`` has to succeed, see :class:`judged`; its result is returned."""
    _look()
    try:
        return call(*arguments, **options)
    except Exception as error:
        if violation := _broken(what, "success", error):
            raise violation from error
        raise


def refused(
    what: str, errnos: int | tuple[int, ...], call: Callable[..., Any], *arguments: Any, **options: Any
) -> None:
    """``call(*arguments)`` has to fail with ``errnos`` (one of them)."""
    _look()
    allowed = (errnos,) if isinstance(errnos, int) else errnos
    wanted = " or ".join(errno_name(number) for number in allowed)
    try:
        result = call(*arguments, **options)
    except KvmError as error:
        if error.errno in allowed:
            return
        if error.errno in _EXHAUSTED:
            raise
        raise Violation(what, wanted, f"{error.call} failed with {error.errno_name}", "errno-drift") from error
    raise Violation(what, wanted, "success" if result is None else f"success ({text(result)})", "accepted")


def refused_indicative(
    context: Drifts,
    what: str,
    errnos: int | tuple[int, ...],
    call: Callable[..., Any],
    *arguments: Any,
    **options: Any,
) -> None:
    """``call(*arguments)`` has to fail; another errno than ``errnos`` is a drift and no failure.

    For calls whose documentation calls the errnos indicative, such as KVM_GET_ONE_REG and KVM_SET_ONE_REG.
    """
    try:
        refused(what, errnos, call, *arguments, **options)
    except Violation as violation:
        if violation.finding != "errno-drift":
            raise
        context.drift(str(violation))
