# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels: the package of each, its image in the form a machine starts, its modules in order.

An arm64 Image of one's own, which has all that a machine needs built in, takes the place of one of them.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cache import Cache
from .config import TOOL_SUITE
from .errors import LabError, run_tool
from .hostroot import HostRoot
from .packages import Archive, NotServed, Package
from .releases import IMAGES, find_release, parse_kernel
from .vmlinux import flatten, unpack_bzimage

__all__ = ["Kernel", "fetch_kernel", "is_path", "module_order", "own_kernel", "replace_modules", "strip_signature"]

#: architecture -> the modules that any machine may ask for
_MODULES = {
    "amd64": (
        "kvm_intel", "kvm_amd", "virtio_pci", "virtio_console", "virtio_net", "algif_skcipher", "aesni_intel",
    ),
    "arm64": ("virtio_pci", "virtio_console", "virtio_net", "algif_skcipher", "aes_ce_blk"),
}  # fmt: skip

#: what an Image has behind the first words of its header: Documentation/arch/arm64/booting.rst
_IMAGE_MAGIC, _IMAGE_MAGIC_AT = b"ARM\x64", 56
_OWN_KEPT = 8
_SIGNATURE_MAGIC = b"~Module signature appended~\n"


@dataclass(frozen=True)
class Kernel:
    """A kernel ready to be started, in a folder of the cache."""

    folder: Path
    release: str

    @property
    def image(self) -> Path:
        """What QEMU loads: the vmlinux of an x86 kernel, the Image of an arm64 one."""
        return self.folder / "image"

    @property
    def flat(self) -> Path:
        """What Bochs loads: the segments of an x86 kernel as one block of memory."""
        return self.folder / "flat"

    @property
    def layout(self) -> tuple[int, int]:
        """The physical address of `flat` and the address of its PVH entry."""
        layout = json.loads((self.folder / "layout.json").read_text())
        return layout["address"], layout["entry"]

    def modules(self, names: Sequence[str]) -> list[Path]:
        """Return the module files to insert for `names`, each after what it needs, built-in ones left out."""
        groups: dict[str, list[str]] = json.loads((self.folder / "modules.json").read_text())
        order = dict.fromkeys(file for name in names for file in groups[name])
        return [self.folder / "modules" / file for file in order]


def replace_modules(modules: Sequence[Path], folder: Path, release: str) -> list[Path]:
    """Return the module files of a kernel, those that `folder` has too taken from there.

    What else is in the folder is for other machines. A module that was built for another kernel is refused here:
    in the machine there would be no /dev/kvm, and no word why.
    """
    found = {_module_name(path): path for path in sorted(folder.glob("*.ko"))}
    chosen = [found.get(_module_name(path), path) for path in modules]
    if not set(chosen) & set(found.values()):
        names = ", ".join(path.name for path in modules)
        raise LabError(f"--modules {folder} has none of the modules that this machine inserts ({names}).")
    for path in set(chosen) & set(found.values()):
        match = re.search(rb"\bvermagic=(\S+)", path.read_bytes())
        built = match[1].decode() if match else "no kernel"
        if built != release:
            raise LabError(f"{path} was built for {built}, the machine runs {release}; build it for that one.")
    return chosen


def is_path(name: str) -> bool:
    """Tell whether a kernel is named by the path of its file, which has a slash."""
    return "/" in name


def own_kernel(cache: Cache, path: Path, arch: str) -> Kernel:
    """Return the kernel of an arm64 Image, kept by what the file holds."""
    if arch != "arm64":
        raise LabError(f"--kernel {path}: only sve takes the file of a kernel; svm and amx take --modules.")
    image = path.read_bytes()
    if image[_IMAGE_MAGIC_AT:][: len(_IMAGE_MAGIC)] != _IMAGE_MAGIC:
        raise LabError(f"--kernel {path} is no arm64 Image (is it packed?); give arch/arm64/boot/Image of a build.")
    release = re.search(rb"\bLinux version (\d\S+) ", image)
    if release is None:
        raise LabError(f"--kernel {path} does not say which Linux it is; give arch/arm64/boot/Image of a build.")

    def make(folder: Path) -> None:
        (folder / "image").write_bytes(image)
        (folder / "modules").mkdir()
        (folder / "modules.json").write_text(json.dumps({name: [] for name in _MODULES[arch]}))
        cache.manifest(folder, [{"kernel": str(path), "sha256": hashlib.sha256(image).hexdigest()}])

    entry = cache.build("own-kernel", [hashlib.sha256(image).hexdigest()], make, f"storing {path.name}")
    cache.prune("own-kernel", keep=_OWN_KEPT)
    return Kernel(entry, release[1].decode())


