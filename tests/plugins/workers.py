# SPDX-License-Identifier: Apache-2.0
"""Tests on every CPU: ``VMM_TEST_WORKERS=N`` has N processes run them, forked when all have been collected.

A worker takes the tests of one file after another, so that what they share is made once; those in emulated machines
it takes one by one, for they share little and last long. What it reports is printed by this process alone. With
pytest-xdist every worker would collect the tests once more, and fork them beside threads of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import time
import traceback
import warnings
from collections import deque
from itertools import groupby
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import pytest

from tests.plugins import owner
from tests.processes import descendants, end

_PR_SET_PDEATHSIG = 1
_GRACE = 20.0  # seconds in which workers that were asked to end may tidy up
_COUNT = "VMM_TEST_WORKERS"

Unit = list[int]  # tests by their places among all


def units(items: list[pytest.Item]) -> list[Unit]:
    """Divide tests into what one worker takes at a time."""
    alone = [item.get_closest_marker("machine") is not None for item in items]
    keys = [(str(item.path), number if alone[number] else -1) for number, item in enumerate(items)]
    return [list(group) for _, group in groupby(range(len(items)), key=keys.__getitem__)]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Have workers run the tests, if several are asked for."""
    count, config = int(os.environ.get(_COUNT) or 1), session.config
    if count < 2 or session.testsfailed or config.option.collectonly or config.getoption("usepdb"):
        return None
    config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # one for all, which this process sweeps
    left = deque(units(session.items))
    team = [_Worker(session) for _ in range(min(count, len(left)))]
    try:
        _hand_out(session, left, team)
    finally:
        _dismiss(team)
    return True


def _hand_out(session: pytest.Session, left: deque[Unit], team: list[_Worker]) -> None:
    for worker in team:
        worker.begin(left.popleft())
    while busy := {worker.line: worker for worker in team if worker.unit}:
        for line in wait(list(busy)):
            worker = busy[line]  # type: ignore[index]
            if not worker.tell():
                rest = worker.replace()
                if rest:
                    left.appendleft(rest)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            if not worker.unit and left:
                worker.begin(left.popleft())


class _Worker:
    """One process, and what it has left to do."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self.unit: Unit = []
        self._start()

    def _start(self) -> None:
        parent = os.getpid()
        self.line, theirs = Pipe()
        gc.freeze()  # a collection in the worker would copy every page
        self.pid = os.fork()
        if self.pid == 0:
            self.line.close()
            _work(self._session, theirs, parent)
        gc.unfreeze()
        theirs.close()

    def begin(self, unit: Unit) -> None:
        """Give it tests to run."""
        self.unit = unit
        self.line.send(unit)

    def tell(self) -> bool:
        """Pass one of its messages on to pytest; return whether there was one and it lives."""
        try:
            name, arguments = self.line.recv()
        except (EOFError, ConnectionResetError):
            return False
        hook, config = self._session.config.hook, self._session.config
        if name == "pytest_runtest_logreport":
            report = hook.pytest_report_from_serializable(config=config, data=arguments["report"])
            arguments = {"report": report}
        if name == "pytest_warning_recorded":
            hook.pytest_warning_recorded.call_historic(kwargs=arguments)
        else:
            getattr(hook, name)(**arguments)
        if name == "pytest_runtest_logfinish":
            self.unit = self.unit[1:]
        return True

    def replace(self) -> Unit:
        """Report the test in which it died as failed, start another in its place, and return the tests after that."""
        item = self._session.items[self.unit[0]]
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        call = pytest.CallInfo.from_call(lambda: pytest.fail(f"pytest's worker {how}", pytrace=False), "call")
        report = item.ihook.pytest_runtest_makereport(item=item, call=call)
        item.ihook.pytest_runtest_logreport(report=report)
        rest, self.unit = self.unit[1:], []
        self.line.close()
        self._start()
        return rest


def _dismiss(team: list[_Worker]) -> None:
    """End the workers: those that have nothing to do leave, others are asked to tidy up first."""
    for worker in team:
        with contextlib.suppress(OSError):
            worker.line.send(None)
        if worker.unit:
            end([worker.pid], signal.SIGTERM)
    limit = time.monotonic() + _GRACE
    for worker in team:
        while not os.waitpid(worker.pid, os.WNOHANG)[0]:
            if time.monotonic() > limit:
                end([*descendants(worker.pid), worker.pid])
            time.sleep(0.01)
        worker.line.close()


class _Told:
    """Sends what pytest is told of tests in a worker to the process that prints it."""

    def __init__(self, config: pytest.Config, line: Connection) -> None:
        self._config, self._line = config, line

    def pytest_runtest_logstart(self, nodeid: str, location: object) -> None:
        self._line.send(("pytest_runtest_logstart", {"nodeid": nodeid, "location": location}))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._line.send(("pytest_runtest_logreport", {"report": data}))

    def pytest_runtest_logfinish(self, nodeid: str, location: object) -> None:
        self._line.send(("pytest_runtest_logfinish", {"nodeid": nodeid, "location": location}))

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: object
    ) -> None:
        if when != "runtest":  # pytest tells a new plugin of all that came before
            return
        warning_message.source = None  # what it is about, which may be anything
        told = {"warning_message": warning_message, "when": when, "nodeid": nodeid, "location": location}
        self._line.send(("pytest_warning_recorded", told))


def _work(session: pytest.Session, line: Connection, parent: int) -> NoReturn:
    """In the worker: run the tests that come over the line until there are none."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        owner.take()
        plugins: Any = session.config.pluginmanager
        plugins.unregister(name="terminalreporter")
        plugins.register(_Told(session.config, line))
        _capture_apart(plugins.getplugin("capturemanager"))
        while unit := line.recv():
            items = [session.items[number] for number in unit]
            for item, following in zip(items, [*items[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        status = 0
    except (EOFError, KeyboardInterrupt):
        session._setupstate.teardown_exact(None)
        end(descendants(os.getpid()))  # which nobody finds once this process is gone
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _capture_apart(capture: Any) -> None:
    """Capture output in files of this process, not in those that all workers inherited."""
    if capture is not None:
        capture.stop_global_capturing()
        capture.start_global_capturing()
        capture.suspend_global_capture()
