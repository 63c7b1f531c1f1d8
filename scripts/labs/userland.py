# SPDX-License-Identifier: Apache-2.0
"""What a machine holds besides its kernel and our package: Python, the packages it imports, busybox.

The result is one cpio archive, unpacked into memory by the kernel; what no run needs is left out.
"""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

from .bytecode import compile_all
from .cache import Cache, hash_files
from .config import PYTHON_PACKAGES, PYTHON_SUITE
from .cpio import CpioWriter
from .hostroot import extract_closure
from .packages import Archive

__all__ = ["build_userland", "leave_out"]

# The script that starts our command, as an installation would have it.
_VMM = b"#!/usr/bin/python3\nfrom vmm.__main__ import main\n\nmain()\n"

_ETC = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": b"root:x:0:\n",
    "etc/hosts": b"127.0.0.1 localhost\n10.9.0.1 a\n10.9.0.2 b\n",
}

_APPLETS = """
[ ash awk base64 basename cat chmod chown cmp cp cut date dd df diff dirname dmesg du echo env expr false
find free grep gunzip gzip head hexdump hostname id ifconfig insmod ip kill less ln ls lsmod md5sum mkdir
mknod more mount mv nc nproc od ping pidof poweroff printf ps pwd readlink realpath rm rmdir rmmod sed seq
sh sha256sum sleep sort stat strings stty sync sysctl tail tar taskset tee test timeout top touch tr true
tty umount uname uniq uptime usleep vi wc wget which xargs xxd yes zcat
"""

# Folders and files that no run opens, as patterns below the root; _write_base makes the links itself.
_UNUSED_PATTERNS = """
bin sbin lib lib64 etc var manifest.json usr/games usr/include usr/sbin usr/share usr/lib/dpkg usr/lib/init
usr/lib/lsb usr/lib/mime usr/lib/ssl usr/lib/systemd usr/lib/terminfo usr/lib/tmpfiles.d usr/lib/udev
usr/lib/*-linux-gnu/engines* usr/lib/*-linux-gnu/gconv* usr/lib/*-linux-gnu/libacl*
usr/lib/*-linux-gnu/libcrypto* usr/lib/*-linux-gnu/libdb-* usr/lib/*-linux-gnu/libform*
usr/lib/*-linux-gnu/libhistory* usr/lib/*-linux-gnu/libmd* usr/lib/*-linux-gnu/libmenu*
usr/lib/*-linux-gnu/libncurses* usr/lib/*-linux-gnu/libpanel* usr/lib/*-linux-gnu/libpcre2*
usr/lib/*-linux-gnu/libreadline* usr/lib/*-linux-gnu/libselinux* usr/lib/*-linux-gnu/libsqlite3*
usr/lib/*-linux-gnu/libssl* usr/lib/*-linux-gnu/libtic* usr/lib/*-linux-gnu/libtinfo*
usr/lib/*-linux-gnu/ossl-modules usr/lib/*-linux-gnu/perl* usr/lib/*-linux-gnu/security
usr/lib/python3.*/_pyrepl usr/lib/python3.*/config-* usr/lib/python3.*/curses usr/lib/python3.*/dbm
usr/lib/python3.*/ensurepip usr/lib/python3.*/idlelib usr/lib/python3.*/pydoc_data
usr/lib/python3.*/sitecustomize.py usr/lib/python3.*/sqlite3 usr/lib/python3.*/test
usr/lib/python3.*/tkinter usr/lib/python3.*/turtledemo usr/lib/python3.*/venv usr/lib/python3.*/wsgiref
usr/lib/python3.*/xmlrpc usr/lib/python3.*/lib-dynload/_codecs_* usr/lib/python3.*/lib-dynload/_crypt*
usr/lib/python3.*/lib-dynload/_curses* usr/lib/python3.*/lib-dynload/_dbm*
usr/lib/python3.*/lib-dynload/_hashlib* usr/lib/python3.*/lib-dynload/_sqlite3*
usr/lib/python3.*/lib-dynload/_ssl* usr/lib/python3.*/lib-dynload/_test*
usr/lib/python3.*/lib-dynload/readline* usr/lib/python3/dist-packages/debconf.py */__pycache__
"""
_UNUSED = tuple(_UNUSED_PATTERNS.split())

# Folders of which only what matches is kept.
_KEPT = {
    "usr/bin/": ("python3*",),
    "usr/lib/python3/dist-packages/pygments/lexers/": ("__init__.py", "_mapping.py", "python.py"),
    "usr/lib/python3/dist-packages/pygments/styles/": ("__init__.py", "_mapping.py", "default.py"),
}


def leave_out(path: str) -> bool:
    """Tell whether a path below the extracted root is not needed in a machine."""
    if any(fnmatch(path, pattern) or fnmatch(path, pattern + "/*") for pattern in _UNUSED):
        return True
    for folder, kept in _KEPT.items():
        if path.startswith(folder):
            return not any(fnmatch(path.removeprefix(folder), pattern) for pattern in kept)
    return False


def build_userland(cache: Cache, arch: str) -> Path:
    """Return the archive with the root file system's unchanging part for a Debian architecture."""
    root = extract_closure(cache, PYTHON_SUITE, arch, PYTHON_PACKAGES)
    archive = Archive(cache, PYTHON_SUITE, arch)
    busybox = archive.candidate("busybox-static")
    here = Path(__file__).parent

    def make(folder: Path) -> None:
        with cache.scratch("busybox-") as unpacked, open(folder / "root.cpio", "wb") as stream:
            archive.extract([busybox], unpacked)
            with CpioWriter(stream) as out:
                _write_base(out, (unpacked / "usr/bin/busybox").read_bytes())
                out.tree(root, leave_out=leave_out)
                _write_bytecode(cache, out, root)
        manifest = json.loads((root / "manifest.json").read_text()) + archive.describe([busybox])
        cache.manifest(folder, manifest)

    recipe = hash_files([here / "userland.py", here / "cpio.py", here / "bytecode.py"], here)
    entry = cache.build("userland", [root.name, busybox.deb, recipe], make, f"packing the {arch} userland")
    return entry / "root.cpio"


def _write_base(out: CpioWriter, busybox: bytes) -> None:
    for name in ("dev", "proc", "sys", "tmp", "run", "root", "out", "usr/bin", "usr/lib", "usr/lib64"):
        out.folder(name)
    for name in ("bin", "lib", "lib64"):
        out.link(name, f"usr/{name}")
    out.link("sbin", "usr/bin")
    # The kernel opens the console before anything is mounted.
    out.device("dev/console", 5, 1)
    out.device("dev/null", 1, 3, 0o666)
    for name, content in _ETC.items():
        out.file(name, content)
    out.file("usr/bin/busybox", busybox, 0o755)
    for applet in _APPLETS.split():
        out.link(f"usr/bin/{applet}", "busybox")
    out.file("usr/bin/vmm", _VMM, 0o755)


def _write_bytecode(cache: Cache, out: CpioWriter, root: Path) -> None:
    """Add the byte code of every module: the first import would otherwise cost seconds on an emulated CPU."""
    sources = []
    for tree in ("usr/lib/python3.13", "usr/lib/python3"):
        for path in sorted((root / tree).rglob("*.py")):
            if path.is_file() and not leave_out(str(path.relative_to(root))):
                sources.append(path)
    names = {path: "/" + str(path.relative_to(root)) for path in sources}
    for path, code in compile_all(cache, names).items():
        relative = path.relative_to(root)
        out.file(str(relative.parent / "__pycache__" / f"{relative.stem}.cpython-313.pyc"), code)
