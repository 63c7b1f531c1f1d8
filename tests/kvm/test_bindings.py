# SPDX-License-Identifier: Apache-2.0
"""The compiled bindings against the uapi's numbers, written here once more by hand."""

from __future__ import annotations

import importlib.util
import platform
import re
from pathlib import Path

import pytest
from cffi import FFI

from vmm._kvm import ffi, lib

BINDINGS = Path(__file__).resolve().parents[2] / "bindings"
MACHINE = platform.machine()
on_x86 = pytest.mark.skipif(MACHINE != "x86_64", reason=f"declared for x86; this machine is {MACHINE}")
on_arm64 = pytest.mark.skipif(MACHINE != "aarch64", reason=f"declared for arm64; this machine is {MACHINE}")

# Request numbers and the struct whose size is in bits 16 to 29; "" where there is none or it is another type.
COMMON = {
    "KVM_GET_API_VERSION": (0xAE00, ""),
    "KVM_CREATE_VM": (0xAE01, ""),
    "KVM_CHECK_EXTENSION": (0xAE03, ""),
    "KVM_GET_VCPU_MMAP_SIZE": (0xAE04, ""),
    "KVM_CREATE_VCPU": (0xAE41, ""),
    "KVM_GET_DIRTY_LOG": (0x4010AE42, "kvm_dirty_log"),
    "KVM_SET_USER_MEMORY_REGION": (0x4020AE46, "kvm_userspace_memory_region"),
    "KVM_SET_USER_MEMORY_REGION2": (0x40A0AE49, "kvm_userspace_memory_region2"),
    "KVM_CREATE_IRQCHIP": (0xAE60, ""),
    "KVM_IRQ_LINE": (0x4008AE61, "kvm_irq_level"),
    "KVM_RUN": (0xAE80, ""),
    "KVM_TRANSLATE": (0xC018AE85, ""),
    "KVM_INTERRUPT": (0x4004AE86, "kvm_interrupt"),
    "KVM_SET_SIGNAL_MASK": (0x4004AE8B, "kvm_signal_mask"),
    "KVM_GET_MP_STATE": (0x8004AE98, "kvm_mp_state"),
    "KVM_SET_MP_STATE": (0x4004AE99, "kvm_mp_state"),
    "KVM_NMI": (0xAE9A, ""),
    "KVM_GET_VCPU_EVENTS": (0x8040AE9F, "kvm_vcpu_events"),
    "KVM_SET_VCPU_EVENTS": (0x4040AEA0, "kvm_vcpu_events"),
    "KVM_ENABLE_CAP": (0x4068AEA3, "kvm_enable_cap"),
    "KVM_SIGNAL_MSI": (0x4020AEA5, "kvm_msi"),
    "KVM_GET_ONE_REG": (0x4010AEAB, "kvm_one_reg"),
    "KVM_SET_ONE_REG": (0x4010AEAC, "kvm_one_reg"),
    "KVM_GET_REG_LIST": (0xC008AEB0, "kvm_reg_list"),
    "KVM_CLEAR_DIRTY_LOG": (0xC018AEC0, "kvm_clear_dirty_log"),
    "KVM_RESET_DIRTY_RINGS": (0xAEC7, ""),
    "KVM_GET_STATS_FD": (0xAECE, ""),
    "KVM_SET_MEMORY_ATTRIBUTES": (0x4020AED2, ""),
    "KVM_CREATE_GUEST_MEMFD": (0xC040AED4, "kvm_create_guest_memfd"),
    "KVM_PRE_FAULT_MEMORY": (0xC040AED5, ""),
    "KVM_CREATE_DEVICE": (0xC00CAEE0, "kvm_create_device"),
    "KVM_SET_DEVICE_ATTR": (0x4018AEE1, "kvm_device_attr"),
    "KVM_GET_DEVICE_ATTR": (0x4018AEE2, "kvm_device_attr"),
    "KVM_HAS_DEVICE_ATTR": (0x4018AEE3, "kvm_device_attr"),
}
# The same requests move structs of the architecture's own size.
X86 = {
    "KVM_GET_MSR_INDEX_LIST": (0xC004AE02, "kvm_msr_list"),
    "KVM_GET_SUPPORTED_CPUID": (0xC008AE05, "kvm_cpuid2"),
    "KVM_GET_MSR_FEATURE_INDEX_LIST": (0xC004AE0A, "kvm_msr_list"),
    "KVM_SET_TSS_ADDR": (0xAE47, ""),
    "KVM_SET_IDENTITY_MAP_ADDR": (0x4008AE48, ""),
    "KVM_GET_REGS": (0x8090AE81, "kvm_regs"),
    "KVM_SET_REGS": (0x4090AE82, "kvm_regs"),
    "KVM_GET_SREGS": (0x8138AE83, "kvm_sregs"),
    "KVM_SET_SREGS": (0x4138AE84, "kvm_sregs"),
    "KVM_GET_MSRS": (0xC008AE88, "kvm_msrs"),
    "KVM_SET_MSRS": (0x4008AE89, "kvm_msrs"),
    "KVM_GET_FPU": (0x81A0AE8C, "kvm_fpu"),
    "KVM_SET_FPU": (0x41A0AE8D, "kvm_fpu"),
    "KVM_GET_LAPIC": (0x8400AE8E, "kvm_lapic_state"),
    "KVM_SET_LAPIC": (0x4400AE8F, "kvm_lapic_state"),
    "KVM_SET_CPUID2": (0x4008AE90, "kvm_cpuid2"),
    "KVM_GET_CPUID2": (0xC008AE91, "kvm_cpuid2"),
    "KVM_SET_GUEST_DEBUG": (0x4048AE9B, ""),
    "KVM_GET_DEBUGREGS": (0x8080AEA1, "kvm_debugregs"),
    "KVM_SET_DEBUGREGS": (0x4080AEA2, "kvm_debugregs"),
    "KVM_SET_TSC_KHZ": (0xAEA2, ""),
    "KVM_GET_TSC_KHZ": (0xAEA3, ""),
    "KVM_SET_CLOCK": (0x4030AE7B, "kvm_clock_data"),
    "KVM_GET_NESTED_STATE": (0xC080AEBE, ""),
    "KVM_SET_NESTED_STATE": (0x4080AEBF, ""),
    "KVM_GET_CLOCK": (0x8030AE7C, "kvm_clock_data"),
    "KVM_GET_XSAVE": (0x9000AEA4, "kvm_xsave"),
    "KVM_SET_XSAVE": (0x5000AEA5, "kvm_xsave"),
    "KVM_GET_XCRS": (0x8188AEA6, "kvm_xcrs"),
    "KVM_SET_XCRS": (0x4188AEA7, "kvm_xcrs"),
    "KVM_GET_SREGS2": (0x8140AECC, "kvm_sregs2"),
    "KVM_SET_SREGS2": (0x4140AECD, "kvm_sregs2"),
    "KVM_GET_XSAVE2": (0x9000AECF, "kvm_xsave"),
    "KVM_SMI": (0xAEB7, ""),
    "KVM_GET_EMULATED_CPUID": (0xC008AE09, "kvm_cpuid2"),
    "KVM_GET_SUPPORTED_HV_CPUID": (0xC008AEC1, "kvm_cpuid2"),
    "KVM_GET_IRQCHIP": (0xC208AE62, "kvm_irqchip"),
    "KVM_SET_IRQCHIP": (0x8208AE63, "kvm_irqchip"),
    "KVM_CREATE_PIT2": (0x4040AE77, "kvm_pit_config"),
    "KVM_GET_PIT2": (0x8070AE9F, "kvm_pit_state2"),
    "KVM_SET_PIT2": (0x4070AEA0, "kvm_pit_state2"),
    "KVM_TPR_ACCESS_REPORTING": (0xC028AE92, "kvm_tpr_access_ctl"),
    "KVM_SET_VAPIC_ADDR": (0x4008AE93, "kvm_vapic_addr"),
    "KVM_X86_SETUP_MCE": (0x4008AE9C, ""),
    "KVM_X86_GET_MCE_CAP_SUPPORTED": (0x8008AE9D, ""),
    "KVM_X86_SET_MCE": (0x4040AE9E, "kvm_x86_mce"),
    "KVM_KVMCLOCK_CTRL": (0xAEAD, ""),
    "KVM_X86_SET_MSR_FILTER": (0x4188AEC6, "kvm_msr_filter"),
}
ARM64 = {
    "KVM_ARM_VCPU_INIT": (0x4020AEAE, "kvm_vcpu_init"),
    "KVM_ARM_PREFERRED_TARGET": (0x8020AEAF, "kvm_vcpu_init"),
    "KVM_ARM_SET_COUNTER_OFFSET": (0x4010AEB5, "kvm_arm_counter_offset"),
    "KVM_ARM_GET_REG_WRITABLE_MASKS": (0x8040AEB6, "reg_mask_range"),
    "KVM_ARM_VCPU_FINALIZE": (0x4004AEC2, ""),
}
# arm64 has these too, with its own structs: user_pt_regs and what follows it, and the debug registers.
ARM64_OWN_SIZE = {
    "KVM_GET_REGS", "KVM_SET_REGS", "KVM_GET_SREGS", "KVM_SET_SREGS", "KVM_GET_FPU", "KVM_SET_FPU",
    "KVM_SET_GUEST_DEBUG",
}  # fmt: skip

