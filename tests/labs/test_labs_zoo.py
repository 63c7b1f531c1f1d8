# SPDX-License-Identifier: Apache-2.0
"""Running host profiles: what a run amounts to, the reports, the command; a script stands in for scripts/lab."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from labs import matrix, zoo
from labs.errors import LabError
from labs.hosts import Finding, Profile, load_profiles
from labs.packages import NotServed
from labs.zoo import Outcome, as_json, as_text, failed, judge

from tests.patience import MACHINE

REPOSITORY = Path(__file__).resolve().parents[2]
PROFILE = Profile("svm.a", "svm", "x", release="7.2.1", totals={"PASS": 2, "SKIP": 1})


def report(*verdicts: str, end: bool = True) -> str:
    """What `vmm check --format json` writes; the clauses are c.0, c.1, ..."""
    records: list[dict[str, object]] = [{"record": "host", "kernel": "7.2"}]
    records += [{"record": "clause", "id": f"c.{index}", "verdict": each} for index, each in enumerate(verdicts)]
    records += [{"record": "totals", "total": len(verdicts)}] if end else []
    return "a warning\n" + "".join(json.dumps(record) + "\n" for record in records)


def judged(*verdicts: str, **changes: Any) -> Outcome:
    return judge(dataclasses.replace(PROFILE, **changes), "7.2.1", report(*verdicts), "", 0)


def test_totals_as_recorded_are_not_reported() -> None:
    outcome = judged("PASS", "SKIP", "PASS")
    assert (outcome.state, outcome.lines, outcome.totals) == ("as recorded", [], {"PASS": 2, "SKIP": 1})


def test_other_totals_are_reported_and_do_not_fail_the_run() -> None:
    outcome = judged("PASS", "SKIP", "KNOWN")
    assert outcome.state == "differs"
    assert outcome.lines == ["PASS 1, recorded 2; KNOWN 1, recorded 0"]
    assert not failed([outcome])
    newer = judge(PROFILE, "7.2.9", report("PASS"), "", 0)
    assert newer.lines == ["PASS 1, recorded 2; SKIP 0, recorded 1; recorded with 7.2.1"]


def test_what_was_never_recorded_is_not_compared() -> None:
    outcome = judged("PASS", "PASS", totals={})
    assert (outcome.state, outcome.lines, failed([outcome])) == ("not recorded", [], False)


@pytest.mark.parametrize("verdict", ["FAIL", "ERROR", "TIMEOUT", "XPASS"])
def test_an_alarm_fails_the_run_unless_a_finding_explains_it(verdict: str) -> None:
    totals = {"PASS": 1, verdict: 1}
    alarm = judged("PASS", verdict, totals=totals)
    assert alarm.state == "alarm" and failed([alarm]) and alarm.alarms[0]["explained"] is None
    finding = Finding("c.1", verdict, "kernel/file.c, function")
    explained = judged("PASS", verdict, totals=totals, findings=(finding,))
    assert explained.state == "as recorded" and not failed([explained])
    assert explained.alarms[0]["explained"] == "kernel/file.c, function"
    other = Finding("c.0", verdict, "x")
    assert judged("PASS", verdict, totals=totals, findings=(other,)).state == "alarm"


def test_a_finding_is_of_one_verdict_and_missed_when_it_is_not_seen() -> None:
    finding = Finding("c.1", "FAIL", "x")
    assert judged("PASS", "ERROR", findings=(finding,)).state == "alarm"
    gone = judged("PASS", "PASS", "SKIP", findings=(finding,))
    assert (gone.state, gone.lines) == ("differs", ["FAIL c.1, a finding, was not seen"])


def test_a_run_that_was_cut_short_has_no_results_whatever_it_said_before() -> None:
    outcome = judge(PROFILE, "7.2.1", report("PASS", "PASS", end=False), "scripts/lab: it panicked.\n", 125)
    assert outcome.state == "no results" and failed([outcome])
    assert outcome.lines == ["cut short after 2 clauses, status 125", "scripts/lab: it panicked."]
    assert judge(PROFILE, "7.2.1", "", "", 2).state == "no results"


def test_what_the_kernel_reported_is_shown() -> None:
    outcome = judge(PROFILE, "7.2.1", report("PASS", "PASS", "SKIP"), "the kernel reported: WARNING\n", 0)
    assert (outcome.state, outcome.lines) == ("differs", ["the kernel's log: the kernel reported: WARNING"])


def test_totals_are_not_compared_when_only_some_clauses_run() -> None:
    finding = Finding("c.9", "FAIL", "x")
    profile = dataclasses.replace(PROFILE, findings=(finding,))
    assert judge(profile, "7.2.1", report("PASS"), "", 0, whole=False).lines == []
    assert judge(profile, "7.2.1", report("FAIL"), "", 1, whole=False).state == "alarm"


def test_both_reports_tell_what_is_no_longer_served() -> None:
    outcomes = [
        judged("PASS", "FAIL"),
        judged("PASS", "SKIP", "PASS"),
        Outcome(PROFILE, "not served", lines=["gone."]),
    ]
    text = as_text(outcomes).splitlines()
    assert text[0] == "svm.a [7.2.1]: 1 PASS, 1 FAIL (0 s) alarm"
    assert "    gone." in text
    assert text[-1] == "3 profiles: 1 as recorded, 1 alarm, 1 not served"
    content = json.loads(as_json(outcomes))
    assert [host["state"] for host in content["hosts"]] == ["alarm", "as recorded", "not served"]
    assert content["states"]["not served"] == 1
    assert content["hosts"][0]["alarms"] == [{"record": "clause", "id": "c.1", "verdict": "FAIL", "explained": None}]
    assert not failed(outcomes[1:])


# the command

LAB = """
import sys
words = sys.argv[1:]
open(LOG, "a").write(" ".join(words) + "\\n")
cpu = next((word for word in words if word.startswith("--cpu=")), "")
if cpu == "--cpu=broken":
    sys.exit("scripts/lab: the machine panicked")