def fetch_kernel(cache: Cache, name: str, arch: str) -> Kernel:
    """Return the kernel of a name (`releases.parse_kernel`) for a Debian architecture.

    Raises NotServed when Debian has it no more, after a look at what it has now.
    """
    named = parse_kernel(name)
    archive = Archive(cache, named.suite, arch)
    try:
        return _fetch(archive, find_release(archive, named))
    except NotServed:
        raise
    except LabError as error:
        # The indices may be older than what the mirror has; if they are not, the reason is another.
        before = archive.versions(IMAGES)
        archive.refresh()
        if archive.versions(IMAGES) == before:
            raise error from None
        return _fetch(archive, find_release(archive, named))


def _fetch(archive: Archive, release: str) -> Kernel:
    """Return the kernel of a release, unpacked and stored if need be."""
    cache, modules = archive.cache, _MODULES[archive.arch]
    packages = _packages(archive, release)

    def make(folder: Path) -> None:
        with cache.scratch("kernel-") as unpacked:
            archive.extract(packages, unpacked)
            (image,) = [path for path in unpacked.rglob("vmlinuz*") if path.is_file() and not path.is_symlink()]
            (tree,) = [path for path in unpacked.glob("**/lib/modules/*") if path.is_dir()]
            _store_modules(tree, modules, folder)
            if archive.arch == "amd64":
                _store_x86_image(cache, image, folder)
            else:
                (folder / "image").write_bytes(image.read_bytes())
        cache.manifest(folder, archive.describe(packages))

    inputs = [[package.deb for package in packages], sorted(modules)]
    return Kernel(cache.build("kernel", inputs, make, f"unpacking kernel {release}"), release)


def _packages(archive: Archive, release: str) -> list[Package]:
    """Return the packages with the image and the modules: one up to 6.12, several in newer suites."""
    image = f"{IMAGES}{release}"
    names = re.findall(
        rf"\blinux-(?:base|binary|modules)-{re.escape(release)}", archive.fields(image).get("Depends", "")
    )
    return [archive.candidate(name) for name in dict.fromkeys(names or [image])]


def _store_x86_image(cache: Cache, image: Path, folder: Path) -> None:
    def unpack(tool: str, data: bytes) -> bytes:
        program = HostRoot(cache, TOOL_SUITE, [tool]).command(f"usr/bin/{tool}")
        return run_tool([*program, "-dcq"], "Decompressing the kernel", stdin=data)

    elf = unpack_bzimage(image.read_bytes(), unpack)
    flat = flatten(elf)
    (folder / "image").write_bytes(elf)
    (folder / "flat").write_bytes(flat.image)
    (folder / "layout.json").write_text(json.dumps({"address": flat.address, "entry": flat.entry}))


def _store_modules(tree: Path, names: Sequence[str], folder: Path) -> None:
    """Store modules unpacked and without signatures, which cost time and mean nothing here."""
    files = {_module_name(path): path for path in (tree / "kernel").rglob("*.ko*")}
    builtin = {_module_name(Path(line)) for line in (tree / "modules.builtin").read_text().splitlines()}
    contents = {}

    def needs(name: str) -> list[str]:
        if name in builtin:
            return []
        if name not in files:
            raise LabError(f"The kernel {tree.name} has no module {name}; choose another --kernel.")
        if name not in contents:
            packed = files[name].read_bytes()
            contents[name] = strip_signature(lzma.decompress(packed) if files[name].suffix == ".xz" else packed)
        return _dependencies(contents[name])

    groups = {}
    for name in names:
        order = [found for found in module_order(name, needs) if found not in builtin]
        groups[name] = [f"{found}.ko" for found in order]
    (folder / "modules").mkdir()
    for name, content in contents.items():
        (folder / "modules" / f"{name}.ko").write_bytes(content)
    (folder / "modules.json").write_text(json.dumps(groups))


def module_order(name: str, needs: Callable[[str], list[str]]) -> list[str]:
    """Return `name` after everything it needs, directly or not."""
    order: dict[str, None] = {}

    def visit(module: str) -> None:
        if module in order:
            return
        for needed in needs(module):
            visit(needed)
        order[module] = None

    visit(name)
    return list(order)


def _module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def _dependencies(module: bytes) -> list[str]:
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in match[1].decode().split(",") if name] if match else []


def strip_signature(module: bytes) -> bytes:
    """Return a module without the signature at its end."""
    if not module.endswith(_SIGNATURE_MAGIC):
        return module
    body = module[: -len(_SIGNATURE_MAGIC)]
    (length,) = struct.unpack(">I", body[-4:])
    return body[: -12 - length]