COMMON_SIZES = {
    "kvm_userspace_memory_region": 32, "kvm_userspace_memory_region2": 160, "kvm_create_guest_memfd": 64,
    "kvm_dirty_log": 16, "kvm_clear_dirty_log": 24, "kvm_dirty_gfn": 16, "kvm_create_device": 12,
    "kvm_device_attr": 24, "kvm_enable_cap": 104, "kvm_mp_state": 4, "kvm_one_reg": 16, "kvm_reg_list": 8,
    "kvm_signal_mask": 4, "kvm_interrupt": 4, "kvm_msi": 32, "kvm_irq_level": 8, "kvm_stats_header": 24,
}  # fmt: skip
X86_SIZES = {
    "kvm_regs": 144, "kvm_segment": 24, "kvm_dtable": 16, "kvm_sregs": 312, "kvm_sregs2": 320, "kvm_fpu": 416,
    "kvm_msr_entry": 16, "kvm_msrs": 8, "kvm_msr_list": 4, "kvm_cpuid_entry2": 40, "kvm_cpuid2": 8,
    "kvm_vcpu_events": 64, "kvm_debugregs": 128, "kvm_xsave": 4096, "kvm_xcr": 16, "kvm_xcrs": 392,
    "kvm_lapic_state": 1024, "kvm_clock_data": 48, "kvm_run": 2352, "kvm_sync_regs": 520,
    "kvm_msr_filter_range": 24, "kvm_msr_filter": 392, "kvm_translation": 24, "kvm_guest_debug_arch": 64,
    "kvm_guest_debug": 72, "kvm_tpr_access_ctl": 40, "kvm_vapic_addr": 8, "kvm_irqchip": 520,
    "kvm_pit_channel_state": 24, "kvm_pit_state2": 112, "kvm_pit_config": 64, "kvm_x86_mce": 64,
}  # fmt: skip
ARM64_SIZES = {
    "user_pt_regs": 272, "kvm_vcpu_init": 32, "kvm_vcpu_events": 64, "reg_mask_range": 64,
    "kvm_arm_counter_offset": 16,
}  # fmt: skip

