# SPDX-License-Identifier: Apache-2.0
"""The XSAVE area as a value: layouts of real CPUs, components, names of bytes, comparison."""

from __future__ import annotations

import platform
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm._kvm import ffi
from vmm.x86 import xsave
from vmm.x86.cpuid import Cpuid, Entry
from vmm.x86.xsave import Component, Layout, XsaveArea, get_xsave

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason=f"x86 code; this is {platform.machine()}")

ALIGNED, SUPERVISOR, XFD = 2, 1, 4


def leaf_d(xcr0: int, xss: int, *components: tuple[int, int, int, int]) -> Cpuid:
    """CPUID leaf 0xD with (number, size, offset, ecx) components."""
    rows = [Entry(0xD, 0, 1, eax=xcr0), Entry(0xD, 1, 1, eax=0x1F, ecx=xss)]
    return Cpuid(rows + [Entry(0xD, n, 1, eax=size, ebx=offset, ecx=ecx) for n, size, offset, ecx in components])


# Sapphire Rapids with CET; the leaf as the CPU gives it.
INTEL = leaf_d(
    0x602E7, 0x1800,
    (2, 256, 576, 0), (5, 64, 1088, 0), (6, 512, 1152, 0), (7, 1024, 1664, 0), (9, 8, 2688, 0),
    (11, 16, 0, SUPERVISOR), (12, 24, 0, SUPERVISOR), (17, 64, 2752, ALIGNED), (18, 8192, 2816, ALIGNED | XFD),
)  # fmt: skip
# Zen 4: AVX-512 without a hole for MPX.
AMD = leaf_d(
    0x2E7, 0x1800,
    (2, 256, 576, 0), (5, 64, 832, 0), (6, 512, 896, 0), (7, 1024, 1408, 0), (9, 8, 2432, 0),
    (11, 16, 0, SUPERVISOR), (12, 24, 0, SUPERVISOR),
)  # fmt: skip
LAYOUT = Layout.from_cpuid(INTEL)
SIZE = 11008
USER = 0x602E7


def area(size: int = SIZE) -> XsaveArea:
    """An area of the Intel layout in its initial configuration."""
    return XsaveArea.initial(size, LAYOUT)


# Layouts


@pytest.mark.parametrize(
    ("number", "offset", "size", "aligned"),
    [(2, 576, 256, False), (5, 1088, 64, False), (6, 1152, 512, False), (7, 1664, 1024, False), (9, 2688, 8, False),
     (17, 2752, 64, True), (18, 2816, 8192, True)],
)  # fmt: skip
def test_an_intel_component_lies_where_cpuid_says(number: int, offset: int, size: int, aligned: bool) -> None:
    component = LAYOUT[number]
    assert component.ranges == ((offset, size),)
    assert (component.size, component.end, component.aligned) == (size, offset + size, aligned)
    assert not component.supervisor


@pytest.mark.parametrize(("number", "offset"), [(2, 576), (5, 832), (6, 896), (7, 1408), (9, 2432)])
def test_an_amd_component_lies_where_cpuid_says(number: int, offset: int) -> None:
    assert Layout.from_cpuid(AMD)[number].ranges[0][0] == offset


def test_the_legacy_components_lie_at_their_fixed_offsets() -> None:
    assert LAYOUT[0].ranges == ((0, 24), (32, 128)) and LAYOUT[0].size == 152
    assert LAYOUT[1].ranges == ((24, 8), (160, 256)) and LAYOUT[1].size == 264
    assert Layout().features == 3


@pytest.mark.parametrize(
    ("table", "features", "size"),
    [(INTEL, None, 11008), (INTEL, 0x2E7, 2696), (INTEL, 0xE7, 2688), (INTEL, 0x207, 2696), (INTEL, 7, 832),
     (INTEL, 3, 576), (INTEL, 0, 576), (INTEL, 1 << 17 | 3, 2816), (INTEL, 0x1803, 576),
     (AMD, None, 2440), (AMD, 0xE7, 2432), (AMD, 7, 832)],
)  # fmt: skip
def test_a_standard_area_ends_with_its_last_component(table: Cpuid, features: int | None, size: int) -> None:
    assert Layout.from_cpuid(table).size(features) == size


