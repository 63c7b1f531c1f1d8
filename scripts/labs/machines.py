# SPDX-License-Identifier: Apache-2.0
"""What the machines have in common: options, what a run consists of, and the interface of an emulator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from .cache import Cache
from .config import TOOL_SUITE
from .kernels import Kernel, fetch_kernel, is_path, own_kernel
from .processors import Processor, parse_processor

__all__ = ["MODES", "Boot", "Machine", "Options", "Port"]

#: Kernel arguments of every machine: what a short-lived one needs neither to protect nor to test.
COMMON_ARGUMENTS = (
    "quiet panic=0 nokaslr mitigations=off nowatchdog random.trust_cpu=on cryptomgr.notests "
    "rcupdate.rcu_expedited=1 rcupdate.rcu_cpu_stall_suppress=1 audit=0 lsm=capability init_on_alloc=0 "
    "randomize_kstack_offset=off cgroup_disable=memory"
)


#: how sve's KVM may use EL2
MODES = ("vhe", "nvhe", "protected", "nested")


@dataclass(frozen=True)
class Options:
    """What the user chose."""

    kernel: str  # as releases.parse_kernel takes it, or the path of a file
    cpu: str | None = None  # as processors.parse_processor takes it
    mode: str = "vhe"
    memory: int | None = None
    append: str = ""  # more kernel arguments
    cpus: int | None = None
    emulator: str = TOOL_SUITE  # the suite whose QEMU to use
    replacements: Path | None = None  # a folder of modules to insert instead of the kernel's

    @property
    def processor(self) -> Processor:
        """The processor asked for."""
        return parse_processor(self.cpu) if self.cpu is not None else Processor()


@dataclass(frozen=True)
class Port:
    """One end of a cable between two machines: a connected socket, inherited by the emulator."""

    socket: int  # file descriptor
    mac: str


@dataclass(frozen=True)
class Boot:
    """One start of a machine: its files, and where its console and its data go."""

    folder: Path
    kernel: Kernel
    initrd: Path | None  # None when a state is continued
    data: int  # file descriptor of a socket for the frames of the agent
    console: Path  # a file, or a terminal when it is interactive
    interactive: bool = False
    port: Port | None = None
    control: int | None = None  # file descriptor of a socket on which the emulator's monitor takes commands
    state: int | None = None  # file descriptor of a saved state to continue instead of booting

    @property
    def inherited(self) -> list[int]:
        """The descriptors besides `data` that the emulator's command line names."""
        cable = self.port.socket if self.port is not None else None
        return [descriptor for descriptor in (cable, self.control, self.state) if descriptor is not None]


class Machine(ABC):
    """An emulator with a processor; subclasses know its command line."""

    name: str
    arch: str
    #: the processor's model, unless --cpu names another
    model: str
    #: modules to insert, then those for a network
    modules: tuple[str, ...]
    network_modules: tuple[str, ...] = ("virtio_pci", "virtio_net")
    #: settings of the agent: where its frames go, how it switches off, the console's device
    channel: str
    power: str
    console_device: str
    #: whether the emulator runs in one thread, so that a second machine is for free where there is a second CPU
    one_thread = False
    #: whether the emulator can save its state, so that a booted machine is kept and continued
    keeps_state = False
    #: whether it opens the file with its state by a name, for it takes no descriptor of a file
    opens_state = False

    def __init__(self, cache: Cache, options: Options) -> None:
        self.cache = cache
        self.options = options

    def kernel(self) -> Kernel:
        """Return the kernel, fetched if need be."""
        name = self.options.kernel
        if is_path(name):
            return own_kernel(self.cache, Path(name), self.arch)
        return fetch_kernel(self.cache, name, self.arch)

    @abstractmethod
    def prepare(self) -> None:
        """Fetch and build the emulator; raise LabError for options it does not have."""

    @abstractmethod
    def command(self, boot: Boot) -> list[str]:
        """Return the emulator's command line, writing files into `boot.folder` if it needs any."""

    def environment(self) -> dict[str, str]:
        """Return the environment variables that the emulator needs."""
        return {}

    @property
    def data_is_stdout(self) -> bool:
        """Whether the emulator writes the frames to its standard output instead of to `boot.data`."""
        return False
