# SPDX-License-Identifier: Apache-2.0
"""Compiles the two things of this project that are not Python: the bindings and the guest payloads."""

import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.egg_info import egg_info  # noqa: F401  (setuptools wants it importable first)

HERE = Path(__file__).resolve().parent


class BuildAll(build_ext):
    """build_ext, and the payload ELFs beside the extension module."""

    def get_ext_filename(self, fullname: str) -> str:
        # From 3.15 on Python would put the platform into the name, under which older Pythons do not find the module.
        return f"{fullname.replace('.', '/')}.abi3.so"

    def run(self) -> None:
        super().run()
        root = HERE if self.inplace else Path(self.build_lib)
        script = HERE / "guest_payloads" / "build.py"
        subprocess.run([sys.executable, str(script), "--out", str(root / "vmm" / "payloads")], check=True)


setup(
    cffi_modules=["bindings/build.py:ffibuilder"],
    cmdclass={"build_ext": BuildAll},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
