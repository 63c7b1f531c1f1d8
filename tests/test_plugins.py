# SPDX-License-Identifier: Apache-2.0
"""How pytest runs these tests: by workers, apart if they touch their process, guarded if not, ended by a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.patience import LIMIT, eventually
from tests.processes import gone

_ROOT = Path(__file__).resolve().parents[1]
_PLUGINS = ("apart", "ending", "guard", "summary", "workers")
# What is installed beside pytest takes four fifths of its start.
_ENVIRONMENT = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "VMM_TEST_SUMMARY": "", "VMM_TEST_WORKERS": ""}
_APART = """
import os, signal, sys, threading, time
import pytest
from vmm._kvm import lib
from vmm.kvm.handle import Handle

MAIN = os.getpid()
seen = []

@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    made = os.getpid()
    yield made
    assert made == os.getpid()

@pytest.mark.apart
def test_apart_1(shared):
    assert os.getpid() != MAIN == shared
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    seen.append(1)

def test_here(shared):
    assert os.getpid() == MAIN == shared and not seen
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL

@pytest.mark.apart
def test_failing(tmp_path):
    print("said before")
    assert (tmp_path / "x").exists()

@pytest.mark.apart
def test_skipping():
    pytest.skip("the reason")

@pytest.mark.apart
def test_crashing():
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)

@pytest.mark.apart
def test_leaving():
    os._exit(0)

@pytest.fixture
def broken():
    yield
    raise ValueError("in the teardown")

@pytest.mark.apart
def test_teardown_fails(broken):
    pass

@pytest.mark.parametrize("number", [lib.KVM_CREATE_VCPU])
def test_vcpu_here(number):
    Handle(-1).ioctl_value(number)

@pytest.mark.kvm
def test_vcpu_apart():
    with pytest.raises(OSError):
        Handle(-1).ioctl_value(lib.KVM_CREATE_VCPU)

def test_leaves_a_handler():
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)

def test_leaves_a_variable():
    os.environ["LEFT_BEHIND"] = "x"

def test_leaves_a_limit():
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if soft else soft, 0))

def test_leaves_a_mask():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

def test_leaves_an_orphans_signal():
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGUSR1, 0, 0, 0)

def test_tidies_up(monkeypatch, tmp_path):
    monkeypatch.setenv("X", "y")
    monkeypatch.chdir(tmp_path)
    thread = threading.Thread(target=time.sleep, args=(0.2,))
    thread.start()
"""


def _pytest(folder: Path, program: str, *options: str) -> list[str]:
    """The command that runs a file of tests under these plugins."""
    (folder / "test_it.py").write_text(program)
    plugins = [word for name in _PLUGINS for word in ("-p", f"tests.plugins.{name}")]
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={folder}", *plugins, *options,
            str(folder / "test_it.py")]  # fmt: skip


def _run(folder: Path, program: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _pytest(folder, program, *options), env={**_ENVIRONMENT, **variables},
        cwd=_ROOT, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each test above: "passed", or the text of its failure."""
    return _outcomes(tmp_path_factory.mktemp("plugins"), _APART)[0]


def _outcomes(folder: Path, program: str, **variables: str) -> tuple[dict[str, str], str]:
    """What became of each test of a program that fails, and what pytest printed."""
    done = _run(folder, program, f"--junitxml={folder / 'report.xml'}", **variables)
    assert done.returncode == 1, done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        texts = [f"{part.tag}: {part.get('message')} {part.text}" for part in case]
        found[str(case.get("name")).partition("[")[0]] = "\n".join(texts) or "passed"
    return found, done.stdout


@pytest.mark.parametrize("name", ["test_apart_1", "test_here", "test_vcpu_apart", "test_tidies_up"])
def test_what_a_test_does_apart_nobody_else_sees(outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name] == "passed"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("test_failing", ("failure: ", "exists()", "said before")),
        ("test_skipping", ("skipped: ", "the reason")),
        ("test_crashing", ("failure: ", "was ended by SIGSEGV", "in test_crashing", "last words")),
        ("test_leaving", ("failure: ", "ended with status 0 without a report")),
        ("test_teardown_fails", ("error: ", "in the teardown")),
    ],
)
def test_how_a_test_ended_apart_is_reported(outcomes: dict[str, str], name: str, words: tuple[str, ...]) -> None:
    assert all(word in outcomes[name] for word in words), outcomes[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("test_vcpu_here", "would freeze its permissions for all other tests"),
        ("test_leaves_a_handler", f"signal handlers: {signal.SIGUSR2.value}"),
        ("test_leaves_a_variable", "environment: LEFT_BEHIND"),
        ("test_leaves_a_limit", "resource limits: RLIMIT_CORE"),
        ("test_leaves_a_mask", "signal mask: "),
        ("test_leaves_an_orphans_signal", "PR_GET_PDEATHSIG: "),
    ],
)
def test_a_test_that_changes_pytests_process_fails(outcomes: dict[str, str], name: str, words: str) -> None:
    assert words in outcomes[name]