# What bindings/newer.h gives to an older installed header, and what the code relies on beside it.
COMMON_VALUES = {
    "KVM_API_VERSION": 12, "KVM_MEM_LOG_DIRTY_PAGES": 1, "KVM_MEM_READONLY": 2, "KVM_MEM_GUEST_MEMFD": 4,
    "KVM_EXIT_IO": 2, "KVM_EXIT_HLT": 5, "KVM_EXIT_MMIO": 6, "KVM_EXIT_SHUTDOWN": 8, "KVM_EXIT_FAIL_ENTRY": 9,
    "KVM_EXIT_INTERNAL_ERROR": 17, "KVM_EXIT_SYSTEM_EVENT": 24, "KVM_EXIT_X86_RDMSR": 29,
    "KVM_EXIT_X86_WRMSR": 30, "KVM_EXIT_MEMORY_FAULT": 39, "KVM_EXIT_IO_IN": 0, "KVM_EXIT_IO_OUT": 1,
    "KVM_CAP_IRQCHIP": 0, "KVM_CAP_MAX_VCPUS": 66, "KVM_CAP_ONE_REG": 70, "KVM_CAP_SYNC_REGS": 74,
    "KVM_CAP_DIRTY_LOG_RING": 192, "KVM_CAP_BINARY_STATS_FD": 203, "KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP": 225,
    "KVM_DIRTY_LOG_PAGE_OFFSET": 64,
    "KVM_CAP_USER_MEMORY2": 231, "KVM_CAP_MEMORY_FAULT_INFO": 232, "KVM_CAP_MEMORY_ATTRIBUTES": 233,
    "KVM_CAP_GUEST_MEMFD": 234, "KVM_CAP_VM_TYPES": 235, "KVM_CAP_PRE_FAULT_MEMORY": 236,
    "KVM_CAP_GUEST_MEMFD_FLAGS": 244, "GUEST_MEMFD_FLAG_MMAP": 1, "GUEST_MEMFD_FLAG_INIT_SHARED": 2,
    "KVM_REG_X86": 0x2000000000000000, "KVM_REG_ARM64": 0x6000000000000000, "KVM_REG_SIZE_SHIFT": 52,
    "KVM_REG_SIZE_U32": 0x0020000000000000, "KVM_REG_SIZE_U64": 0x0030000000000000,
}  # fmt: skip
X86_VALUES = {
    "KVM_CAP_XSAVE": 55, "KVM_CAP_XCRS": 56, "KVM_CAP_SREGS2": 200, "KVM_CAP_XSAVE2": 208,
    "KVM_CAP_SYS_ATTRIBUTES": 209, "KVM_CAP_DISABLE_QUIRKS2": 213, "KVM_CAP_X86_TRIPLE_FAULT_EVENT": 218,
    "KVM_CPUID_FLAG_SIGNIFCANT_INDEX": 1, "KVM_X86_QUIRK_STUFF_FEATURE_MSRS": 0x100,
    "KVM_X86_QUIRK_SLOT_ZAP_ALL": 0x80, "KVM_X86_QUIRK_VMCS12_ALLOW_FREEZE_IN_SMM": 0x400,
    "KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT": 0x800,
    "KVM_X86_QUIRK_IGNORE_GUEST_PAT": 0x200, "KVM_X86_GRP_SYSTEM": 0, "KVM_X86_XCOMP_GUEST_SUPP": 0,
    "KVM_X86_REG_TYPE_MSR": 2, "KVM_X86_REG_TYPE_KVM": 3, "KVM_REG_GUEST_SSP": 0,
    "KVM_CAP_X86_USER_SPACE_MSR": 188, "KVM_CAP_X86_MSR_FILTER": 189, "KVM_CAP_EXIT_ON_EMULATION_FAILURE": 204,
    "KVM_MSR_EXIT_REASON_FILTER": 4, "KVM_MSR_FILTER_READ": 1, "KVM_MSR_FILTER_WRITE": 2,
    "KVM_MSR_FILTER_DEFAULT_DENY": 1, "KVM_MSR_FILTER_MAX_BITMAP_SIZE": 0x600,
    "ARCH_GET_XCOMP_SUPP": 0x1021, "ARCH_GET_XCOMP_PERM": 0x1022, "ARCH_REQ_XCOMP_PERM": 0x1023,
    "ARCH_GET_XCOMP_GUEST_PERM": 0x1024, "ARCH_REQ_XCOMP_GUEST_PERM": 0x1025,
}  # fmt: skip
ARM64_VALUES = {
    "KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES": 230, "KVM_CAP_ARM_WRITABLE_IMP_ID_REGS": 239,
    "KVM_CAP_ARM_SYSTEM_SUSPEND": 216, "KVM_CAP_COUNTER_OFFSET": 227,
    "KVM_CAP_ARM_EL2": 240, "KVM_CAP_ARM_EL2_E2H0": 241, "KVM_ARM_FEATURE_ID_RANGE": 0,
    "KVM_ARM_VCPU_HAS_EL2": 7, "KVM_ARM_VCPU_HAS_EL2_E2H0": 8, "KVM_ARM_VCPU_SVE": 4, "KVM_CAP_ARM_SVE": 170,
}  # fmt: skip
# Structs that newer.h defines and no cdef repeats.
NEWER_SIZES = {"kvm_memory_attributes": 32, "kvm_pre_fault_memory": 64}

