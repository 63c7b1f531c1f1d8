# SPDX-License-Identifier: Apache-2.0
"""vmm probe: what it writes and how, what it must not do to its process, and a KVM that lies to it."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.data.probes import ARM64, NAMES, X86, document, offer
from tests.machines.machines import EVERY_KERNEL, NEWEST, Running, probe_text
from tests.patience import LIMIT
from vmm import cli
from vmm.arch import ARCHITECTURE
from vmm.compat.offer import Offer, Verdict
from vmm.compat.report import compare, parse
from vmm.kvm.ioctl import Call, interpose
from vmm.kvm.system import Kvm
from vmm.probe.document import SCHEMA, VERSION
from vmm.probe.host import Host, measure
from vmm.x86.xfeature import XFeature

_COMMON = {"schema", "version", "kernel", "architecture", "backend", "cpu", "capabilities"}
_KEYS = {
    "x86": _COMMON | {
        "xcr0", "xcomp_supported", "xcomp_guest_permitted", "guest_supported", "guest_xcr0", "guest_xss",
        "memory_types", "cpuid", "signature", "permission", "xfeatures", "xfd", "amx", "cpuid_forced", "msrs",
        "msrs_unlisted", "feature_msrs", "tsc",
    },
    "arm64": _COMMON | {
        "mode", "hwcap", "hwcap2", "host_vector_lengths", "guest_vector_lengths", "vcpu_features", "ipa_bits",
        "page_size", "counter_hz", "id_registers", "writable_by", "implementation", "caches", "caches_settable",
        "firmware", "registers", "registers_plain",
    },
}  # fmt: skip
on_x86 = pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"asks an x86 KVM; this is {ARCHITECTURE}")


# What is written


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_probe_has_what_its_version_promises(name: str) -> None:
    made = document(name)
    assert (made["schema"], made["version"]) == (SCHEMA, VERSION)
    assert set(made) >= _KEYS[made["architecture"]]
    assert {"vendor", "model"} <= set(made["cpu"])
    offer(made)


@pytest.mark.parametrize("name", NAMES)
def test_a_probe_does_not_reveal_where_it_was_made(name: str) -> None:
    text = json.dumps(document(name))
    assert '"/' not in text, "a path"
    assert len(platform.node()) < 3 or platform.node() not in text


@pytest.mark.parametrize("name", X86)
def test_what_is_said_in_words_agrees_with_cpuid(name: str) -> None:
    made = document(name)
    values = offer(made).values
    components = {entry["number"]: entry for entry in made["xfeatures"].values()}
    xcr0 = values["cpuid.0000000d.0.eax"] & ~values.get("forced.cpuid.0000000d.0.eax", 0)
    xss = values.get("cpuid.0000000d.1.ecx", 0)
    assert {n for n in components if not components[n]["supervisor"]} >= {n for n in range(64) if xcr0 >> n & 1}
    assert {n for n in components if components[n]["supervisor"]} == {n for n in range(64) if xss >> n & 1}
    for number, entry in components.items():
        if number > 1:
            assert entry["size"] == values[f"cpuid.0000000d.{number}.eax"]
            assert entry["offset"] == values[f"cpuid.0000000d.{number}.ebx"]
            assert entry["xfd"] == bool(made["xfd"] >> number & 1)
    assert (made["amx"] is None) == (not values.get("cpuid.0000001d.0.eax"))


@pytest.mark.parametrize("name", ARM64)
def test_what_is_said_in_words_agrees_with_the_registers(name: str) -> None:
    made = document(name)
    assert len(made["id_registers"]) >= 38
    for register, entry in made["id_registers"].items():
        assert int(entry["value"], 16).bit_count() >= sum(bool(number) for number in entry["fields"].values())
        assert (entry["value"] == "0x0") == (not entry["fields"]), register
    sve = made["id_registers"]["ID_AA64PFR0_EL1"]["fields"]["SVE"]
    assert sve == 1 and made["guest_vector_lengths"] == sorted(made["guest_vector_lengths"])
    names = list(made["registers"].values())
    assert len(names) == len(set(names)), "two registers share a name"
    assert {"VLS", "Z0", "P0", "FFR", "ZCR_EL1", "PC", "PSCI_VERSION", "CCSIDR[1]"} <= set(names)
    assert not {"VLS", "Z0"} & {made["registers"].get(identifier) for identifier in made["registers_plain"]}


def test_the_probe_of_a_cpu_with_amx_describes_amx() -> None:
    made = document("amx-7.2")
    assert made["permission"]["features"] == ["XTILEDATA"] and made["permission"]["xsave2"] == 11008
    assert made["capabilities"]["KVM_CAP_XSAVE2"] == 4096
    assert made["amx"]["palettes"]["1"] == {
        "total_tile_bytes": 8192, "bytes_per_tile": 1024, "bytes_per_row": 64, "max_names": 8, "max_rows": 16,
    }  # fmt: skip
    assert (made["amx"]["tmul_maxk"], made["amx"]["tmul_maxn"]) == (16, 64)
    assert made["xfd"] == 1 << XFeature.XTILEDATA
    assert made["xfeatures"]["XTILEDATA"] == {
        "number": 18, "size": 8192, "offset": 2816, "supervisor": False, "aligned": True, "xfd": True,
    }  # fmt: skip
    assert made["xfeatures"]["CET_U"]["supervisor"] is True


def test_no_recorded_kvm_but_pvm_forces_features_on_guests() -> None:
    forcing = {name for name in X86 if document(name)["cpuid_forced"]}
    assert forcing == {"pvm-6.18"}


# On this host


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `vmm probe` in this process."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vmm", "probe", *arguments])
        status = cli._run()
        return status, *capfd.readouterr()

    return command


@pytest.mark.kvm
def test_the_probe_of_this_host_can_be_read_back(kvm: Kvm, run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = run("--json")
    assert (status, err) == (0, "")
    made = json.loads(out)
    assert set(made) >= _KEYS[ARCHITECTURE]
    here = parse(out.encode(), "here")
    assert compare(here, here).verdict is Verdict.OK


@pytest.mark.kvm
def test_the_text_is_short_enough_to_read(kvm: Kvm, run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = run()
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) < 80 and max(map(len, lines)) < 260
    first, second = out.split("\n\n")
    assert "back end" in first and all(line.startswith("KVM_CAP_") for line in second.splitlines())


@pytest.mark.kvm
def test_the_probe_takes_less_than_a_second(kvm: Kvm) -> None:
    from vmm.arch import module

    host = measure(kvm)
    best = min(_seconds(lambda: module("survey", "probe").survey(kvm, host.facts)) for _ in range(3))
    assert best < 1.0


def _seconds(work: Callable[[], object]) -> float:
    """Processor time, of children too: how long others make us wait is not the probe's fault."""
    before = os.times()[:4]
    work()
    return sum(os.times()[:4]) - sum(before)