@pytest.mark.parametrize(
    ("table", "features", "size"),
    [
        # 576 + 256 + 64 + 512 + 1024 + 8 = 2440, then TILECFG at the next multiple of 64.
        (INTEL, USER, 2496 + 64 + 8192),
        # The two shadow-stack components fit into the hole before TILECFG.
        (INTEL, None, 2496 + 64 + 8192),
        # 2432 is a multiple of 64 already.
        (INTEL, USER & ~(1 << 9), 2432 + 64 + 8192),
        # 576 + 8 = 584, aligned to 640.
        (INTEL, 1 << 18 | 1 << 9 | 3, 640 + 8192),
        (INTEL, 1 << 18 | 3, 576 + 8192),
        (INTEL, 0x2E7, 2440),
        (INTEL, 1 << 9 | 3, 584),
        (INTEL, 0x1803, 576 + 16 + 24),
        (INTEL, 3, 576),
        (AMD, None, 2440 + 16 + 24),
        (AMD, 0xE7, 2432),
    ],
)
def test_a_compacted_area_packs_its_components(table: Cpuid, features: int | None, size: int) -> None:
    assert Layout.from_cpuid(table).compacted_size(features) == size


def test_the_layout_has_only_the_components_of_cpuid() -> None:
    assert LAYOUT.features == USER | 0x1800
    assert 3 not in LAYOUT and 18 in LAYOUT
    assert Layout.from_cpuid(INTEL, 0x7).features == 7
    assert Layout.from_cpuid(INTEL.without(0xD, 9)).features == LAYOUT.features & ~(1 << 9)
    with pytest.raises(KeyError):
        LAYOUT[3]


def test_supervisor_components_have_no_place_in_the_standard_format() -> None:
    assert LAYOUT[11].supervisor and LAYOUT[12].supervisor
    assert LAYOUT.at(0) is LAYOUT[0]


# Names


@pytest.mark.parametrize(
    ("offset", "name"),
    [
        (0, "FP FCW byte 0"),
        (3, "FP FSW byte 1"),
        (4, "FP FTW byte 0"),
        (7, "FP FOP byte 1"),
        (8, "FP FIP byte 0"),
        (23, "FP FDP byte 7"),
        (24, "SSE MXCSR byte 0"),
        (31, "SSE MXCSR_MASK byte 3"),
        (32, "FP ST0 byte 0"),
        (41, "FP ST0 byte 9"),
        (32 + 7 * 16 + 3, "FP ST7 byte 3"),
        (160, "SSE XMM0 byte 0"),
        (160 + 3 * 16 + 7, "SSE XMM3 byte 7"),
        (415, "SSE XMM15 byte 15"),
        (416, "gap at 416"),
        (464, "gap at 464"),
        (511, "gap at 511"),
        (512, "XSTATE_BV byte 0"),
        (519, "XSTATE_BV byte 7"),
        (520, "XCOMP_BV byte 0"),
        (527, "XCOMP_BV byte 7"),
        (528, "reserved header byte 16"),
        (575, "reserved header byte 63"),
        (576, "YMM YMM0 byte 16"),
        (576 + 15 * 16 + 15, "YMM YMM15 byte 31"),
        (832, "gap at 832"),
        (1087, "gap at 1087"),
        (1088, "OPMASK k0 byte 0"),
        (1088 + 3 * 8 + 1, "OPMASK k3 byte 1"),
        (1152 + 8, "ZMM_HI256 ZMM0 byte 40"),
        (1152 + 15 * 32 + 31, "ZMM_HI256 ZMM15 byte 63"),
        (1664, "HI16_ZMM ZMM16 byte 0"),
        (1664 + 15 * 64 + 63, "HI16_ZMM ZMM31 byte 63"),
        (2688, "PKRU byte 0"),
        (2696, "gap at 2696"),
        (2752 + 16, "XTILECFG byte 16"),
        (2816, "XTILEDATA TMM0 row 0 byte 0"),
        (2816 + 2 * 1024 + 5 * 64 + 63, "XTILEDATA TMM2 row 5 byte 63"),
        (11007, "XTILEDATA TMM7 row 15 byte 63"),
        (11008, "gap at 11008"),
    ],
)
def test_a_byte_is_named_by_what_it_belongs_to(offset: int, name: str) -> None:
    assert area().where(offset) == name


# Fields and components


def test_an_initial_area_is_in_its_initial_configuration() -> None:
    fresh = area()
    assert (fresh.fcw, fresh.mxcsr, fresh.xstate_bv, fresh.xcomp_bv) == (0x37F, 0x1F80, 0, 0)
    assert bytes(fresh.data[:2]) == b"\x7f\x03" and bytes(fresh.data[24:28]) == b"\x80\x1f\0\0"
    assert sum(1 for byte in fresh.data if byte) == 4