print(FAILING if cpu == "--cpu=failing" else PASSING)
"""

FILE = """
[[profile]]
name = "svm.good"
machine = "svm"
why = "good"

[[profile]]
name = "svm.failing"
machine = "svm"
why = "fails"
cpu = "failing"

[[profile]]
name = "sve.broken"
machine = "sve"
why = "panics"
cpu = "broken"

[[profile]]
name = "amx.gone"
machine = "amx"
why = "gone"
kernel = "sid:1.2"
"""


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of profiles, and a script that runs them."""
    names = {"LOG": str(tmp_path / "log"), "PASSING": report("PASS"), "FAILING": report("FAIL", "PASS")}
    script = tmp_path / "lab"
    script.write_text("".join(f"{name} = {value!r}\n" for name, value in names.items()) + LAB)
    monkeypatch.setattr(zoo, "_LAB", script)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def kernel(cache: object, name: str, arch: str) -> Profile:
        if name == "sid:1.2":
            raise NotServed("Debian sid no longer serves the kernel sid:1.2 for amd64; choose another --kernel.")
        return dataclasses.replace(PROFILE, release=f"{name}.{arch}")

    monkeypatch.setattr(zoo, "fetch_kernel", kernel)
    (tmp_path / "hosts.toml").write_text(FILE)
    return tmp_path / "hosts.toml"


