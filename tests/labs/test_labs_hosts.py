# SPDX-License-Identifier: Apache-2.0
"""Host profiles: what a file may say, our own file, and the sample of a day."""

import datetime
import re
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labs import hosts
from labs.errors import LabError
from labs.hosts import Profile, load_profiles, matching, sample
from labs.recording import record, with_recordings
from labs.releases import parse_kernel
from labs.session import MACHINES

OURS = Path(__file__).resolve().parents[2] / "scripts" / "labs" / "hosts.toml"

WHOLE = """
# a comment
[[profile]]
name = "sve.a64fx"
machine = "sve"
why = "SVE1"
kernel = "6.12:full"
cpu = "a64fx,-pmu"
cpus = 1
mode = "nvhe"
memory = 512
emulator = "trixie"
parameters = ["kvm.ignore_msrs=1", "noxsave"]
limits = { nofile = 16, sigpending = 0 }
before = "umount /sys"
timeout = 90.5
slow = true
recorded = { release = "6.12.1", PASS = 3, SKIP = 1 }

[[profile.finding]]
clause = "id.one"
verdict = "FAIL"
reference = "arch/arm64/kvm/sys_regs.c, set_id"

[[profile]]
name = "svm.plain"
machine = "svm"
why = "nothing"
"""


def written(text: str, folder: Path) -> Path:
    path = folder / "hosts.toml"
    path.write_text(text)
    return path


def test_a_profile_says_all_that_scripts_lab_takes(tmp_path: Path) -> None:
    whole, plain = load_profiles(written(WHOLE, tmp_path))
    assert whole.options() == [
        *("sve", "--kernel", "6.12:full", "--timeout", "90.5", "--cpu=a64fx,-pmu", "--cpus=1", "--mode=nvhe"),
        *("--memory=512", "--emulator=trixie", "--append=kvm.ignore_msrs=1 noxsave"),
    ]
    assert (whole.release, whole.totals, whole.slow) == ("6.12.1", {"PASS": 3, "SKIP": 1}, True)
    assert [finding.clause for finding in whole.findings] == ["id.one"]
    assert plain.options() == ["svm", "--kernel", "7.2", "--timeout", "600"]
    assert plain.command(["vmm", "check"]) == ["vmm", "check"]


