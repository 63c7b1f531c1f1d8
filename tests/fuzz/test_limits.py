# SPDX-License-Identifier: Apache-2.0
"""Large inputs, which no fuzzer comes upon: the most that the readers' limits let through, and more."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from tests.fuzz.lines import hello_with
from tests.fuzz.targets import TARGETS, Target, judge
from tests.patience import TIME_SCALE
from vmm.compat.report import parse
from vmm.probe.document import ProbeError
from vmm.state.errors import StreamError
from vmm.state.explain import explain
from vmm.state.stream.canonical import encode
from vmm.state.stream.container import LIMITS, Writer
from vmm.state.stream.decode import read_state

_BODIES: dict[str, Any] = {
    "registers of no bytes": {"registers": {number: b"" for number in range(32000)}},
    "fields": {"raw": b"", "fields": [[f"{number:04x}", 0] for number in range(20000)]},
    "raw bytes": {"raw": bytes(LIMITS.section - 64)},
}
_VALUES = ["[],", "{},", '{"":0},', '"\xe4",', "1e9,", "[" * 8 + "]" * 8 + ","]


def _target(read: Callable[[bytes], object]) -> Target:
    def reads(data: bytes) -> bool:
        try:
            read(data)
        except (StreamError, ProbeError):
            return False
        return True

    return Target(lambda: [], reads, lambda source, data, leaf: data)


def _stream(body: bytes, size: int) -> bytes:
    names = [f"PART{number}" for number in range(size // len(body))]
    file = io.BytesIO()
    writer = Writer(file, "x86", encode({"about": {}, "machine": [], "memory": [], "vcpus": [[0, names]]}))
    writer.section("VMCONFIG", 0, encode({"machine": {}}))
    for name in names:
        writer.section(name, 0, body)
    writer.end()
    return file.getvalue()


@pytest.mark.parametrize("kind", _BODIES)
def test_a_stream_of_the_largest_parts_costs_no_more_than_any_other(kind: str) -> None:
    body = encode(_BODIES[kind])
    target = _target(lambda data: read_state(io.BytesIO(data), explain))
    fits = min(LIMITS.parts // len(body), LIMITS.items // 60100 or 1)
    assert judge(target, _stream(body, fits * len(body)), TIME_SCALE)
    assert not judge(target, _stream(body, LIMITS.parts + len(body)), TIME_SCALE)


@pytest.mark.parametrize("value", _VALUES)
def test_a_probe_of_the_largest_size_costs_no_more_than_any_other(value: str) -> None:
    item = value.encode()
    data = b"[" + item * ((1 << 20) // len(item) - 1) + item.rstrip(b",") + b"]"
    assert not judge(_target(lambda data: parse(data, "a stranger's")), data, TIME_SCALE)


@pytest.mark.parametrize("value", _VALUES)
def test_a_hello_with_the_largest_facts_costs_no_more_than_any_other(value: str) -> None:
    count = (512 << 10) // len(value) - 4
    assert judge(TARGETS["wire"], hello_with(f'{{"x":[{value * count}0]}}'), TIME_SCALE)