# On x86: the process, and kernels that lie


@pytest.fixture
def host(kvm: Kvm) -> Host:
    """This host, measured."""
    return measure(kvm)


@pytest.fixture
def survey(kvm: Kvm, host: Host) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs the survey, with other facts if they are given."""
    from vmm.probe.x86 import survey as probe

    yield lambda **facts: probe.survey(kvm, replace(host.facts, **facts))


Answer = Callable[[Call, Callable[[], int]], int]


def answering(name: str, answer: Answer) -> Answer:
    """The interposer that answers one call."""

    def interposer(call: Call, proceed: Callable[[], int]) -> int:
        return answer(call, proceed) if call.name == name else proceed()

    return interposer


@on_x86
@pytest.mark.kvm
def test_the_probe_leaves_no_mark_on_its_process(survey: Callable[..., dict[str, Any]]) -> None:
    seen: list[str] = []

    def note(call: Call, proceed: Callable[[], int]) -> int:
        seen.append(call.name)
        return proceed()

    with interpose(note):
        survey()
    assert "KVM_GET_MSR_INDEX_LIST" in seen
    assert not {"KVM_CREATE_VM", "KVM_CREATE_VCPU", "ARCH_REQ_XCOMP_GUEST_PERM"} & set(seen)


@on_x86
@pytest.mark.kvm
def test_a_refused_permission_is_recorded_with_its_cause(
    survey: Callable[..., dict[str, Any]],
) -> None:
    refuse = answering("ARCH_REQ_XCOMP_GUEST_PERM", lambda call, proceed: -16)
    with interpose(refuse):
        made = survey(xcomp_supported=1 << XFeature.XTILEDATA)
    assert made["permission"] == {
        "refused": "ARCH_REQ_XCOMP_GUEST_PERM failed with EBUSY: this process has created a vCPU, "
        "which froze its permissions"
    }
    assert made["tsc"]["khz"]


@on_x86
@pytest.mark.kvm
def test_a_granted_permission_is_in_the_probe(survey: Callable[..., dict[str, Any]]) -> None:
    with interpose(answering("ARCH_REQ_XCOMP_GUEST_PERM", lambda call, proceed: 0)):
        made = survey(xcomp_supported=1 << XFeature.XTILEDATA)
    assert made["permission"]["features"] == ["XTILEDATA"] and made["permission"]["cpuid"]
    assert made["permission"]["xsave2"] >= 4096


@on_x86
@pytest.mark.kvm
def test_features_that_a_kvm_forces_on_guests_are_in_the_probe(survey: Callable[..., dict[str, Any]]) -> None:
    def add(call: Call, proceed: Callable[[], int]) -> int:
        result = proceed()
        for number in range(call.argument.nent):
            entry = call.argument.entries[number]
            if (entry.function, entry.index) == (7, 0):
                entry.ecx |= 1 << 8  # GFNI
        return result

    with interpose(answering("KVM_GET_CPUID2", add)):
        forced = survey()["cpuid_forced"]
    leaf = next(text for text in forced if text.startswith("00000007.0: "))
    assert int(leaf.split("ecx=")[1][:8], 16) >> 8 & 1


@on_x86
@pytest.mark.kvm
@pytest.mark.parametrize(
    ("call", "key", "value"),
    [
        ("KVM_GET_MSR_FEATURE_INDEX_LIST", ("feature_msrs",), {}),
        ("KVM_GET_TSC_KHZ", ("tsc", "khz"), None),
        ("KVM_GET_CPUID2", ("cpuid_forced",), None),
        ("KVM_SET_CPUID2", ("msrs_unlisted",), None),
    ],
)
def test_a_call_that_a_kernel_lacks_does_not_end_the_probe(
    survey: Callable[..., dict[str, Any]], call: str, key: tuple[str, ...], value: object
) -> None:
    with interpose(answering(call, lambda asked, proceed: -22)):
        found: Any = survey()
    for part in key:
        found = found[part]
    assert found == value


@on_x86
@pytest.mark.kvm
@pytest.mark.parametrize("how", [lambda: os._exit(3), lambda: time.sleep(10 * LIMIT)], ids=["dies", "hangs"])
def test_a_child_that_gives_no_answer_does_not_end_the_probe(
    survey: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, how: Callable[[], None]
) -> None:
    from vmm.probe.x86 import survey as probe

    monkeypatch.setattr(probe, "_CHILD_SECONDS", 0.5)
    parent = os.getpid()

    def stop(call: Call, proceed: Callable[[], int]) -> int:
        assert os.getpid() != parent, "the VM was made in this process"
        how()
        return -5

    fork, forked = os.fork, list[int]()

    def noted() -> int:
        forked.append(fork())
        return forked[-1]

    monkeypatch.setattr(os, "fork", noted)
    started = time.monotonic()
    with interpose(answering("KVM_CREATE_VM", stop)):
        made = survey(xcomp_supported=1 << XFeature.XTILEDATA)
    assert time.monotonic() - started < LIMIT
    assert made["tsc"]["khz"] is None and made["msrs"] and made["cpuid_forced"] is None
    assert made["permission"] == {"refused": "the process that asked for it gave no answer"}
    (child,) = forked
    with pytest.raises(ChildProcessError):
        os.waitpid(child, os.WNOHANG)  # it is reaped


# In the machines


@pytest.mark.machine
@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.2"] if EVERY_KERNEL else [NEWEST])
@pytest.mark.parametrize("machine", ["svm", "amx", "sve"])
def test_a_machine_offers_every_kind_of_thing_that_was_recorded_of_it(
    machine: str, kernel: str, running: Running
) -> None:
    made = json.loads(probe_text(machine, kernel))
    assert set(made) >= _KEYS[made["architecture"]]
    found, recorded = running.offer(machine, kernel), offer(f"{machine}-{kernel}")
    assert _kinds(found) >= _kinds(recorded)
    assert compare(found, found).verdict is Verdict.OK
    for report in (compare(found, recorded), compare(recorded, found)):
        # The TSC of svm is that of the host below.
        different = sorted({judged.name for judged in report.dimensions if judged.findings} - {"TSC"})
        running.expect(
            not different, f"differs from what was recorded in {different}", machine, found.about["kernel"]
        )


def _kinds(made: Offer) -> set[str]:
    """The first words of an offer's keys, and which leaves of CPUID there are."""
    return {".".join(key.split(".")[: 2 if key.startswith("cpuid.") else 1]) for key in made.values}
