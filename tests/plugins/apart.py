# SPDX-License-Identifier: Apache-2.0
"""Tests that touch their process run in one of their own: a child, forked for the test and gone after it.

The first vCPU of a process freezes its guest permissions for all that comes after it. So whatever is marked ``kvm``
or uses the fixture of that name runs apart, and so does what is marked ``apart``. Fixtures of a wider scope than the
function are made here, once, and inherited. With --pdb nothing is forked, and tests may see each other's traces.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import pickle
import select
import signal
import sys
import tempfile
import traceback
from typing import IO, Any, NoReturn

import pytest
from _pytest.runner import runtestprotocol

from tests.patience import HANGS
from tests.plugins.owner import is_own
from tests.processes import descendants, end
from vmm._kvm import lib
from vmm.kvm.handle import Handle

_PR_SET_PDEATHSIG = 1
_MARKERS = ("kvm", "apart")
_GRACE = 10.0  # seconds after the limit in which a child says where it was


def pytest_configure(config: pytest.Config) -> None:
    """Refuse vCPUs in this process."""
    if config.getoption("usepdb"):
        return
    original = Handle.ioctl_value

    def guarded(self: Handle, request: int, argument: int = 0) -> int:
        if request == lib.KVM_CREATE_VCPU and is_own():
            raise AssertionError(
                "a vCPU in pytest's own process would freeze its permissions for all other tests: "
                "mark the test `kvm` or `apart`"
            )
        return original(self, request, argument)

    Handle.ioctl_value = guarded  # type: ignore[method-assign]
    config.add_cleanup(lambda: setattr(Handle, "ioctl_value", original))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run an item in a child, if it has to be."""
    apart = any(map(item.get_closest_marker, _MARKERS)) or "kvm" in getattr(item, "fixturenames", ())
    if not apart or item.config.getoption("usepdb"):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    _make_shared_fixtures(item)
    reports = _run(item)
    shared = item.session._setupstate
    leaving = pytest.CallInfo.from_call(lambda: shared.teardown_exact(nextitem), "teardown", (pytest.exit.Exception,))
    if leaving.excinfo is not None:
        reports.append(item.ihook.pytest_runtest_makereport(item=item, call=leaving))
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _make_shared_fixtures(item: pytest.Item) -> None:
    """Set up in this process what other tests use as well; the child meets a failure again, and reports it."""
    if not isinstance(item, pytest.Function):
        return
    if not item._request:
        item._initrequest()
    wider = [name for name, found in item._fixtureinfo.name2fixturedefs.items() if found[-1].scope != "function"]
    shared = item.session._setupstate
    item.setup = lambda: None  # type: ignore[method-assign]  # its own fixtures are the child's
    with contextlib.suppress(Exception, pytest.skip.Exception, pytest.fail.Exception):
        shared.setup(item)
        for name in wider:
            item._request.getfixturevalue(name)
    del item.setup
    shared.teardown_exact(item.parent)  # type: ignore[arg-type]


def _run(item: pytest.Item) -> list[pytest.TestReport]:
    """Fork, run the item there, and return its reports, or one that says how the child ended."""
    hook, config = item.config.hook, item.config
    with tempfile.TemporaryFile() as results, tempfile.TemporaryFile("w+") as words:
        status = _wait(_fork(item, results, words))
        results.seek(0)
        written = results.read()
        if status == 0 and written:
            return [hook.pytest_report_from_serializable(config=config, data=data) for data in pickle.loads(written)]
        words.seek(0)
        why = f"the process of this test {_ending(status)}\n{words.read()}"
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None and capture.is_globally_capturing():
        why += "\n".join(capture.read_global_capture())
    call = pytest.CallInfo.from_call(lambda: pytest.fail(why.rstrip(), pytrace=False), "call")
    return [item.ihook.pytest_runtest_makereport(item=item, call=call)]


def _ending(status: int | None) -> str:
    if status is None:
        return f"did not end in {HANGS:g} s and was killed"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status} without a report"


def _fork(item: pytest.Item, results: IO[bytes], words: IO[str]) -> int:
    """Return the id of a child that runs the item."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    gc.freeze()  # a collection in the child would copy every page
    pid = os.fork()
    if pid == 0:
        _child(parent, item, results, words)
    gc.unfreeze()
    return pid


def _child(parent: int, item: pytest.Item, results: IO[bytes], words: IO[str]) -> NoReturn:
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        faulthandler.enable(words)
        faulthandler.dump_traceback_later(HANGS, exit=True, file=words)
        reports = runtestprotocol(item, log=False, nextitem=item.parent)  # type: ignore[arg-type]
        hook = item.config.hook
        data: list[Any] = [
            hook.pytest_report_to_serializable(config=item.config, report=report) for report in reports
        ]
        pickle.dump(data, results)
        results.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        status = 0
    except BaseException:
        traceback.print_exc(file=words)
        words.flush()
    os._exit(status)


def _wait(pid: int) -> int | None:
    """Wait for a child and return its status, None if it had to be killed; it never outlives this call."""
    descriptor = os.pidfd_open(pid)
    try:
        in_time = bool(select.select([descriptor], [], [], HANGS + _GRACE)[0])
    except BaseException:
        in_time = False
        raise
    finally:
        if not in_time:
            end([*descendants(pid), pid])
        os.close(descriptor)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if in_time else None
