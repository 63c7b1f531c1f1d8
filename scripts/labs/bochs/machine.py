# SPDX-License-Identifier: Apache-2.0
"""The machine `amx`: a Sapphire Rapids with VMX, AMX and XFD, emulated by the Bochs built here."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from ..cache import Cache
from ..config import BOCHS_SUITE
from ..errors import LabError, run_tool
from ..hostroot import host_arch
from ..machines import COMMON_ARGUMENTS, Boot, Machine, Options
from ..packages import Archive
from ..processors import Processor
from .build import build_bochs
from .rom import ROM_ADDRESS, StartInfo, build_rom

__all__ = ["Amx", "configuration"]

_MEGABYTE = 1 << 20

#: Emulated instructions per second of emulated time.  Much less and timers fire all the time, much more and
#: every sleep takes long; from 100 to 400 million the machine is equally fast.
_SPEED = 200_000_000

#: which of the emulator's models are AMD's: it does not say
_AMD = ("athlon64", "turion64", "phenom", "zambezi", "trinity", "ryzen")

#: What is not initialised in a machine that boots for each run and traces nothing, a fifth of a boot: the names of
#: enumerators in the formats of trace events, and a second look at which functions can be traced.
#: Source: init/main.c, initcall_blacklisted.
_LEFT_OUT = "initcall_blacklist=trace_eval_init,ftrace_check_for_weak_functions"

#: a time limit in seconds, and how long the emulator runs when it is asked about a processor (millions of ticks)
_START_SECONDS, _START_TICKS = 60.0, 1

#: A register of every Intel processor since 2006 that Bochs's model lacks, in the format of its file of MSRs:
#: IA32_MISC_ENABLE (1A0H) says that fast strings are on and that branch tracing and PEBS are unavailable.
#: Without it Linux takes ERMS for disabled but not FSRM, a combination that memmove() before 6.6 fails with.
_MSRS = "1a0 0 00000000 00001801 00000000 00000000 00000000 00000000\n"


class Amx(Machine):
    """x86-64 with AMX; KVM's back end is kvm_intel."""

    name = "amx"
    arch = "amd64"
    model = "sapphire_rapids"
    # The last two: a process can have the kernel use its vector registers, by AF_ALG.
    modules = ("kvm_intel", "algif_skcipher", "aesni_intel")
    channel = "port"
    power = "bochs"
    console_device = "/dev/ttyS0"
    one_thread = True

    def __init__(self, cache: Cache, options: Options) -> None:
        super().__init__(cache, options)
        self._model = options.processor.model or self.model
        if self._model.startswith(_AMD):
            self.modules = ("kvm_amd", *self.modules[1:])

    def prepare(self) -> None:
        self._bochs = build_bochs(self.cache, self.options.cpus or 1)
        archive = Archive(self.cache, BOCHS_SUITE, host_arch())
        packages = [archive.candidate("bochsbios"), archive.candidate("vgabios")]

        def make(folder: Path) -> None:
            with self.cache.scratch("bios-") as unpacked:
                archive.extract(packages, unpacked)
                for name in ("BIOS-bochs-latest", "vgabios.bin"):
                    (found,) = [path for path in unpacked.rglob(name) if path.is_file()]
                    (folder / name).write_bytes(found.read_bytes())
            self.cache.manifest(folder, archive.describe(packages))

        self._bios = self.cache.build("bios", [package.deb for package in packages], make, "extracting the BIOS")
        if self.options.cpu is not None:
            self._try_processor()

    def _try_processor(self) -> None:
        """Have the emulator itself say whether it has the processor."""
        wanted = self.options.processor
        wanted.require_no_lengths()
        with self.cache.scratch("processor-") as folder:
            listing = folder / "models"
            run_tool([self._bochs, "--help", "cpu"], "Starting Bochs", log=listing, timeout=_START_SECONDS)
            wanted.require_model(self.name, re.findall(r"^(\w+)$", listing.read_text(), re.MULTILINE))
            text = self._configuration(folder, memory=16, rom=None, images=[], serial="mode=null")
            (folder / "bochsrc").write_text(text)
            command: list[str | Path] = [self._bochs, "-q", "-f", folder / "bochsrc", "-benchmark", str(_START_TICKS)]
            # Its exit status is 1 in any case.
            with contextlib.suppress(LabError):
                run_tool(command, "Starting Bochs", timeout=_START_SECONDS)
            log = (folder / "bochs.log").read_text(errors="replace")
        reason = re.search(r">>PANIC<< *(.*)", log)
        if reason is not None:
            raise LabError(f"--cpu {wanted.text} is not known to amx: {reason[1]}.")

    @property
    def data_is_stdout(self) -> bool:
        return True  # that is where Bochs writes what a program sends to port 0xE9

    def command(self, boot: Boot) -> list[str]:
        memory = (self.options.memory or 512) * _MEGABYTE
        assert boot.initrd is not None, "amx does not keep state"
        size = boot.initrd.stat().st_size
        # high in RAM, below the BIOS's tables, out of the kernel's way
        initrd_address = (memory - _MEGABYTE - size) & ~(_MEGABYTE - 1)
        address, entry = boot.kernel.layout
        if initrd_address < address + boot.kernel.flat.stat().st_size + 64 * _MEGABYTE:
            raise LabError("The machine's memory is too small for its initial file system; give a larger --memory.")
        clock = f"tsc=reliable no_timer_check lpj={_SPEED // 250}"
        if self._model != self.model:
            # What the other models say of their clocks, if anything, is not true of the emulated one.
            clock += f" tsc_early_khz={_SPEED // 1000}"
        line = f"console=ttyS0,115200 {COMMON_ARGUMENTS} {_LEFT_OUT} {clock} {self.options.append}"
        rom = boot.folder / "boot.rom"
        rom.write_bytes(build_rom(entry, StartInfo(memory, initrd_address, size, line)))
        text = self._configuration(
            boot.folder,
            memory=memory // _MEGABYTE,
            rom=str(rom),
            images=[(str(boot.kernel.flat), address), (str(boot.initrd), initrd_address)],
            serial=f"mode=term, dev={boot.console}" if boot.interactive else f"mode=file, dev={boot.console}",
        )
        (boot.folder / "bochsrc").write_text(text)
        return [str(self._bochs), "-q", "-f", str(boot.folder / "bochsrc")]

    def _configuration(
        self, folder: Path, *, memory: int, rom: str | None, images: list[tuple[str, int]], serial: str
    ) -> str:
        """Return the text of a bochsrc whose files are in `folder`."""
        msrs = folder / "msrs"
        msrs.write_text(_MSRS)
        return configuration(
            memory=memory,
            model=self._model,
            processor=self.options.processor,
            processors=self.options.cpus or 1,
            bios=str(self._bios / "BIOS-bochs-latest"),
            msrs=str(msrs),
            vga_bios=str(self._bios / "vgabios.bin"),
            rom=rom,
            images=images,
            serial=serial,
            log=str(folder / "bochs.log"),
        )