_DECLARED = re.compile(r"^#define (\w+) \.\.\.$", re.MULTILINE)


def declared(part: str) -> list[str]:
    """The constants that one cdef file declares."""
    return _DECLARED.findall((BINDINGS / "cdef" / f"{part}.h").read_text())


def size_field(request: int) -> int:
    """The size that an _IOC number carries."""
    return request >> 16 & 0x3FFF


def native() -> tuple[str, dict[str, tuple[int, str]], dict[str, int], dict[str, int]]:
    """The running architecture's cdef and tables."""
    if MACHINE == "aarch64":
        return "arm64", ARM64, ARM64_SIZES, ARM64_VALUES
    return "x86", X86, X86_SIZES, X86_VALUES


@pytest.mark.parametrize("name", COMMON)
def test_a_common_request_number_is_that_of_the_uapi(name: str) -> None:
    assert getattr(lib, name) == COMMON[name][0]


@on_x86
@pytest.mark.parametrize("name", X86)
def test_an_x86_request_number_is_that_of_the_uapi(name: str) -> None:
    assert getattr(lib, name) == X86[name][0]


@on_arm64
@pytest.mark.parametrize("name", ARM64)
def test_an_arm64_request_number_is_that_of_the_uapi(name: str) -> None:
    assert getattr(lib, name) == ARM64[name][0]