def test_a_header_field_lies_at_its_offset() -> None:
    changed = area()
    changed.xstate_bv = 0x0807060504030201
    changed.xcomp_bv = 1 << 63
    changed.mxcsr = 0xA1B2C3D4
    assert bytes(changed.data[512:520]) == bytes(range(1, 9))
    assert bytes(changed.data[520:528]) == bytes(7) + b"\x80"
    assert bytes(changed.data[24:28]) == bytes.fromhex("d4c3b2a1")
    changed.data[28:32] = b"\xff\xff\x02\x00"
    assert changed.mxcsr_mask == 0x2FFFF
    changed.data[528] = changed.data[575] = 9
    assert changed.reserved == b"\x09" + bytes(46) + b"\x09"
    changed.data[464:512] = bytes(range(48))
    assert changed.software == bytes(range(48))


@pytest.mark.parametrize("number", [0, 1, 2, 5, 6, 7, 9, 17, 18])
def test_a_component_is_read_back_and_does_not_spill(number: int) -> None:
    changed = area()
    component = LAYOUT[number]
    data = bytes(1 + n % 255 for n in range(component.size))
    changed.set_component(number, data)
    assert changed.component(number) == data
    assert changed.xstate_bv == 1 << number
    inside = {n for start, length in component.ranges for n in range(start, start + length)}
    differ = {n for n, (a, b) in enumerate(zip(changed.data, area().data, strict=True)) if a != b}
    assert differ - inside == {512 + number // 8}


def test_a_component_is_marked_unless_told_otherwise() -> None:
    changed = area()
    changed.xstate_bv = 1
    changed.set_component(9, b"\x55" * 8, mark=False)
    assert changed.xstate_bv == 1
    changed.set_component(9, b"\x66" * 8)
    assert changed.xstate_bv == 0x201


def test_a_copy_does_not_share_its_bytes() -> None:
    first = area()
    second = first.copy()
    second.data[600] = 1
    assert first.data[600] == 0 and second.layout is first.layout


@pytest.mark.parametrize("size", [0, 512, 575])
def test_an_area_without_room_for_its_header_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"at least 576 bytes, not {size}"):
        XsaveArea(bytes(size), LAYOUT)


@pytest.mark.parametrize(("number", "length"), [(9, 7), (9, 9), (18, 0), (0, 160), (2, 257)])
def test_a_component_of_another_size_is_refused(number: int, length: int) -> None:
    changed = area()
    with pytest.raises(ValueError, match=f"has {LAYOUT[number].size} bytes"):
        changed.set_component(number, bytes(length))
    assert changed.data == area().data


def test_a_component_beyond_the_area_is_refused() -> None:
    short = area(4096)
    with pytest.raises(ValueError, match="XTILEDATA ends at 11008, beyond this area"):
        short.set_component(18, bytes(8192))
    assert len(short.data) == 4096 and short.xstate_bv == 0


def test_a_component_beyond_the_area_is_not_read_in_part() -> None:
    with pytest.raises(ValueError):
        area(4096).component(18)


def test_a_supervisor_component_cannot_overwrite_the_x87_state() -> None:
    changed = area()
    with pytest.raises(ValueError):
        changed.set_component(11, b"\xff" * 16)


# Comparison


@given(offset=st.integers(0, SIZE - 1), flip=st.integers(1, 255))
@settings(max_examples=60)
def test_a_flipped_byte_is_exactly_one_difference(offset: int, flip: int) -> None:
    first = area()
    second = first.copy()
    second.data[offset] ^= flip
    found = first.compare(second)
    if 464 <= offset < 512:  # left to software: KVM writes the host's features there
        assert found == []
        return
    assert [(d.offset, d.first, d.second) for d in found] == [(offset, first.data[offset], second.data[offset])]
    component = LAYOUT.at(offset)
    if component is not None:
        assert found[0].where.startswith(component.name + " ")
    assert str(found[0]) == f"{found[0].where} (byte {offset}): {first.data[offset]:02x} {second.data[offset]:02x}"


def test_a_missing_byte_is_a_difference() -> None:
    long, short = area(), area(11000)
    assert long.compare_bytes(bytes(long.data)) == []
    for found in (long.compare(short), short.compare(long)):
        assert [d.offset for d in found] == list(range(11000, 11008))
        assert {d.where.split(" byte ")[0] for d in found} == {"XTILEDATA TMM7 row 15"}
    assert {(d.first, d.second) for d in short.compare(long)} == {(-1, 0)}


def test_no_more_differences_are_listed_than_asked_for() -> None:
    other = area()
    other.set_component(18, b"\xff" * 8192)
    assert len(area().compare(other, 5)) == 5
    assert len(area().compare(other)) == 16
    assert area().compare(other)[0].where == "XSTATE_BV byte 2"