def configuration(
    *,
    memory: int,
    model: str,
    processor: Processor,
    processors: int,
    msrs: str,
    bios: str,
    vga_bios: str,
    rom: str | None,
    images: list[tuple[str, int]],
    serial: str,
    log: str,
) -> str:
    """Return the text of a bochsrc; memory in MiB, `images` are files to load with their addresses."""
    changes = ""
    for key, names in (("add_features", processor.named(True)), ("exclude_features", processor.named(False))):
        changes += f', {key}="{",".join(names)}"' if names else ""
    lines = [
        "config_interface: textconfig",
        "display_library: nogui",
        f"cpu: model={model}, count={processors}, ips={_SPEED}, reset_on_triple_fault=0, msrs={msrs}{changes}",
        f"memory: guest={memory}, host={memory}, block_size=512",
        f"romimage: file={bios}, options=fastboot",
        f"vgaromimage: file={vga_bios}",
        *([f"optromimage1: file={rom}, address={ROM_ADDRESS:#x}"] if rom else []),
        *(
            f"optramimage{number}: file={file}, address={address:#x}"
            for number, (file, address) in enumerate(images, start=1)
        ),
        f"com1: enabled=1, {serial}",
        "port_e9_hack: enabled=1",
        "pci: enabled=1, chipset=i440fx",
        "ata0: enabled=0",
        "ata1: enabled=0",
        "boot: disk",
        "floppy_bootsig_check: disabled=1",
        "clock: sync=none, time0=utc",
        "speaker: enabled=0",
        f"log: {log}",
        "panic: action=fatal",
        "error: action=ignore",
        "info: action=ignore",
        "debug: action=ignore",
    ]
    return "\n".join(lines) + "\n"