def test_every_declared_request_number_is_compared() -> None:
    part, requests, _, _ = native()
    found = set()
    for name in declared("common") + declared(part):
        value = getattr(lib, name)
        if name.startswith("KVM_") and value >> 8 & 0xFF == 0xAE and 0 < value < 1 << 32:
            found.add(name)
    compared = set(COMMON) | set(requests) | (ARM64_OWN_SIZE if part == "arm64" else set())
    assert found == compared


@pytest.mark.parametrize("name", [name for name, (_, struct) in COMMON.items() if struct])
def test_a_common_request_carries_the_size_of_its_struct(name: str) -> None:
    number, struct = COMMON[name]
    assert size_field(number) == ffi.sizeof(f"struct {struct}")


@on_x86
@pytest.mark.parametrize("name", [name for name, (_, struct) in X86.items() if struct])
def test_an_x86_request_carries_the_size_of_its_struct(name: str) -> None:
    number, struct = X86[name]
    assert size_field(number) == ffi.sizeof(f"struct {struct}")


def test_every_struct_has_its_size_in_the_uapi() -> None:
    _, _, sizes, _ = native()
    wanted = COMMON_SIZES | sizes
    assert {name: ffi.sizeof(f"struct {name}") for name in wanted} == wanted


def test_every_declared_struct_has_a_known_size() -> None:
    part, _, sizes, _ = native()
    structs = set()
    for file in ("common", part):
        structs |= set(re.findall(r"^struct (\w+) \{", (BINDINGS / "cdef" / f"{file}.h").read_text(), re.MULTILINE))
    # Those of the shim are not the uapi's.
    structs = {name for name in structs if not name.startswith("vmm_")}
    assert structs - {"kvm_run"} == (set(COMMON_SIZES) | set(sizes)) - {"kvm_run"}


