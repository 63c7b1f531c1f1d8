# SPDX-License-Identifier: Apache-2.0
"""States from strangers: what no vCPU can have is refused in user space, by name, and nothing else is."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.state.state_samples import GUEST_SSP, SAMPLES, XFD, arm64_parts, arm64_state, leaf_d, x86_state
from vmm.arch import ARCHITECTURE
from vmm.arm64 import registers as arm64
from vmm.arm64.vls import VectorLengths
from vmm.state.errors import StreamError
from vmm.state.parts import vcpu_shapes
from vmm.state.validate import normalise, validate
from vmm.state.value import Extent, MemoryState, Part, VcpuState, VmState
from vmm.state.x86.msrs import NOT_IN_MSRS, allowed_msrs
from vmm.x86 import msr
from vmm.x86.msr_names import Msr

X86 = x86_state()


def with_part(name: str, part: Part, state: VmState = X86) -> VmState:
    """The state with one part of its vCPU replaced."""
    return VmState(state.arch, (state.vcpus[0].with_part(name, part),), state.memory, state.machine, state.payload)


def edited(name: str, offset: int, data: bytes, state: VmState = X86) -> VmState:
    """The state with some bytes of a part replaced."""
    part = state.vcpus[0].parts[name]
    assert isinstance(part, bytes)
    return with_part(name, part[:offset] + data + part[offset + len(data) :], state)


def registers(name: str, state: VmState = X86) -> dict[int, bytes]:
    part = state.vcpus[0].parts[name]
    assert not isinstance(part, bytes)
    return dict(part)


def refused(state: VmState, match: str) -> None:
    with pytest.raises(StreamError, match=match):
        validate(state)


@pytest.mark.parametrize("label", sorted(SAMPLES))
def test_a_state_that_a_vcpu_has_is_accepted(label: str) -> None:
    validate(SAMPLES[label])


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", sorted(SAMPLES))
def test_a_missing_part_that_is_required_is_refused(label: str) -> None:
    state = SAMPLES[label]
    for name in state.vcpus[0].parts:
        without = VmState(state.arch, (state.vcpus[0].without(name),), state.memory, state.machine)
        if vcpu_shapes(state.arch)[name].required:
            refused(without, f"vCPU 0: it is incomplete, it lacks {name}")
        elif name in ("VLS", "FINALIZE"):
            refused(without, "must be present together or not at all")
        else:
            validate(without)
    for name in state.machine:
        refused(VmState(state.arch, state.vcpus, state.memory), f"the VM: it is incomplete, it lacks {name}")


@pytest.mark.parametrize("label", sorted(SAMPLES))
def test_a_part_of_another_size_or_shape_is_refused(label: str) -> None:
    state = SAMPLES[label]
    for name, part in state.vcpus[0].parts.items():
        if isinstance(part, bytes):
            refused(with_part(name, {1: b"\0" * 8}, state), f"{name}: it is a set of registers")
            refused(with_part(name, part[:-1], state), f"{name}: ")
            if name != "XSAVE":
                refused(with_part(name, part + b"\0", state), f"{name}: ")
        else:
            refused(with_part(name, b"\0" * 8, state), f"{name}: it is bytes")
            refused(with_part(name, {}, state), f"{name}: it has 0 registers")
            refused(with_part(name, dict.fromkeys(range(5000), bytes(8)), state), f"{name}: it has 5000 registers")
            first = next(iter(part))
            refused(with_part(name, {**part, first: part[first] + b"\0"}, state), f"{name}: ")


def test_an_unknown_part_is_refused() -> None:
    refused(with_part("NESTED", b""), "unknown to this version: NESTED")
    refused(VmState("x86", X86.vcpus, X86.memory, {**X86.machine, "PIT": b""}), "unknown to this version: PIT")
    refused(VmState("arm64", X86.vcpus, X86.memory), "unknown to this version")
    refused(VmState("riscv", X86.vcpus, X86.memory), "architecture riscv")


@pytest.mark.parametrize(
    ("number", "arguments", "match"),
    [(164, bytes(7), "7 bytes of arguments"), (164, bytes(40), "40 bytes of arguments"), (1, bytes(8), "not allowed"),
     (1 << 33, bytes(8), "not allowed")],
)  # fmt: skip
def test_a_capability_that_is_not_state_is_refused(number: int, arguments: bytes, match: str) -> None:
    refused(VmState("x86", X86.vcpus, X86.memory, {**X86.machine, "CAPS": {number: arguments}}), match)
    refused(
        VmState("arm64", SAMPLES["arm64"].vcpus, X86.memory, {"CAPS": {number: arguments}}),
        "not allowed in a saved state",
    )


def test_a_capability_that_is_state_is_accepted() -> None:
    validate(VmState("x86", X86.vcpus, X86.memory, {**X86.machine, "CAPS": {164: bytes(8), 218: b""}}))


def test_a_vm_without_vcpus_or_with_two_of_one_number_is_refused() -> None:
    refused(VmState("x86", (), X86.memory, X86.machine), "has 0 vCPUs")
    refused(VmState("x86", X86.vcpus * 2, X86.memory, X86.machine), "same identifier")
    other = VcpuState(X86.vcpus[0].parts, 1)
    validate(VmState("x86", (X86.vcpus[0], other), X86.memory, X86.machine))


@pytest.mark.parametrize(
    ("regions", "match"),
    [
        ((MemoryState(0, 0x3000), MemoryState(0x2000, 0x1000)), "at 0x2000: it overlaps"),
        ((MemoryState(0x2000, 0x1000), MemoryState(0, 0x2001)), "at 0x0: 8193 bytes are not whole pages"),
        ((MemoryState(0x800, 0x1000),), "not whole pages"),
        ((MemoryState(0, 0),), "not whole pages"),
        ((MemoryState((1 << 52) - 4096, 8192),), "ends beyond 0x10000000000000"),
        (tuple(MemoryState(n << 20, 4096) for n in range(513)), "513 regions"),
        ((MemoryState(0, 0x2000, (Extent(0x2000, bytes(4096)),)),), "leaves its region"),
        ((MemoryState(0x1000, 0x1000, (Extent(0, bytes(4096)),)),), "leaves its region"),
        ((MemoryState(0, 0x2000, (Extent(0, bytes(8192)), Extent(0x1000, bytes(4096)))),), "overlaps"),
        ((MemoryState(0, 0x2000, (Extent(0, bytes(100)),)),), "not whole pages"),
    ],
)
def test_memory_that_no_vm_has_is_refused(regions: tuple[MemoryState, ...], match: str) -> None:
    refused(VmState("x86", X86.vcpus, regions, X86.machine), match)


def test_memory_side_by_side_is_accepted() -> None:
    validate(VmState("x86", X86.vcpus, (MemoryState(0x1000, 0x1000), MemoryState(0, 0x1000)), X86.machine))


# --- x86 ------------------------------------------------------------------------------------------


def test_an_xsave_area_shorter_than_its_components_is_refused() -> None:
    area = X86.vcpus[0].parts["XSAVE"]
    assert isinstance(area, bytes)
    refused(with_part("XSAVE", area[:4096]), "4096 bytes, and by CPUID leaf 0xD its components end at 11008")
    validate(with_part("XSAVE", area + bytes(64)))
    for offset in (575, 2815, 100, 0):
        inside = leaf_d(tiles=True).edit(0xD, 18, ebx=offset)
        refused(with_part("CPUID", inside.packed), "lies inside")
    huge = leaf_d(tiles=True).edit(0xD, 18, ebx=0xFFFFFF00)
    refused(with_part("CPUID", huge.packed), "its components end at 429")


@pytest.mark.parametrize("bit", [3, 8, 10, 11, 12, 19, 62, 63])
def test_a_component_that_cpuid_lacks_is_refused(bit: int) -> None:
    area = X86.vcpus[0].parts["XSAVE"]
    assert isinstance(area, bytes)
    known = struct.unpack_from("<Q", area, 512)[0]
    refused(edited("XSAVE", 512, struct.pack("<Q", known | 1 << bit)), "XSTATE_BV has .*CPUID offers 0x602e7")
    refused(edited("XCRS", 16, struct.pack("<Q", 0x602E7 | 1 << bit)), "XCR0 is .*CPUID offers 0x602e7")


def test_a_supervisor_component_of_cpuid_is_refused_in_xstate_bv() -> None:
    table = leaf_d(tiles=True).edit(0xD, 1, ecx=0x1800).edit(0xD, 11, eax=16, ecx=1)
    state = with_part("CPUID", table.packed)
    validate(state)
    refused(edited("XSAVE", 512, struct.pack("<Q", 1 << 11), state), "XSTATE_BV has .*CET_U")


def test_a_guest_without_xsave_is_accepted() -> None:
    state = with_part("CPUID", leaf_d(tiles=True).without(0xD).packed)
    state = edited("XSAVE", 512, struct.pack("<Q", 3), edited("XCRS", 16, struct.pack("<Q", 1), state))
    validate(state)


def test_a_compacted_area_is_refused() -> None:
    for value in (1, 1 << 63, 1 << 63 | 7):
        refused(edited("XSAVE", 520, struct.pack("<Q", value)), "XCOMP_BV is")


@pytest.mark.parametrize("offset", [528, 551, 575])
def test_reserved_bytes_of_the_header_are_refused(offset: int) -> None:
    refused(edited("XSAVE", offset, b"\1"), "reserved bytes")


def test_reserved_bits_of_mxcsr_are_refused() -> None:
    for bit in range(32):
        state = edited("XSAVE", 24, struct.pack("<I", 1 << bit))
        if bit < 16 or bit == 17:
            validate(state)
        else:
            refused(state, f"MXCSR is .* {1 << bit:#x} are reserved")


def test_a_component_that_xfd_disables_is_refused_until_normalised() -> None:
    state = with_part("XFD", {XFD: struct.pack("<Q", 1 << 18)})
    refused(state, "XSTATE_BV has 0x40000 .XTILEDATA., which IA32_XFD disables")
    cleaned, notes = normalise(state)
    validate(cleaned)
    assert notes == ["vCPU 0: XTILEDATA is dropped, XSTATE_BV named it while IA32_XFD disables it"]
    before, after = state.vcpus[0].parts["XSAVE"], cleaned.vcpus[0].parts["XSAVE"]
    assert isinstance(before, bytes) and isinstance(after, bytes)
    assert [n for n in range(len(before)) if before[n] != after[n]] == [514]
    assert normalise(cleaned) == (cleaned, []) and normalise(X86) == (X86, [])
    assert cleaned.memory == state.memory and cleaned.machine == state.machine
    assert normalise(SAMPLES["arm64"]) == (SAMPLES["arm64"], [])


@pytest.mark.parametrize("parts", [{}, {"XSAVE": {1: b""}}, {"XSAVE": b"", "XFD": {XFD: b"\xff"}}, {"XFD": b"\xff"}])
def test_an_invalid_state_is_left_alone_by_normalisation(parts: dict[str, Part]) -> None:
    state = VmState("x86", (VcpuState(parts),), ())
    assert normalise(state) == (state, [])


@pytest.mark.parametrize(
    "index",
    [0x79, 0x8C, 0x9B, 0x1B, 0x199, 0x19A, 0x1F2, 0x400, 0x610, 0x6E0, 0x800, 0xC0000080, 0xC0010010, 0xC0010020,
     0xC0010114, 0x40000010, 0x40000020, 0x4B564E00, 0x12345, 0xFFFFFFFF, 1 << 32 | 0x174, 0x10, 0x1C4],
)  # fmt: skip
def test_an_msr_that_is_not_state_is_refused(index: int) -> None:
    refused(with_part("MSRS", {**registers("MSRS"), index: bytes(8)}), "not allowed in this part of a saved state")


@pytest.mark.parametrize(("part", "index"), [("XFD", 0x174), ("TSC", 0x174), ("XFD", 0xDA0), ("TSC", 0x1C4)])
def test_an_msr_in_another_ones_place_is_refused(part: str, index: int) -> None:
    refused(with_part(part, {**registers(part), index: bytes(8)}), f"{part}: not allowed in this part")


def test_an_msr_that_kvm_lists_is_allowed_unless_it_is_kept_elsewhere() -> None:
    # Msr names what this package speaks of; those that a state holds elsewhere, or that are time, are not saved.
    elsewhere = {Msr.APIC_BASE, Msr.EFER, Msr.FS_BASE, Msr.GS_BASE, Msr.MTRRCAP, Msr.MTRR_DEF_TYPE}
    left_out = {Msr.TSC_DEADLINE, Msr.HV_VP_RUNTIME, Msr.HV_TIME_REF_COUNT}
    for entry in set(Msr) - elsewhere - left_out:
        assert entry in allowed_msrs(), msr.name(entry)
    assert not allowed_msrs() & (elsewhere | left_out)


@pytest.mark.kvm
@pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"MSRs are x86's; this is {ARCHITECTURE}")
def test_every_msr_that_this_kvm_lists_is_allowed(kvm: object) -> None:
    listed = set(msr.index_list(kvm)) - NOT_IN_MSRS  # type: ignore[arg-type]
    assert listed, "KVM lists no MSRs"
    assert not sorted(listed - allowed_msrs()), "add them to msrs.toml, if they are state"


@pytest.mark.parametrize(
    ("identifier", "value"),
    [
        (GUEST_SSP + 1, bytes(8)),
        (0x2030_0002_0000_0079, bytes(8)),
        (0x2030_0004_0000_0000, bytes(8)),
        (0x2020_0003_0000_0000, bytes(4)),
        (0x2030_0103_0000_0000, bytes(8)),
        (0x6030_0000_0010_0000, bytes(8)),
        (GUEST_SSP, bytes(4)),
    ],
)
def test_a_register_that_is_not_state_is_refused(identifier: int, value: bytes) -> None:
    refused(with_part("ONE_REGS", {identifier: value}), "ONE_REGS")


def test_a_register_that_is_state_is_accepted() -> None:
    validate(with_part("ONE_REGS", {0x2030_0002_0000_0DA0: bytes(8), GUEST_SSP: bytes(8)}))


@pytest.mark.parametrize("header", [struct.pack("<II", 17, 0), struct.pack("<II", 1, 1), b"\xff" * 8])
def test_an_impossible_header_of_xcrs_is_refused(header: bytes) -> None:
    refused(edited("XCRS", 0, header), "nr_xcrs")


@given(st.data())
def test_changed_bytes_of_a_part_are_accepted_or_refused_by_name(data: st.DataObject) -> None:
    label = data.draw(st.sampled_from(sorted(SAMPLES)))
    state = SAMPLES[label]
    name = data.draw(st.sampled_from([k for k, part in state.vcpus[0].parts.items() if isinstance(part, bytes)]))
    part = bytearray(state.vcpus[0].parts[name])
    for _ in range(data.draw(st.integers(1, 4))):
        part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    try:
        validate(with_part(name, bytes(part), state))
    except StreamError as error:
        # What it contradicts may be another part: vectors that are longer than VLS says.
        assert any(part in str(error) for part in state.vcpus[0].parts)


# --- arm64 ----------------------------------------------------------------------------------------

SVE = arm64_state(1, 2, 4)


def with_register(name: str, identifier: int, value: bytes, state: VmState = SVE) -> VmState:
    return with_part(name, {**registers(name, state), identifier: value}, state)


@pytest.mark.parametrize(
    ("identifier", "size", "match"),
    [
        (0x2030_0000_0010_0000, 8, "is not an arm64 register id"),
        (0x6030_0001_0010_0000, 8, "is not an arm64 register id"),
        (0x6030_0000_1010_0000, 8, "is not an arm64 register id"),
        (0x6030_0000_0010_0000, 4, "has 8 bytes by its id, and 4 here"),
        (0x60F0_0000_0010_0000, 8, "bytes by its id"),
        (0x6030_0000_0013_C000, 8, "belongs to another part"),
        (0x6030_0000_0099_0000, 8, "belongs to another part"),
        (1, 1, "not an arm64 register id"),
        ((1 << 64) - 1, 8, "not an arm64 register id"),
    ],
)
def test_an_invalid_register_id_is_refused(identifier: int, size: int, match: str) -> None:
    refused(with_register("CORE", identifier, bytes(size)), f"CORE: .*{match}")


@pytest.mark.parametrize("lengths", [[], [17], [1, 32], [512]])
def test_vector_lengths_that_no_cpu_has_are_refused(lengths: list[int]) -> None:
    refused(with_part("VLS", VectorLengths(lengths).encode(), SVE), "VLS: vector lengths")


@pytest.mark.parametrize("lengths", [(1,), (16,), (1, 2, 4, 8, 16)])
def test_vector_lengths_of_a_cpu_are_accepted(lengths: tuple[int, ...]) -> None:
    validate(arm64_state(*lengths))


@pytest.mark.parametrize(
    ("register", "used"), [(arm64.z(0), 64), (arm64.z(31), 64), (arm64.p(15), 8), (arm64.FFR, 8)], ids=str
)
def test_bytes_beyond_the_vector_length_are_refused(register: arm64.Register, used: int) -> None:
    validate(with_register("VECTORS", register, b"\1" * used + bytes(register.size - used)))
    for at in (used, register.size - 1):
        value = bytearray(register.size)
        value[at] = 1
        refused(with_register("VECTORS", register, bytes(value)), f"{register} has bytes beyond .* 512 bits")


@pytest.mark.parametrize(
    ("register", "match"),
    [
        (arm64.z(0, 1), "slice beyond the longest vector"),
        (arm64.p(0, 31), "slice beyond the longest vector"),
        (arm64.ffr(1), "slice beyond the longest vector"),
        (arm64.VLS, "neither Z nor P nor FFR"),
        (arm64.Register(0x6080_0000_0015_0700), "neither Z nor P nor FFR"),
        (arm64.Register(0x6080_0000_0015_0400), "neither Z nor P nor FFR"),
        (arm64.v(3), "which a vCPU with SVE has as Z only"),
    ],
    ids=str,
)
def test_a_vector_register_that_a_vcpu_lacks_is_refused(register: arm64.Register, match: str) -> None:
    refused(with_register("VECTORS", register, bytes(register.size)), match)


def test_vectors_without_sve_and_sve_without_its_lengths_are_refused() -> None:
    plain = arm64_state()
    refused(with_register("VECTORS", arm64.z(0), bytes(256), plain), "Z0 is present, but the vCPU has no SVE")
    refused(with_part("VLS", VectorLengths([1]).encode(), plain), "must be present together or not at all")
    refused(with_part("FINALIZE", bytes(4), SVE), "must be present together or not at all")
    refused(with_part("INIT", arm64_parts()["INIT"], SVE), "must be present together or not at all")
    validate(with_part("FINALIZE", bytes(4), plain))
