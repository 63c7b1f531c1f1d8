# SPDX-License-Identifier: Apache-2.0
"""Vector lengths, the image of the vector registers, and that Python, C and assembler mean the same by it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.arm64 import vector
from vmm.arm64.own import When, run_with_vectors
from vmm.arm64.vector import AREA_SIZE, FPCR_BITS, FPSR_BITS, VectorState, differences, name
from vmm.arm64.vls import MAX, REGISTER_BYTES, VectorLengths

_ROOT = Path(__file__).resolve().parents[2]
_LENGTHS = st.frozensets(st.integers(1, MAX), max_size=20)
_SIZES = st.sampled_from([16 * vq for vq in (1, 2, 3, 4, 8, 16)])


# --- sets of vector lengths -----------------------------------------------------------------------


@given(_LENGTHS)
def test_a_set_of_lengths_survives_its_register(lengths: frozenset[int]) -> None:
    register = VectorLengths(lengths).encode()
    assert len(register) == REGISTER_BYTES
    assert VectorLengths.decode(register) == lengths
    for vq in lengths:  # uapi asm/kvm.h: word (vq - 1) / 64, bit (vq - 1) % 64
        word = int.from_bytes(register[(vq - 1) // 64 * 8 :][:8], "little")
        assert word >> (vq - 1) % 64 & 1


@given(_LENGTHS)
def test_a_set_of_lengths_survives_being_printed(lengths: frozenset[int]) -> None:
    assert VectorLengths.parse(str(VectorLengths(lengths))) == lengths


@given(_LENGTHS, st.integers(1, MAX))
def test_the_longest_length_that_is_not_too_long_is_granted(lengths: frozenset[int], wanted: int) -> None:
    granted = VectorLengths(lengths).granted(wanted)
    assert granted <= wanted
    assert granted == 0 or granted in lengths
    assert not [vq for vq in lengths if granted < vq <= wanted]


@given(_LENGTHS, st.integers(1, MAX))
def test_cutting_a_set_keeps_every_length_up_to_the_limit(lengths: frozenset[int], limit: int) -> None:
    cut = VectorLengths(lengths).up_to(limit)
    assert cut == frozenset(vq for vq in lengths if vq <= limit)
    assert cut.size == 16 * cut.maximum


@pytest.mark.parametrize("wrong", [[0], [MAX + 1], [-1, 1]])
def test_an_impossible_length_is_refused(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="are not 1 to 512"):
        VectorLengths(wrong)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_a_register_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"64 bytes, not {size}"):
        VectorLengths.decode(bytes(size))


def test_a_set_prints_as_it_is_written() -> None:
    assert str(VectorLengths({4, 1, 2})) == "{1,2,4}" == repr(VectorLengths.parse("1,2,4"))
    assert (VectorLengths().maximum, VectorLengths({1, 2, 4}).size) == (0, 64)


# --- the image ------------------------------------------------------------------------------------


@given(_SIZES, st.integers(0, 1 << 32))
def test_a_state_survives_its_image(size: int, seed: int) -> None:
    state = VectorState.random(size, seed)
    image = state.image()
    assert len(image) == AREA_SIZE
    assert VectorState.from_image(image, size) == state


@given(_SIZES, st.integers(0, 1 << 32))
def test_a_random_state_is_one_that_a_cpu_keeps(size: int, seed: int) -> None:
    state = VectorState.random(size, seed)
    assert (len(state.z), len(state.p), state.size) == (32, 16, size)
    assert {len(value) for value in state.z} == {size} and {len(value) for value in (*state.p, state.ffr)} == {
        size // 8
    }
    ones = int.from_bytes(state.ffr, "little")
    assert ones and ones & (ones + 1) == 0, "FFR is a run of ones from bit 0"
    assert state.fpsr & ~FPSR_BITS == 0 == state.fpcr & ~FPCR_BITS


def test_different_seeds_give_different_states() -> None:
    assert len({VectorState.random(64, seed).image() for seed in range(200)}) == 200


@given(_SIZES, st.integers(0, AREA_SIZE - 1), st.integers(1, 255))
def test_a_changed_byte_is_named(size: int, offset: int, bits: int) -> None:
    image = VectorState.random(size, 1).image()
    changed = bytearray(image)
    changed[offset] ^= bits
    assert differences(image, bytes(changed)) == [
        f"{name(offset)}: {changed[offset]:#04x} and not {image[offset]:#04x}"
    ]
    assert differences(image, image) == []


@pytest.mark.parametrize(
    ("offset", "place"),
    [(0, "Z0 byte 0"), (255, "Z0 byte 255"), (256, "Z1 byte 0"), (8191, "Z31 byte 255"), (8192, "P0 byte 0"),
     (8223, "P0 byte 31"), (8703, "P15 byte 31"), (8704, "FFR byte 0"), (8736, "FPSR byte 0"), (8751, "FPCR byte 7")],
)  # fmt: skip
def test_an_offset_is_named_by_its_register_and_byte(offset: int, place: str) -> None:
    assert name(offset) == place


@given(_SIZES, st.integers(0, 1 << 32))
def test_the_low_part_of_a_state_has_nothing_of_the_high(size: int, seed: int) -> None:
    state = VectorState.random(size, seed)
    assert [value[:16] for value in state.z] == list(state.low().z)
    assert (state.low().p, state.low().ffr) == ((), b"")
    assert state.low(predicates=True).image() == VectorState.from_image(state.image(), 16).image()
    assert (state.low().fpsr, state.low().fpcr) == (state.fpsr, state.fpcr)


# --- the same in three languages ------------------------------------------------------------------


def _defines(path: Path) -> dict[str, int]:
    return {key: int(value) for key, value in re.findall(r"^#define (\w+) (\d+)\b", path.read_text(), re.MULTILINE)}


def test_the_payloads_have_the_same_layout() -> None:
    area = _defines(_ROOT / "guest_payloads/arm64/area.h")
    places = [getattr(vector, f"_{part}_AT") for part in ("P", "FFR", "FPSR", "FPCR")]
    assert [area[f"AREA_{part}"] for part in ("P", "FFR", "FPSR", "FPCR")] == places
    assert area["AREA_SIZE"] == AREA_SIZE


def test_the_shim_has_the_same_moments() -> None:
    shim = _defines(_ROOT / "bindings/shim.h")
    assert {when.name: shim[f"VMM_{when.name}"] for when in When} == {when.name: when.value for when in When}


def test_an_image_of_another_size_does_not_reach_the_shim() -> None:
    with pytest.raises(ValueError, match="has 8752 bytes, not 3"):
        run_with_vectors(None, b"abc", 1.0)  # type: ignore[arg-type]
