# SPDX-License-Identifier: Apache-2.0
"""vmm compat: a stranger's file, the command's answers and exit statuses, and fleets."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.probes import NAMES, document, offer, path
from tests.patience import LIMIT
from vmm import cli
from vmm.compat.fleet import compare_all
from vmm.compat.offer import Verdict
from vmm.compat.report import compare, load, parse
from vmm.kvm.ioctl import Call, interpose
from vmm.probe.document import ProbeError

Command = Callable[..., tuple[int, str, str]]
_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs `vmm compat` in this process, where any call to a kernel fails the test."""

    def touched(call: Call, proceed: Callable[[], int]) -> int:
        pytest.fail(f"{call.name} was called")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vmm", "compat", *arguments])
        with interpose(touched):
            status = cli._run()
        return status, *capfd.readouterr()

    return run


# Files that are no probes


def refused(data: bytes) -> str:
    """The sentence about bytes that are no probe."""
    with pytest.raises(ProbeError) as caught:
        parse(data, "a")
    return str(caught.value)


def without(name: str, *keys: str) -> bytes:
    """A recorded probe without what is at a path of keys."""
    made: Any = document(name)
    inner = made
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return json.dumps(made).encode()


def changed(name: str, *keys: str, value: Any) -> bytes:
    """A recorded probe with another value at a path of keys."""
    made: Any = document(name)
    inner = made
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return json.dumps(made).encode()


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100000, "nested too deep"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (b'{"a": 1, "a": 2}', "a key is in it twice"),
        (b"[]", "the document is not a JSON object"),
        (b"{}", "not written by `vmm probe --json`"),
        (b'{"record": "host", "kernel": "6.12"}', "not written by `vmm probe --json`"),
        (b'{"schema": "vmm-probe", "version": 2}', "probe version 2 is not supported (expected 1)"),
        (b'{"schema": "vmm-probe", "version": true}', "'version' of the document is not an unsigned number"),
        (changed("svm-7.2", "architecture", value="riscv"), "its architecture is riscv, none of arm64, x86"),
        (without("svm-7.2", "cpu", "vendor"), "'cpu' of the document has no 'vendor'"),
        (without("svm-7.2", "cpuid"), "the document has no 'cpuid'"),
        (changed("svm-7.2", "cpu", "model", value="\x1b[31mred"), "is not a printable string"),
        (changed("svm-7.2", "cpu", "model", value="\ud800"), "is not a printable string"),
        (changed("svm-7.2", "kernel", value="6" * 300), "is not a printable string of at most 256"),
        (changed("svm-7.2", "cpuid", value=["00000001.0: eax=zz"]), "is not a CPUID leaf"),
        (changed("svm-7.2", "cpuid", value=["00000001.0"] * 5000), "is not a list of at most 4096"),
        (changed("svm-7.2", "cpuid", value={}), "is not a list"),
        (changed("svm-7.2", "msrs", value=[-1]), "is not an unsigned number of 64 bits"),
        (changed("svm-7.2", "msrs", value=[1 << 64]), "is not an unsigned number of 64 bits"),
        (changed("svm-7.2", "msrs", value=[1.5]), "is not an unsigned number of 64 bits"),
        (changed("svm-7.2", "tsc", "scaling", value=1), "'scaling' of 'tsc' of the document is neither true nor"),
        (changed("svm-7.2", "feature_msrs", value={"10a": {"value": "0x0"}}), "'10a' in 'feature_msrs'"),
        (changed("svm-7.2", "feature_msrs", value={"0x0000010a": 7}), "'0x0000010a' of 'feature_msrs'"),
        (changed("svm-7.2", "permission", value=[]), "'permission' of the document is not a JSON object"),
        (
            changed("sve-7.2", "registers", value={"0x1": "X0"}),
            "'0x1' in 'registers' of the document is not a register",
        ),
        (changed("sve-7.2", "registers_plain", value=["X0"]), "'X0' in the document is not a register"),
        (changed("sve-7.2", "id_registers", "ID AA", value={}), "'ID AA' in 'id_registers'"),
        (without("sve-7.2", "id_registers", "ID_AA64PFR0_EL1", "writable"), "has no 'writable'"),
        (changed("sve-7.2", "guest_vector_lengths", value=[0]), "are not 1 to 512 quadwords"),
        (changed("sve-7.2", "guest_vector_lengths", value=[513]), "are not 1 to 512 quadwords"),
        (changed("sve-7.2", "guest_vector_lengths", value=[]), "are not 1 to 512 quadwords"),
        (changed("sve-7.2", "capabilities", value={"KVM_CAP_ARM_SVE": None}), "is not an unsigned number"),
        (changed("sve-7.2", "capabilities", value={str(n): 1 for n in range(5000)}), "more than 4096 entries"),
    ],
)
def test_a_file_that_is_not_a_probe_is_refused(data: bytes, part: str) -> None:
    sentence = refused(data)
    assert part in sentence and "\n" not in sentence and sentence.isprintable()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A recorded probe with another value somewhere, as JSON; then perhaps bytes changed, removed or added."""
    made: Any = copy.deepcopy(document(draw(st.sampled_from(NAMES))))
    for _ in range(draw(st.integers(0, 3))):
        inner: Any = made
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(inner[key], dict | list) or draw(st.integers(0, 3)) == 0:
                inner[key] = draw(_JSON)
                break
            inner = inner[key]
    data = bytearray(json.dumps(made).encode())
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data) - 1))
        data[place : place + draw(st.integers(0, 40))] = draw(st.binary(max_size=4))
    return bytes(data)


@settings(max_examples=150)
@given(damaged())
def test_a_damaged_probe_is_refused_in_a_sentence_or_compared(data: bytes) -> None:
    try:
        made = parse(data, "a")
    except ProbeError as error:
        assert str(error).isprintable() and len(str(error)) < 1000
        return
    other = offer("svm-7.2" if made.about["architecture"] == "x86" else "sve-7.2")
    json.dumps([compare(made, other).to_json(), compare(other, made).to_json()])


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda folder: folder / "nonesuch.json", "cannot be read: No such file or directory"),
        (lambda folder: folder, "cannot be read: Is a directory"),
        (lambda folder: _write(folder, b"{"), "is not a usable probe file: not valid JSON"),
        (lambda folder: _write(folder, b" " * (2 << 20)), "is larger than 1 MiB"),
    ],
)
def test_a_wrong_file_is_one_sentence_with_status_2(
    command: Command, tmp_path: Path, make: Callable[[Path], Path], part: str
) -> None:
    status, out, err = command(path("svm-7.2"), str(make(tmp_path)))
    assert (status, out) == (2, "")
    assert err.startswith("vmm: ") and part in err and err.count("\n") == 1


def _write(folder: Path, data: bytes) -> Path:
    file = folder / "file.json"
    file.write_bytes(data)
    return file


# The command


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("svm-6.1", "svm-7.2"), 0),
        (("svm-7.2", "svm-7.2-less"), 0),
        (("svm-7.2", "svm-7.2-less", "--strict"), 1),
        (("svm-7.2-less", "svm-7.2", "--strict"), 0),
        (("svm-7.2-less", "svm-7.2", "--strict", "--both"), 1),
        (("sve-6.1", "sve-6.12"), 1),
        (("sve-6.1", "sve-7.2"), 0),
        (("sve-6.1", "sve-7.2", "--both"), 1),
        (("svm-7.2", "sve-7.2"), 1),
        (("amx-6.1", "amx-6.12", "amx-7.2"), 0),
        (("amx-6.1", "amx-6.12", "svm-7.2"), 1),
    ],
)
def test_the_exit_status_follows_from_the_verdict(command: Command, arguments: tuple[str, ...], status: int) -> None:
    words = [word if word.startswith("--") else path(word) for word in arguments]
    for form in ((), ("--json",)):
        found, out, err = command(*words, *form)
        assert (found, err) == (status, "") and out


def test_an_unknown_dimension_does_not_let_the_guest_run(command: Command, tmp_path: Path) -> None:
    made = document("svm-7.2")
    made["tsc"] = None
    file = _write(tmp_path, json.dumps(made).encode())
    status, out, _ = command(path("svm-7.2"), str(file))
    assert status == 1
    assert f"{path('svm-7.2')} -> {file}: unknown" in out and "TSC: unknown" in out


@pytest.mark.parametrize("arguments", [(), ("svm-7.2",)])
def test_too_few_files_are_wrong_usage(command: Command, arguments: tuple[str, ...]) -> None:
    status, out, err = command(*map(path, arguments))
    assert (status, out) == (2, "") and err.startswith("Usage: ")


def test_the_text_says_what_blocks_and_what_to_do(command: Command) -> None:
    _, out, _ = command(path("sve-7.2"), path("sve-6.1"))
    assert "ok: vCPU features, vector lengths," in out
    assert "CLIDR_EL1: 0x2000021, there 0x2000023" in out
    assert "write ID_AA64MMFR1_EL1.HCX=0 before the first run" in out
    assert max(map(len, out.splitlines())) < 240


def test_the_json_is_what_was_found(command: Command) -> None:
    _, out, _ = command(path("amx-7.2"), path("amx-6.12"), "--json", "--both")
    told = json.loads(out)
    assert (told["schema"], told["version"]) == ("vmm-compat", 1)
    there, back = told["reports"]
    report = compare(load(path("amx-7.2")), load(path("amx-6.12")))
    assert there == json.loads(json.dumps(report.to_json()))
    assert (there["verdict"], back["verdict"]) == ("ok after masking", "ok")
    assert {"name": "SHSTK", "action": "clear CPUID 7.0 ECX[7]", "key": "cpuid.00000007.0.ecx", "bits": "0x80",
            "value": "0x0"} in there["masks"]  # fmt: skip


# Fleets

_FLEET = ("sve-6.12", "sve-7.2", "sve-7.2-vq12", "sve-7.2-vq124", "sve-7.2-nvhe")


def test_the_matrix_agrees_with_the_pairs(command: Command) -> None:
    _, out, _ = command(*map(path, _FLEET), "--json")
    fleet = json.loads(out)["fleet"]
    offers = [offer(name) for name in _FLEET]
    assert fleet["matrix"] == [[compare(a, b).verdict.value for b in offers] for a in offers]
    assert [host["label"] for host in fleet["hosts"]] == [path(name) for name in _FLEET]
    _, text, _ = command(*map(path, _FLEET))
    rows = [line.split()[1:] for line in text.splitlines() if line.strip().startswith(("[", "from"))][
        len(_FLEET) + 1 :
    ]
    short = {"ok": "ok", "ok after masking": "mask", "no": "no"}
    for number, row in enumerate(fleet["matrix"]):
        assert rows[number] == ["-" if n == number else short[verdict] for n, verdict in enumerate(row)]


def test_a_guest_with_its_baseline_can_run_on_every_host_it_is_for() -> None:
    offers = [offer(name) for name in _FLEET]
    fleet = compare_all(offers)
    for number, baseline in enumerate(fleet.baselines):
        possible = [n for n, report in enumerate(fleet.reports[number]) if report.verdict is not Verdict.NO]
        assert [*baseline.places, number] == [*(n for n in possible if n != number), number]
        guest = offers[number].masked(baseline.masks)
        assert all(compare(guest, offers[n]).verdict is Verdict.OK for n in possible)
    assert fleet.baselines[4].places == () and "KVM_REG_ARM64_SVE_VLS={1,2}" in {
        mask.name for mask in fleet.baselines[0].masks
    }


def _hosts(count: int, folder: Path) -> list[str]:
    """Files of so many hosts of six kinds, which differ in their kernel's build."""
    made = []
    kinds = ("amx-7.2", "amx-6.12", "svm-7.2", "svm-6.1", "svm-7.2-less", "pvm-6.18")
    for number in range(count):
        probe = document(kinds[number % len(kinds)])
        probe["kernel"] = f"{probe['kernel']}-{number}"
        file = folder / f"host-{number}.json"
        file.write_text(json.dumps(probe))
        made.append(str(file))
    return made


