# SPDX-License-Identifier: Apache-2.0
"""The files that a machine starts from: cpio archives, the kernel's image, the option ROM, modules."""

import io
import itertools
import lzma
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from labs.bochs.machine import configuration
from labs.bochs.rom import ROM_ADDRESS, StartInfo, build_rom
from labs.cpio import CpioWriter
from labs.errors import LabError
from labs.image import Setup, Task, agent_archive, task_frames
from labs.kernels import module_order, strip_signature
from labs.processors import parse_processor
from labs.userland import leave_out
from labs.vmlinux import flatten, unpack_bzimage


def read_cpio(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Return name -> (mode, content, device) of an archive, as the kernel would read it."""
    entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        assert at % 4 == 0
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, major, minor, name_size = fields[1], fields[6], fields[9], fields[10], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        at = (at + 110 + name_size + 3) // 4 * 4
        content = data[at : at + size]
        at = (at + size + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert not data[at:].strip(b"\0")
            return entries
        assert name not in entries
        entries[name] = (mode, content, (major, minor))


def write_cpio(fill: Callable[[CpioWriter], None]) -> bytes:
    buffer = io.BytesIO()
    with CpioWriter(buffer) as out:
        fill(out)
    return buffer.getvalue()


def test_cpio_holds_files_folders_links_and_devices() -> None:
    def fill(out: CpioWriter) -> None:
        out.file("a/b/file", b"content", 0o755)
        out.folder("a/b")
        out.link("a/link", "b/file")
        out.device("dev/console", 5, 1)

    entries = read_cpio(write_cpio(fill))
    assert list(entries) == ["a", "a/b", "a/b/file", "a/link", "dev", "dev/console"]
    assert entries["a/b/file"][:2] == (stat.S_IFREG | 0o755, b"content")
    assert entries["a/link"][:2] == (stat.S_IFLNK | 0o777, b"b/file")
    assert entries["dev/console"][0] == stat.S_IFCHR | 0o600
    assert entries["dev/console"][2] == (5, 1)


def test_cpio_archives_can_follow_one_another() -> None:
    data = write_cpio(lambda out: out.file("x", b"1"))
    assert len(data) % 4 == 0
    assert data == write_cpio(lambda out: out.file("x", b"1"))


def test_cpio_of_a_tree_leaves_out_what_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "drop").mkdir()
    (tmp_path / "keep/program").write_bytes(b"p")
    (tmp_path / "keep/program").chmod(0o755)
    (tmp_path / "drop/file").write_bytes(b"f")
    (tmp_path / "keep/link").symlink_to("/nowhere")
    entries = read_cpio(write_cpio(lambda out: out.tree(tmp_path, "usr", lambda name: name == "drop")))
    assert set(entries) == {"usr", "usr/keep", "usr/keep/program", "usr/keep/link"}
    assert entries["usr/keep/program"][0] & 0o111


def test_cpio_of_an_error_has_no_trailer() -> None:
    buffer = io.BytesIO()
    with pytest.raises(ValueError), CpioWriter(buffer):
        raise ValueError
    assert b"TRAILER" not in buffer.getvalue()


def test_the_job_tells_the_agent_its_command_modules_and_settings(tmp_path: Path) -> None:
    agent, module = tmp_path / "agent", tmp_path / "kvm.ko"
    agent.write_bytes(b"agent")
    module.write_bytes(b"module")
    task = Task(["echo", "two words", ""], {"LAB_SELF": "a"}, {"given": module})
    entries = read_cpio(agent_archive(agent, Setup({"channel": "port"}, [module]), task))
    assert entries["init"][:2] == (stat.S_IFREG | 0o755, b"agent")
    assert entries["lab/command"][1] == b"echo\0two words\0\0"
    assert entries["lab/modules"][1] == b"/lab/kvm.ko\n"
    assert entries["lab/kvm.ko"][1] == entries["in/given"][1] == b"module"
    assert entries["lab/settings"][1] == b"channel port\n"
    assert b"LAB_SELF=a\0" in entries["lab/names"][1]


def test_a_waiting_agent_is_told_the_same_later(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_bytes(b"agent")
    task = Task(["echo", "hi"], {"LAB_SELF": "a"}, {"given": agent})
    now = read_cpio(agent_archive(agent, Setup({"channel": "port"}), task))
    waiting = read_cpio(agent_archive(agent, Setup({"channel": "port"}), None))
    assert waiting["lab/settings"][1] == b"channel port\nwait yes\n"
    frames = cut_frames(task_frames(task))
    later = dict(payload.split(b"\0", 1) for kind, payload in frames if kind == "W")
    assert later == {b"/" + name.encode(): now[name][1] for name in set(now) - set(waiting) - {"in"}} != {}
    kinds = [kind for kind, _ in frames]
    assert kinds[-1] == "G" and kinds.count("S") == kinds.count("T") == 1
    seeds = {dict(cut_frames(task_frames(task)))["S"] for _ in range(3)}
    assert len(seeds) == 3, "continued machines would draw the same random numbers"


def cut_frames(data: bytes) -> list[tuple[str, bytes]]:
    frames = []
    while data:
        end = 7 + int.from_bytes(data[3:7], "little")
        frames.append((chr(data[2]), data[7:end]))
        data = data[end:]
    return frames


@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        ("usr/lib/python3.13/json/decoder.py", False),
        ("usr/lib/python3.13/test/test_json.py", True),
        ("usr/lib/x86_64-linux-gnu/libffi.so.8", False),
        ("usr/lib/aarch64-linux-gnu/libcrypto.so.3", True),
        ("usr/bin/python3.13", False),
        ("usr/bin/openssl", True),
        ("usr/share/doc/python3/README", True),
        ("usr/lib/python3/dist-packages/rich/__pycache__/box.cpython-313.pyc", True),
        ("usr/lib/python3/dist-packages/click/core.py", False),
        ("bin", True),
    ],
)
def test_the_userland_has_what_python_needs_and_no_more(path: str, left_out: bool) -> None:
    assert leave_out(path) is left_out


def fake_vmlinux(*, pvh: bool = True) -> bytes:
    """Return an ELF file with two segments, a per-CPU segment at address zero, and a PVH note."""
    note = struct.pack("<III", 4, 8, 18) + b"Xen\0" + struct.pack("<Q", 0x1000B20)
    other = struct.pack("<III", 4, 4, 1) + b"GNU\0" + b"\1\2\3\4"
    notes = other + (note if pvh else b"")
    data_at = 64 + 4 * 56
    blocks = [(1, 0x1000000, b"text"), (1, 0x1000010, b"data"), (1, 0, b"percpu"), (4, 0, notes)]
    headers, contents = b"", b""
    for kind, physical, block in blocks:
        offset = data_at + len(contents)
        headers += struct.pack("<IIQQQQQQ", kind, 0, offset, 0, physical, len(block), len(block), 1)
        contents += block
    ident = b"\x7fELF\2\1\1" + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 4, 0, 0, 0)
    return head + headers + contents


def fake_bzimage(payload: bytes) -> bytes:
    setup = bytearray(0x400)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 16, len(payload))
    return bytes(setup) + bytes(16) + payload


def no_tool(name: str, data: bytes) -> bytes:
    raise AssertionError(name)


def test_a_kernel_is_flattened_around_its_segments() -> None:
    flat = flatten(fake_vmlinux())
    assert (flat.address, flat.entry) == (0x1000000, 0x1000B20)
    assert flat.image == b"text" + bytes(12) + b"data"


def test_a_kernel_without_pvh_entry_is_refused() -> None:
    with pytest.raises(LabError, match="PVH"):
        flatten(fake_vmlinux(pvh=False))


def test_a_bzimage_is_unpacked_with_the_size_behind_the_stream() -> None:
    packed = lzma.compress(fake_vmlinux()) + struct.pack("<I", 12345)
    assert unpack_bzimage(fake_bzimage(packed), no_tool) == fake_vmlinux()


@pytest.mark.parametrize(("magic", "tool"), [(b"\x28\xb5\x2f\xfd", "zstd"), (b"\x02\x21\x4c\x18", "lz4")])
def test_other_compressions_go_to_their_tool(magic: bytes, tool: str) -> None:
    def unpack(name: str, data: bytes) -> bytes:
        assert (name, data) == (tool, magic + b"stream")
        return fake_vmlinux()

    assert unpack_bzimage(fake_bzimage(magic + b"streamSIZE"), unpack) == fake_vmlinux()


def test_an_unknown_compression_and_another_architecture_are_named() -> None:
    with pytest.raises(LabError, match="not known"):
        unpack_bzimage(fake_bzimage(b"????????"), no_tool)
    with pytest.raises(LabError, match="x86"):
        unpack_bzimage(bytes(0x400), no_tool)


def test_the_rom_is_one_that_a_bios_accepts() -> None:
    rom = build_rom(0x1000B20, StartInfo(512 << 20, 0x1C000000, 1000, "console=ttyS0"))
    assert rom[:2] == b"\x55\xaa"
    assert rom[2] * 512 == len(rom)
    assert len(rom) % 2048 == 0
    assert sum(rom) % 256 == 0
    assert b"\xb8" + struct.pack("<I", 0x1000B20) + b"\xff\xe0" in rom  # mov eax, entry; jmp eax


def test_the_rom_carries_a_start_info_with_pointers_into_low_memory() -> None:
    memory, low, at = 512 << 20, 0x20000, 0x200
    rom = build_rom(0x1000000, StartInfo(memory, 0x1C000000, 1234, "quiet panic=0"))
    magic, version, _, modules, module, line, _, ranges, count, _ = struct.unpack_from("<IIIIQQQQII", rom, at)
    assert (magic, version, modules) == (0x336EC578, 1, 1)
    assert struct.unpack_from("<QQ", rom, at + module - low) == (0x1C000000, 1234)
    assert rom[at + line - low :].startswith(b"quiet panic=0\0")
    listed = [struct.unpack_from("<QQII", rom, at + ranges - low + 24 * i) for i in range(count)]
    assert listed == sorted(listed)
    assert all(first[0] + first[1] <= second[0] for first, second in itertools.pairwise(listed))
    ram = [(start, size) for start, size, kind, _ in listed if kind == 1]
    assert ram == [(0, 0x9FC00), (0x100000, memory - 0x110000)]


def test_the_rom_loads_a_descriptor_table_that_lies_in_it() -> None:
    rom = build_rom(0x1000000, StartInfo(256 << 20, 0, 0, ""))
    (table,) = struct.unpack_from("<H", rom, rom.index(b"\x66\x2e\x0f\x01\x16") + 5)
    limit, address = struct.unpack_from("<HI", rom, table)
    assert limit == 23
    code, data = struct.unpack_from("<8xQQ", rom, address - ROM_ADDRESS)
    assert (code >> 40 & 0xFF, data >> 40 & 0xFF) == (0x9B, 0x93)
    jump = rom.index(b"\x66\xea") + 2
    target, selector = struct.unpack_from("<IH", rom, jump)
    assert (selector, target - ROM_ADDRESS) == (8, jump + 6)


def test_a_rom_that_would_not_fit_is_refused() -> None:
    with pytest.raises(LabError, match="command line"):
        build_rom(0, StartInfo(256 << 20, 0, 0, "x" * 20000))


def test_the_emulator_is_configured_without_disks_and_network() -> None:
    text = configuration(
        memory=512,
        model="m",
        processor=parse_processor("m,-pku,+cet,-amx"),
        processors=2,
        msrs="x",
        bios="b",
        vga_bios="v",
        rom="r",
        images=[("k", 16), ("i", 32)],
        serial="s",
        log="l",
    )
    (cpu,) = [line for line in text.splitlines() if line.startswith("cpu: ")]
    assert cpu.startswith("cpu: model=m, count=2, ")
    assert cpu.endswith(', msrs=x, add_features="cet", exclude_features="pku,amx"')
    assert "optramimage1: file=k, address=0x10\n" in text
    assert "optramimage2: file=i, address=0x20\n" in text
    assert "ata0: enabled=0\n" in text
    for word in ("ne2k", "e1000", "eth_", "usb"):
        assert word not in text


def test_modules_come_after_what_they_need() -> None:
    needs = {"kvm_intel": ["kvm", "irqbypass"], "kvm": ["irqbypass"], "irqbypass": []}
    assert module_order("kvm_intel", needs.__getitem__) == ["irqbypass", "kvm", "kvm_intel"]


def test_a_signature_is_cut_off_and_an_unsigned_module_kept() -> None:
    signature = b"S" * 40
    info = bytes(8) + struct.pack(">I", len(signature))
    module = b"\x7fELF code"
    assert strip_signature(module + signature + info + b"~Module signature appended~\n") == module
    assert strip_signature(module) == module