def test_limits_and_what_is_done_before_hold_for_the_command_itself(tmp_path: Path) -> None:
    conditions: dict[str, Any] = {"limits": {"nofile": 20}, "ignored": ("CHLD",), "blocked": ("ALRM", "USR1")}
    profile = Profile("svm.x", "svm", "x", before="cd /; echo before", **conditions)
    show = (
        "import os, resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0]); print(os.getcwd());"
        "[print(line.strip()) for line in open('/proc/self/status') if line.startswith(('SigBlk', 'SigIgn'))]"
    )
    words = profile.command(["python3", "-c", show])
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=True)
    before, limit, folder, blocked, ignored = done.stdout.splitlines()
    assert (before, limit, folder) == ("before", "20", "/")
    assert int(blocked.split()[1], 16) == 1 << signal.SIGALRM - 1 | 1 << signal.SIGUSR1 - 1
    assert int(ignored.split()[1], 16) & 1 << signal.SIGCHLD - 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("", "x = 1\n"), r"have to consist of \[\[profile\]\] tables and nothing else"),
        (('machine = "svm"', 'machine = "vax"'), "svm.plain: machine is one of svm, amx, sve, not vax"),
        (('name = "svm.plain"', 'name = "amx.plain"'), "a name is 'svm.' and small letters"),
        (('name = "svm.plain"', 'name = "svm.Plain"'), "a name is 'svm.' and small letters"),
        (('why = "nothing"', 'why = " "'), "'why' has to say in one line"),
        (('why = "nothing"', ""), "'why' is missing"),
        (('why = "nothing"', 'why = "nothing"\nwhy-not = 1'), "'why-not' is none of name, machine, why"),
        (('why = "nothing"', "why = 3"), "'why' has a value of the wrong type, 3"),
        (('why = "nothing"', 'why = "x"\ncpus = true'), "'cpus' has a value of the wrong type, True"),
        (('why = "nothing"', 'why = "x"\ncpus = 3'), "cpus is 1 or 2"),
        (('why = "nothing"', 'why = "x"\nmode = "nvhe"'), "mode is for sve"),
        (('why = "nothing"', 'why = "x"\nkernel = "2.4"'), "--kernel 2.4: '2.4' is neither"),
        (('why = "nothing"', 'why = "x"\ncpu = "+a,b"'), r"--cpu \+a,b: 'b' is not understood"),
        (('why = "nothing"', 'why = "x"\nlimits = { files = 1 }'), "setrlimit knows no limit 'files'"),
        (('why = "nothing"', 'why = "x"\nlimits = { nofile = "a" }'), "the limit nofile is a number, not 'a'"),
        (('why = "nothing"', 'why = "x"\nparameters = ["a b"]'), "'a b' is not one kernel argument"),
        (('why = "nothing"', 'why = "x"\nparameters = [1]'), "1 is not one kernel argument"),
        (('why = "nothing"', 'why = "x"\nignored = ["KILL"]'), "'KILL' is not a signal"),
        (('why = "nothing"', 'why = "x"\nblocked = [3]'), "3 is not a signal"),
        (('why = "nothing"', 'why = "x"\nignored = ["ALL"]'), "'ALL' is not a signal"),
        (('why = "nothing"', 'why = "x"\nclauses = ["a b"]'), "'a b' is not a glob of clauses"),
        (('why = "nothing"', 'why = "x"\ntimeout = 0'), "timeout is a number of seconds"),
        (("PASS = 3", "PASSED = 3"), "sve.a64fx: 'PASSED' is not a count of a verdict"),
        (("PASS = 3", "PASS = -3"), "'PASS' is not a count of a verdict"),
        (('verdict = "FAIL"', 'verdict = "KNOWN"'), "a finding's verdict is one of FAIL, ERROR, TIMEOUT, XPASS"),
        (("arch/arm64/kvm/sys_regs.c, set_id", ""), "the finding id.one needs a reference"),
        (
            ('name = "svm.plain"\nmachine = "svm"', 'name = "sve.a64fx"\nmachine = "sve"'),
            "there are two of that name",
        ),
        (("[[profile]]\nname", "[[profile]\nname"), "are not TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(change: tuple[str, str], reason: str, tmp_path: Path) -> None:
    old, new = change
    assert old in WHOLE
    at = WHOLE.rindex(old) if old else 0
    path = written(WHOLE[:at] + new + WHOLE[at + len(old) :], tmp_path)
    with pytest.raises(LabError, match=reason) as refusal:
        load_profiles(path)
    text = str(refusal.value)
    assert str(path) in text and "\n" not in text and text.endswith(".")


def test_a_file_that_cannot_be_read_or_parsed_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(LabError, match="cannot be read"):
            load_profiles(path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(LabError, match="are not TOML"):
        load_profiles(tmp_path / "bytes")
    with pytest.raises(LabError, match="profile 1: it is not a table"):
        load_profiles(written("profile = [1]", tmp_path))


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-5, 5), st.sampled_from(["svm", "x", "", "svm.a", "6.12"])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("ab"), inner, max_size=2)),
    max_leaves=3,
)
KEYS = st.sampled_from([*hosts._FIELDS, "x"])


def toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