def test_hosts_that_offer_the_same_are_one_kind(command: Command, tmp_path: Path) -> None:
    files = _hosts(30, tmp_path)
    _, out, _ = command(*files, "--json")
    told = json.loads(out)
    assert [len(kind["labels"]) for kind in told["fleet"]["hosts"]] == [5] * 6
    assert sorted(label for kind in told["fleet"]["hosts"] for label in kind["labels"]) == sorted(files)
    offers = [load(file) for file in files[:6]]
    assert told["fleet"]["matrix"] == [[compare(a, b).verdict.value for b in offers] for a in offers]
    assert len(told["reports"]) == 36  # hosts of one kind exchange guests too
    _, text, _ = command(*files)
    assert text.count("and 4 like it: ") == 6


def test_the_report_of_a_kind_names_some_of_its_hosts_and_counts_the_rest(command: Command, tmp_path: Path) -> None:
    text = " ".join(command(*_hosts(60, tmp_path))[1].split())
    assert text.count("and 9 like it: ") == 6 and text.count(", and 3 more") == 6


def test_a_host_that_costs_a_feature_is_named() -> None:
    fleet = compare_all([offer("svm-7.2"), offer("svm-7.2-less"), offer("svm-6.1")])
    less, old = fleet.costs()[1], fleet.costs()[2]
    assert less["AVX2"] == less["PKU"] == [0, 2]
    assert "AVX2" not in old and old["KVM_CAP_GUEST_MEMFD"] == [0, 1]
    assert fleet.costs()[0] == {}


def test_hosts_that_cannot_exchange_guests_cost_each_other_nothing() -> None:
    fleet = compare_all([offer("amx-7.2"), offer("svm-7.2"), offer("sve-7.2")])
    assert fleet.verdict is Verdict.NO
    assert fleet.costs() == [{}, {}, {}]
    assert [baseline.places for baseline in fleet.baselines] == [(), (), ()]


def test_the_comparison_needs_neither_the_extension_module_nor_a_kvm() -> None:
    program = (
        "import sys, vmm.cli.compat, vmm.compat.x86.dimensions, vmm.compat.arm64.dimensions\n"
        "print([name for name in ('vmm._kvm', '_cffi_backend', 'vmm.kvm.ioctl') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT, cwd=_ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")