@pytest.mark.parametrize(
    ("struct", "path", "offset"),
    [
        ("kvm_run", ("immediate_exit",), 1),
        ("kvm_run", ("exit_reason",), 8),
        ("kvm_run", ("flags",), 14),
        ("kvm_run", ("cr8",), 16),
        ("kvm_run", ("apic_base",), 24),
        ("kvm_run", ("io",), 32),
        ("kvm_run", ("io", "size"), 33),
        ("kvm_run", ("io", "port"), 34),
        ("kvm_run", ("io", "count"), 36),
        ("kvm_run", ("io", "data_offset"), 40),
        ("kvm_run", ("mmio", "data"), 40),
        ("kvm_run", ("mmio", "len"), 48),
        ("kvm_run", ("mmio", "is_write"), 52),
        ("kvm_run", ("internal", "data"), 40),
        ("kvm_run", ("msr", "reason"), 40),
        ("kvm_run", ("msr", "index"), 44),
        ("kvm_run", ("msr", "data"), 48),
        ("kvm_run", ("kvm_valid_regs",), 288),
        ("kvm_run", ("kvm_dirty_regs",), 296),
        ("kvm_userspace_memory_region2", ("guest_memfd_offset",), 32),
        ("kvm_userspace_memory_region2", ("guest_memfd",), 40),
        ("kvm_enable_cap", ("args",), 8),
        ("kvm_device_attr", ("addr",), 16),
        ("kvm_reg_list", ("reg",), 8),
    ],
)
def test_a_common_field_is_at_its_offset_in_the_uapi(struct: str, path: tuple[str, ...], offset: int) -> None:
    assert ffi.offsetof(f"struct {struct}", *path) == offset


@on_x86
@pytest.mark.parametrize(
    ("struct", "path", "offset"),
    [
        ("kvm_regs", ("rip",), 128),
        ("kvm_regs", ("rflags",), 136),
        ("kvm_segment", ("selector",), 12),
        ("kvm_segment", ("unusable",), 22),
        ("kvm_sregs", ("gdt",), 192),
        ("kvm_sregs", ("cr0",), 224),
        ("kvm_sregs", ("efer",), 264),
        ("kvm_sregs", ("interrupt_bitmap",), 280),
        ("kvm_sregs2", ("flags",), 280),
        ("kvm_sregs2", ("pdptrs",), 288),
        ("kvm_fpu", ("fcw",), 128),
        ("kvm_fpu", ("xmm",), 152),
        ("kvm_fpu", ("mxcsr",), 408),
        ("kvm_cpuid2", ("entries",), 8),
        ("kvm_cpuid_entry2", ("eax",), 12),
        ("kvm_msrs", ("entries",), 8),
        ("kvm_msr_list", ("indices",), 4),
        ("kvm_xcrs", ("xcrs",), 8),
        ("kvm_xcr", ("value",), 8),
        ("kvm_debugregs", ("dr6",), 32),
        ("kvm_debugregs", ("flags",), 48),
        ("kvm_vcpu_events", ("nmi",), 12),
        ("kvm_vcpu_events", ("sipi_vector",), 16),
        ("kvm_vcpu_events", ("flags",), 20),
        ("kvm_vcpu_events", ("smi",), 24),
        ("kvm_vcpu_events", ("triple_fault",), 28),
        ("kvm_msr_filter", ("ranges",), 8),
        ("kvm_msr_filter_range", ("bitmap",), 16),
        ("kvm_vcpu_events", ("exception_has_payload",), 55),
        ("kvm_vcpu_events", ("exception_payload",), 56),
    ],
)
def test_an_x86_field_is_at_its_offset_in_the_uapi(struct: str, path: tuple[str, ...], offset: int) -> None:
    assert ffi.offsetof(f"struct {struct}", *path) == offset