def test_profiles_run_and_what_is_recorded_is_found_again(hosts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--hosts-file", str(hosts), "--hosts"]
    assert matrix.main([*words, "--record"]) == 1
    first = capsys.readouterr()
    assert first.err == ""
    assert first.out.splitlines()[-1] == "4 profiles: 1 not recorded, 1 alarm, 1 no results, 1 not served"
    recorded = {profile.name: (profile.release, profile.totals) for profile in load_profiles(hosts)}
    assert recorded["svm.good"] == ("7.2.amd64", {"PASS": 1})
    assert recorded["svm.failing"] == ("7.2.amd64", {"PASS": 1, "FAIL": 1})
    assert recorded["sve.broken"] == recorded["amx.gone"] == ("", {})
    assert matrix.main([*words, "svm.good", "amx.*", "--json"]) == 0
    states = [host["state"] for host in json.loads(capsys.readouterr().out)["hosts"]]
    assert states == ["as recorded", "not served"]


def test_few_profiles_are_kept_in_a_pool_of_their_own_and_many_boot(hosts: Path) -> None:
    log = hosts.parent / "log"
    matrix.main(["--hosts-file", str(hosts), "c.*", "--hosts", "svm.good"])
    assert log.read_text() == (
        "svm --kernel 7.2 --timeout 600 --pool hosts -- vmm check --format json --time-scale 20 --jobs 1 c.*\n"
    )
    log.unlink()
    hosts.write_text(FILE.replace('why = "good"', 'why = "good"\nclauses = ["d.*"]'))
    matrix.main(["--hosts-file", str(hosts), "--hosts", "svm.good"])
    assert log.read_text().endswith(" --jobs 1 d.*\n")
    log.unlink()
    many = "".join(FILE[: FILE.index("[[", 5)].replace("svm.good", f"svm.good{number}") for number in range(9))
    hosts.write_text(many)
    assert matrix.main(["--hosts-file", str(hosts), "--hosts"]) == 0
    assert log.read_text().count("--timeout 600 --fresh -- ") == 9


def test_the_list_and_a_days_sample_run_nothing(hosts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert matrix.main(["--hosts-file", str(hosts), "--list-hosts"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "svm.good",
        "svm.failing",
        "sve.broken",
        "amx.gone",
    ]
    day = ["--hosts", "--list-hosts", "--sample", "3", "--day"]
    samples = []
    for date in ("2026-01-01", "2026-01-02", "2026-01-01"):
        assert matrix.main(["--hosts-file", str(hosts), *day, date]) == 0
        samples.append(capsys.readouterr().out)
    assert samples[0] == samples[2] != samples[1]
    assert not (hosts.parent / "log").exists()


@pytest.mark.parametrize(
    "words", [["--record"], ["--sample", "3"], ["--hosts", "--sample", "0"], ["c.*", "--hosts", "--record"]]
)
def test_options_that_mean_nothing_together_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        matrix.main(words)
    assert end.value.code == 2


def test_a_wrong_file_or_glob_is_one_sentence_with_status_2(hosts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--hosts-file", "/nowhere", "--hosts"], ["--hosts-file", str(hosts), "--hosts", "vax.*"]):
        assert matrix.main(words) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("scripts/matrix: ") and printed.err.count("\n") == 1 and not printed.out


def test_a_machine_that_cannot_be_fetched_fails_the_run(hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cache: object, name: str, arch: str) -> Profile:
        raise LabError("The network is down.")

    monkeypatch.setattr(zoo, "fetch_kernel", fail)
    assert matrix.main(["--hosts-file", str(hosts), "--hosts", "svm.good"]) == 1


@pytest.mark.machine
def test_a_profile_runs_under_its_conditions(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hosts.toml").write_text(
        '[[profile]]\nname = "svm.test"\nmachine = "svm"\nwhy = "x"\ncpu = "EPYC-Milan,-pku"\ncpus = 2\n'
        'parameters = ["kvm.ignore_msrs=1", "kvm-amd.npt=0"]\nlimits = { nofile = 200 }\n'
        'before = """{ ulimit -n; nproc; cat /sys/module/kvm/parameters/ignore_msrs'
        ' /sys/module/kvm_amd/parameters/npt; grep -c -w pku /proc/cpuinfo; grep -m1 Milan /proc/cpuinfo; } >&2"""\n'
    )
    assert matrix.main(["--hosts-file", str(tmp_path / "hosts.toml"), "xcrs.fresh", "--hosts", "--json"]) == 0
    (host,) = json.loads(capfd.readouterr().out)["hosts"]
    seen = [line.removeprefix("the kernel's log: ") for line in host["lines"]]
    assert seen[1:5] == ["2", "Y", "N", "0"] and "EPYC-Milan" in seen[5]
    assert host["totals"] == {"PASS": 1}


@pytest.mark.machine
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["svm", "--cpu", "EPYC-Milam"], "svm has no model EPYC-Milam; it has EPYC-Milan"),
        (["svm", "--cpu=+nonsense"], "not known to svm: .*nonsense"),
        (["sve", "--cpu", "max,-nonsense"], "not known to sve: .*nonsense"),
        (["amx", "--cpu", "skylake"], "amx has no model skylake; it has corei7_skylake_x"),
        (["amx", "--cpu", "ryzen,-nonsense"], "not known to amx: .*nonsense"),
        (["sve", "--kernel", "sid:5.10"], "Debian sid no longer serves the kernel sid:5.10 for arm64"),
    ],
)
def test_a_processor_or_kernel_that_is_not_there_is_one_sentence(words: list[str], reason: str) -> None:
    command = [sys.executable, str(zoo._LAB), *words, "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MACHINE)
    assert done.returncode == 125
    assert done.stderr.count("\n") == 1
    assert re.search(reason, done.stderr), done.stderr