@settings(deadline=None)
@given(table=st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_table_is_a_profile_or_refused(
    table: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    valid = {"name": "svm.a", "machine": "svm", "why": "x"}
    text = "[[profile]]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in {**valid, **table}.items())
    path = written(text, tmp_path_factory.getbasetemp())
    try:
        (profile,) = load_profiles(path)
    except LabError as error:
        assert "\n" not in str(error)
    else:
        assert profile.options()[0] == profile.machine and profile.command(["vmm"])[-1] == "vmm"


# our own file


def test_our_profiles_are_of_all_machines_and_many_kernels() -> None:
    profiles = load_profiles(OURS)
    assert len(profiles) >= 60
    for machine in MACHINES:
        assert sum(profile.machine == machine for profile in profiles) >= 20
    suites = {parse_kernel(profile.kernel).suite for profile in profiles}
    assert {"bookworm", "trixie", "sid", "trixie-backports", "bookworm-backports"} <= suites
    assert {"full", "cloud", "rt", "16k"} <= {parse_kernel(profile.kernel).flavour for profile in profiles}


def test_our_profiles_differ_and_none_is_named_for_what_it_is_not() -> None:
    profiles = load_profiles(OURS)
    seen: dict[tuple[str, ...], str] = {}
    for profile in profiles:
        same = (*profile.options(), *profile.command([]))
        assert seen.setdefault(same, profile.name) == profile.name
        version = re.search(r"\.linux-(\d+\.\d+(?:\.\d+)?)$", profile.name)
        if version and profile.kernel != "bullseye":
            assert version[1] in profile.kernel, profile.name


# the sample of a day

PROFILES = [
    Profile(f"{machine}.{number}", machine, "x", slow=number % 4 == 0) for machine in MACHINES for number in range(20)
]
DAYS = st.dates(datetime.date(2024, 1, 1), datetime.date(2040, 1, 1))


@settings(deadline=None)
@given(DAYS, st.integers(1, 40))
def test_a_day_has_one_sample_of_quick_profiles_of_all_machines(day: datetime.date, count: int) -> None:
    chosen = sample(PROFILES, count, day)
    assert chosen == sample(list(PROFILES), count, day)
    assert len(chosen) == count == len({profile.name for profile in chosen})
    assert not any(profile.slow for profile in chosen)
    shares = [sum(profile.machine == machine for profile in chosen) for machine in MACHINES]
    assert max(shares) - min(shares) <= 1
    assert chosen == [profile for profile in PROFILES if profile in chosen]


@given(DAYS)
def test_every_quick_profile_has_its_turn(day: datetime.date) -> None:
    days = (day + datetime.timedelta(days=number) for number in range(8))
    seen = {profile.name for each in days for profile in sample(PROFILES, 6, each)}
    assert seen == {profile.name for profile in PROFILES if not profile.slow}


def test_a_sample_of_more_than_there_are_has_all_of_them() -> None:
    assert sample(PROFILES, 1000, datetime.date(2026, 1, 1)) == PROFILES
    assert sample([], 3, datetime.date(2026, 1, 1)) == []


def test_globs_choose_and_one_that_chooses_nothing_is_an_error() -> None:
    assert [profile.name for profile in matching(PROFILES, ["svm.1", "amx.1?"])] == [
        "svm.1",
        *(f"amx.{number}" for number in range(10, 20)),
    ]
    assert matching(PROFILES, []) == PROFILES
    with pytest.raises(LabError, match=r"No host profile is named svn\.\*; --list-hosts shows them\."):
        matching(PROFILES, ["svm.*", "svn.*"])


# recording


def test_totals_are_recorded_and_nothing_else_is_touched(tmp_path: Path) -> None:
    path = written(WHOLE, tmp_path)
    before = load_profiles(path)
    record(path, {"svm.plain": ("7.2.1", {"PASS": 5}), "sve.a64fx": ("6.12.2", {"PASS": 4, "FAIL": 1})})
    after = load_profiles(path)
    assert [(each.release, each.totals) for each in after] == [
        ("6.12.2", {"PASS": 4, "FAIL": 1}),
        ("7.2.1", {"PASS": 5}),
    ]
    assert [each.options() for each in after] == [each.options() for each in before]
    assert after[0].findings == before[0].findings
    assert "# a comment\n" in path.read_text()
    record(path, {"svm.plain": ("7.2.1", {"PASS": 5})})
    assert load_profiles(path) == after
    assert list(tmp_path.iterdir()) == [path]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["svm.plain", "sve.a64fx", "no.such"]), st.integers(0, 300)))
def test_recording_changes_one_line_per_profile(counts: dict[str, int]) -> None:
    text = with_recordings(WHOLE, {name: ("7", {"PASS": count}) for name, count in counts.items()})
    kept = [line for line in WHOLE.splitlines() if not line.startswith("recorded")]
    assert [line for line in text.splitlines() if not line.startswith("recorded")] == kept
    assert with_recordings(text, {}) == text


def test_a_file_that_cannot_be_recorded_to_is_left_as_it_was(tmp_path: Path) -> None:
    text = WHOLE.replace('name = "svm.plain"', '"name" = "svm.plain"')
    path = written(text, tmp_path)
    with pytest.raises(LabError, match="could not be written"):
        record(path, {"svm.plain": ("7.2.1", {"PASS": 5})})
    assert path.read_text() == text and list(tmp_path.iterdir()) == [path]


def test_every_limit_in_our_profiles_exists() -> None:
    for profile in load_profiles(OURS):
        for name in profile.limits:
            assert hasattr(resource, f"RLIMIT_{name.upper()}")