def test_every_constant_has_its_value_in_the_uapi() -> None:
    _, _, _, values = native()
    wanted = COMMON_VALUES | values
    assert {name: getattr(lib, name) for name in wanted} == wanted


def _newer() -> dict[str, str]:
    """The definitions of newer.h by name, its include guard left out."""
    text = re.sub(r"/\*.*?\*/", "", (BINDINGS / "newer.h").read_text(), flags=re.DOTALL)
    return dict(re.findall(r"^#define (\w+) (.+)$", text, re.MULTILINE))


def _evaluate(expression: str) -> int:
    """The value of one of newer.h's expressions: a number, a shifted 1, or an _IOC."""
    if match := re.fullmatch(r"(\d+)|\((\d)[UL]* << (\d+)\)", expression.strip()):
        return int(match[1]) if match[1] else int(match[2]) << int(match[3])
    match = re.fullmatch(r"_IO(W|R|WR)\(KVMIO, (0x[0-9a-f]+), struct (\w+)\)", expression.strip())
    assert match, f"newer.h has an expression that this test does not understand: {expression}"
    size = (COMMON_SIZES | ARM64_SIZES | NEWER_SIZES)[match[3]]
    return {"W": 1, "R": 2, "WR": 3}[match[1]] << 30 | size << 16 | 0xAE00 | int(match[2], 16)


@pytest.mark.parametrize("name", sorted(_newer()))
def test_newer_h_gives_the_value_of_the_uapi(name: str) -> None:
    # The compiler only sees a value of newer.h where the installed header lacks it, so the text is compared.
    requests = {request: number for request, (number, _) in (COMMON | X86 | ARM64).items()}
    wanted = requests | COMMON_VALUES | X86_VALUES | ARM64_VALUES
    assert _evaluate(_newer()[name]) == wanted[name]


def test_newer_h_guards_every_definition() -> None:
    lines = (BINDINGS / "newer.h").read_text().splitlines()
    depth: list[str] = []
    for line in lines:
        words = line.split()
        if words and words[0] in ("#ifndef", "#ifdef", "#if"):
            depth.append(line)
        elif words[:1] == ["#endif"]:
            depth.pop()
        elif words[:1] == ["#define"] and words[1] != "VMM_NEWER_H":
            # What an older header defines as 0 is not there for us.
            zero = depth[-1].startswith(f"#if {words[1]} == 0 ")
            assert len(depth) >= 2 and (depth[-1].startswith("#ifndef ") or zero), line
    assert not depth


def test_the_module_uses_the_stable_abi() -> None:
    spec = importlib.util.find_spec("vmm._kvm")
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).name == "_kvm.abi3.so"


def test_arm64_structs_have_their_size_in_the_uapi() -> None:
    inline = FFI()
    for part in ("common", "arm64"):
        inline.cdef((BINDINGS / "cdef" / f"{part}.h").read_text())
    assert {name: inline.sizeof(f"struct {name}") for name in ARM64_SIZES} == ARM64_SIZES
    carried = {name: size_field(number) for name, (number, struct) in ARM64.items() if struct}
    assert carried == {name: ARM64_SIZES[struct] for name, (_, struct) in ARM64.items() if struct}


def test_every_arm64_request_is_declared_for_arm64_only() -> None:
    assert set(ARM64) <= set(declared("arm64"))
    assert not set(ARM64) & set(declared("common"))