_WORKERS = """
import os, warnings
import pytest
from tests.patience import eventually
from vmm._kvm import lib
from vmm.kvm.handle import Handle

MAIN = os.getpid()

@pytest.fixture(scope="module")
def made():
    return []

def test_first(made):
    made.append(1)
    warnings.warn("a warning of a worker")

def test_failing(made):
    print("said before")
    assert made == [2]

def test_dying():
    os._exit(3)

def test_after_it(tmp_path):
    assert os.getpid() != MAIN

def test_vcpu_here():
    Handle(-1).ioctl_value(lib.KVM_CREATE_VCPU)

@pytest.mark.apart
def test_apart():
    with pytest.raises(OSError):
        Handle(-1).ioctl_value(lib.KVM_CREATE_VCPU)

@pytest.mark.machine
@pytest.mark.parametrize(("me", "other"), [("a", "b"), ("b", "a")])
def test_meeting(pytestconfig, me, other):
    (pytestconfig.rootpath / me).touch()
    assert eventually((pytestconfig.rootpath / other).exists)
"""


def test_workers_run_tests_at_once_and_pytest_reports_them(tmp_path: Path) -> None:
    found, output = _outcomes(tmp_path, _WORKERS, VMM_TEST_WORKERS="2")
    passed = {name for name, outcome in found.items() if outcome == "passed"}
    assert passed == {"test_first", "test_after_it", "test_apart", "test_meeting"}
    assert "[1] == [2]" in found["test_failing"] and "said before" in found["test_failing"]
    assert "pytest's worker ended with status 3" in found["test_dying"]
    assert "would freeze its permissions" in found["test_vcpu_here"]
    assert "3 failed, 5 passed" in output and "a warning of a worker" in output


_SLEEPERS = """
import os, subprocess, sys, time
import pytest

MARKER
def test_sleeps():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
    print(os.getpid(), child.pid, file=sys.stderr, flush=True)
    try:
        while True:
            time.sleep(0.1)  # Python 3.15 sleeps on if the signal comes between two calls
    except Exception:
        pass

def test_is_not_reached():
    print("reached", file=sys.stderr)
"""


# SIGTERM and SIGHUP have one handler.
@pytest.mark.parametrize(
    ("where", "number"),
    [("here", signal.SIGTERM), ("here", signal.SIGINT), ("apart", signal.SIGHUP), ("apart", signal.SIGINT),
     ("worker", signal.SIGTERM), ("worker", signal.SIGINT)],
)  # fmt: skip
def test_a_signal_ends_pytest_and_what_the_test_started(tmp_path: Path, where: str, number: signal.Signals) -> None:
    program = _SLEEPERS.replace("MARKER", "@pytest.mark.apart" if where == "apart" else "")
    # Not ignored because this run's own parent ignores it, as nohup does with SIGHUP.
    process = subprocess.Popen(
        _pytest(tmp_path, program, "-s"), cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
        env={**_ENVIRONMENT, "VMM_TEST_WORKERS": "2" * (where == "worker")},
    )  # fmt: skip
    assert process.stderr is not None
    pids = [int(word) for word in process.stderr.readline().split()]
    process.send_signal(number)
    _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == (2 if number == signal.SIGINT else 128 + number)
    assert "reached" not in stderr
    assert all(eventually(lambda pid=pid: gone(pid)) for pid in pids)  # type: ignore[misc]


def test_a_run_in_which_nothing_ran_has_not_passed(tmp_path: Path) -> None:
    program = (
        "import pytest\n"
        "from tests.plugins.summary import NEEDS_KVM\n"
        "@pytest.mark.parametrize('n', range(3))\n"
        "def test_it(n, record_property):\n"
        "    record_property(NEEDS_KVM, 'no KVM, do this')\n"
        "    pytest.skip('no KVM, do this')\n"
    )
    lines = tmp_path / "lines"
    done = _run(tmp_path, program, VMM_TEST_SUMMARY=str(lines))
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    expected = [
        "3 tests were skipped for want of a KVM: no KVM, do this",
        "nothing ran: all 3 tests were skipped, so nothing has passed",
    ]
    assert lines.read_text().splitlines() == expected
    assert all(line in done.stdout for line in expected)
    done = _run(tmp_path, program + "def test_another():\n    pass\n")
    assert done.returncode == 0 and expected[0] in done.stdout and "nothing ran" not in done.stdout


def test_a_remark_is_in_the_summary_once(tmp_path: Path) -> None:
    program = (
        "import pytest\n"
        "from tests.plugins.summary import remark\n"
        "@pytest.mark.parametrize('n', range(3))\n"
        "def test_it(n, record_property):\n"
        "    remark(record_property, 'the kernel has moved on')\n"
    )
    done = _run(tmp_path, program)
    assert done.returncode == 0 and done.stdout.count("the kernel has moved on") == 1