# The canonical form


def test_the_init_optimisation_is_not_a_difference_once_normalised() -> None:
    tracked, untracked = area(), area()
    tracked.xstate_bv = 0x602E7
    tracked.data[28:32] = b"\xff\xff\0\0"
    assert tracked.compare(untracked)
    assert tracked.normalised().compare(untracked.normalised()) == []
    assert tracked.normalised().xstate_bv == 0


@pytest.mark.parametrize("number", [0, 1, 2, 5, 6, 7, 9, 17, 18])
def test_a_component_in_use_is_named(number: int) -> None:
    changed = area()
    changed.set_component(number, bytes(LAYOUT[number].size - 1) + b"\x01")
    # MXCSR and FCW of 0 are not initial either, so nothing else may be in use.
    assert changed.normalised().xstate_bv == 1 << number
    assert changed.stale() == []


@pytest.mark.parametrize("number", [0, 1, 2, 5, 6, 7, 9, 17, 18])
def test_a_component_without_its_bit_does_not_count_and_is_named_as_stale(number: int) -> None:
    changed = area()
    changed.set_component(number, bytes(LAYOUT[number].size - 1) + b"\x01", mark=False)
    assert changed.normalised().xstate_bv == 0
    assert changed.stale() == [f"bytes of {LAYOUT[number].name} without its bit in XSTATE_BV"]
    assert area().same_state(changed) == changed.stale()


def test_a_changed_mxcsr_alone_is_a_use_of_sse() -> None:
    changed = area()
    changed.mxcsr = 0x1FA0
    changed.xstate_bv = 4
    assert changed.normalised().xstate_bv == 2, "AVX brings its MXCSR along"
    changed = area()
    changed.data[28:32] = b"\xff\xff\x02\0"
    assert changed.normalised().xstate_bv == 0
    assert changed.normalised().mxcsr_mask == 0 and changed.mxcsr_mask == 0x2FFFF


def test_bits_of_components_outside_the_layout_are_kept() -> None:
    changed = XsaveArea.initial(4096, Layout.from_cpuid(INTEL, 7))
    changed.xstate_bv = 1 << 62 | 1 << 18 | 7
    assert changed.normalised().xstate_bv == 1 << 62 | 1 << 18


def test_a_component_beyond_the_area_is_not_in_use() -> None:
    short = area(4096)
    short.data[2816:4096] = b"\xff" * 1280
    assert short.normalised().xstate_bv == 0


@given(
    bv=st.integers(0, (1 << 64) - 1),
    parts=st.dictionaries(st.sampled_from([0, 1, 2, 5, 6, 7, 9, 17, 18]), st.integers(0, 255), max_size=5),
    mask=st.integers(0, 0xFFFFFFFF),
)
@settings(max_examples=30)
def test_normalising_twice_is_the_same_as_once(bv: int, parts: dict[int, int], mask: int) -> None:
    changed = area()
    for number, fill in parts.items():
        changed.set_component(number, bytes([fill]) * LAYOUT[number].size)
    changed.xstate_bv = bv
    changed.data[28:32] = mask.to_bytes(4, "little")
    before = bytes(changed.data)
    once = changed.normalised()
    assert once.normalised().data == once.data
    assert bytes(changed.data) == before
    kept = [number for number in parts if number != 1 and bv >> number & 1]
    assert all(once.component(number) == changed.component(number) for number in kept)


class _Area:
    """A vCPU whose KVM_GET_XSAVE2 writes these bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def ioctl(self, request: int, buffer: Any) -> int:
        ffi.memmove(buffer, self.data, len(self.data))
        return 0


@pytest.mark.parametrize("tail", [1, 63, 64, 8192])
@pytest.mark.parametrize("byte", [0xAA, 0x55, 0x00])
def test_state_that_ends_like_the_poison_is_not_cut(monkeypatch: pytest.MonkeyPatch, tail: int, byte: int) -> None:
    layout = Layout([Component(17, ((2752, 64),)), Component(18, ((2816, 8192),))])
    monkeypatch.setattr(xsave, "host_layout", lambda: layout)
    monkeypatch.setattr(xsave, "largest_size", lambda: layout.size())
    area = XsaveArea.initial(layout.size(), layout)
    area.set_component(18, b"\x11" * (8192 - tail) + bytes([byte]) * tail)
    assert get_xsave(_Area(bytes(area.data))).data == area.data  # type: ignore[arg-type]
