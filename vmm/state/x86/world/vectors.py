# SPDX-License-Identifier: Apache-2.0
"""The rows of FPU, XSAVE and XCRS: x87, vectors, tiles, and which of them a guest uses.

Values at reset: Intel SDM volume 1, 13.6 (initial configurations), volume 3, table 11-1; INIT leaves all of them as
they are but those of MPX: arch/x86/kvm/x86.c, kvm_vcpu_reset (kvm_xstate_reset in 7.2).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from vmm.kvm.vcpu import Vcpu
from vmm.state.architecture import pieces
from vmm.state.piece import Structure
from vmm.state.world.fields import StructCodec
from vmm.state.world.row import After, Free, Of, OneOf, Refusal, Row, Untold, Values
from vmm.state.world.table import Table
from vmm.state.x86.world.area import AreaCodec
from vmm.x86.cpuid import given
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import INITIAL_FCW, INITIAL_MXCSR

__all__ = ["FPU", "LEGACY", "XCRS", "XSAVE"]


def _any(bits: int) -> Free:
    """A pattern and its complement: what a register that means nothing to the CPU may have."""
    return Free((1 << bits) - 1, rounds=2)


# Every exception masked: a guest that loads these takes none. Rounding and precision differ, then TOP, the conditions
# and the flags of masked exceptions.
_FCW, _FSW = Of(0xC7F, 0x27F, 0xF7F), Of(0x2935, 0x567F, 0x7F7F)
_FTW, _FOP = Free(0xFF, rounds=3), Free(0x7FF, rounds=3)
_POINTERS = Untold("a CPU need not keep the pointers while no x87 exception is pending")
_OF_CPU = Untold("it describes the CPU, as far as the kernel has stored it: without XSAVE, when a guest has run")
_GET_FPU = "arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_get_fpu, kvm_arch_vcpu_ioctl_set_fpu"

FPU = Table(
    "fpu",
    Structure("FPU", "kvm_fpu", 416),
    StructCodec("FPU", "kvm_fpu"),
    [
        Row("fcw", _GET_FPU, fresh=INITIAL_FCW, values=_FCW, init=After.KEPT),
        Row("fsw", _GET_FPU, fresh=0, values=_FSW, init=After.KEPT),
        Row("ftwx", _GET_FPU, fresh=0, values=_FTW, init=After.KEPT),
        Row("last_opcode", _GET_FPU, fresh=0, values=_FOP, init=After.KEPT, kept=_POINTERS),
        Row("last_ip last_dp", _GET_FPU, fresh=0, values=_any(64), init=After.KEPT, kept=_POINTERS),
        Row("fpr*", f"{_GET_FPU}; the upper 48 bits are not part of the register", fresh=0, values=_any(80),
            init=After.KEPT),
        Row("xmm*", _GET_FPU, fresh=0, values=_any(128), init=After.KEPT),
        Row("mxcsr", f"{_GET_FPU}; Documentation/virt/kvm/api.rst, 4.22 lists it without a word",
            fresh=OneOf((0, INITIAL_MXCSR), "KVM has never used it: fpu.mxcsr"), values=None, init=None),
        Row("pad1 pad2", f"{_GET_FPU}; virt/kvm/kvm_main.c, kvm_vcpu_ioctl (kzalloc)", fresh=0, values=None,
            init=None, masked=[(0xFF, 0)]),
    ],
)  # fmt: skip

# Fields of FPU by the names that XSAVE has for them.
LEGACY = {
    "fcw": "FP.FCW", "fsw": "FP.FSW", "ftwx": "FP.FTW", "last_opcode": "FP.FOP", "last_ip": "FP.FIP",
    "last_dp": "FP.FDP", **{f"fpr[{number}]": f"FP.ST{number}" for number in range(8)},
    **{f"xmm[{number}]": f"SSE.XMM{number}" for number in range(16)},
}  # fmt: skip

_XSAVE = (
    "Documentation/virt/kvm/api.rst, 4.42, 4.43; arch/x86/kernel/fpu/xstate.c, copy_uabi_to_xstate, "
    "__copy_xstate_to_uabi_buf"
)


def _without(feature: int) -> Callable[[Vcpu], str]:
    """Say that a vCPU's CPUID does not offer it a component."""

    def absent(vcpu: Vcpu) -> str:
        offered = given(vcpu).xcr0
        return "" if offered >> feature & 1 else f"the guest's CPUID does not offer {XFeature(feature).name}"

    return absent


def _component(
    feature: XFeature, fields: str, values: Values | None, init: After = After.KEPT, runs: bool = True
) -> Row:
    names = " ".join(f"{feature.name}.{field}" for field in fields.split())
    return Row(names, _XSAVE, fresh=0, values=values, init=init, when=_without(feature), runs=runs)


def _register(feature: XFeature, fields: str, bits: int) -> Row:
    """Registers in which any value may be."""
    return _component(feature, fields, _any(bits))


XSAVE = Table(
    "xsave",
    pieces("x86")["XSAVE"],
    AreaCodec(),
    [
        Row("XSTATE_BV", _XSAVE, fresh=0, values=Of(1, 2, 0), init=After.KEPT, alone=True,
            kept=Untold("the CPU may find that a component is in its initial configuration, or not"),
            refused=[Refusal(1 << bit | 3, errno.EINVAL) for bit in (11, 12, 62, 63)]),
        Row("XCOMP_BV", f"{_XSAVE}, validate_user_xstate_header", fresh=0, values=None, init=None,
            refused=[Refusal(1 << 63, errno.EINVAL), Refusal(1, errno.EINVAL)]),
        Row("reserved", f"{_XSAVE}, validate_user_xstate_header", fresh=0, values=None, init=None,
            refused=[Refusal(1, errno.EINVAL), Refusal(1 << 383, errno.EINVAL)]),
        Row("padding", _XSAVE, fresh=0, values=None, init=None, masked=[(1, 0), (1 << 383, 0)]),
        Row("software", f"{_XSAVE} (xstate_fx_sw_bytes)", fresh=Untold("the host's features, as its signal frames "
            "have them: xsave.software-bytes"), values=None, init=None),
        Row("FP.FCW", _XSAVE, fresh=INITIAL_FCW, values=_FCW, init=After.KEPT),
        Row("FP.FSW", _XSAVE, fresh=0, values=_FSW, init=After.KEPT),
        Row("FP.FTW", _XSAVE, fresh=0, values=_FTW, init=After.KEPT),
        Row("FP.reserved FP.ST?.reserved", _XSAVE, fresh=0, values=None, init=None),
        Row("FP.FOP", _XSAVE, fresh=0, values=_FOP, init=After.KEPT, kept=_POINTERS),
        Row("FP.FIP FP.FDP", _XSAVE, fresh=0, values=_any(64), init=After.KEPT, kept=_POINTERS),
        Row("FP.ST?", _XSAVE, fresh=0, values=_any(80), init=After.KEPT),
        Row("SSE.MXCSR", f"{_XSAVE}; Intel SDM volume 1, 10.2.3", fresh=INITIAL_MXCSR, init=After.KEPT,
            values=Of(0x1FA5, 0xFF90, 0x7FBF),
            refused=[Refusal(1 << 31, errno.EINVAL), Refusal(1 << 16, errno.EINVAL)]),
        Row("SSE.MXCSR_MASK", f"{_XSAVE}; Intel SDM volume 1, 11.6.6",
            fresh=_OF_CPU, values=None, init=None, kept=_OF_CPU),
        Row("SSE.XMM*", _XSAVE, fresh=0, values=_any(128), init=After.KEPT),
        _register(XFeature.YMM, "YMM*", 128),
        _component(XFeature.BNDREGS, "BND*", _any(128), After.FRESH),
        _component(XFeature.BNDCSR, "BNDCFGU", Of(0x1234_5003, 0x7FFF_FFFF_F001), After.FRESH),
        _component(XFeature.BNDCSR, "BNDSTATUS", _any(64), After.FRESH),
        _component(XFeature.BNDCSR, "reserved", None),
        _register(XFeature.OPMASK, "k*", 64),
        _register(XFeature.ZMM_HI256, "ZMM*", 256),
        _register(XFeature.HI16_ZMM, "ZMM*", 512),
        _register(XFeature.PKRU, "PKRU", 32),
        _component(XFeature.PKRU, "reserved", None),
        _component(XFeature.XTILECFG, "palette", Of(1, 1)),
        _component(XFeature.XTILECFG, "start_row", Of(3, 7, 0)),
        _component(XFeature.XTILECFG, "colsb?", Of(64, 4, 60)),
        _component(XFeature.XTILECFG, "rows?", Of(16, 1, 15)),
        Row("XTILECFG.reserved*", _XSAVE, fresh=0, values=None, init=None, when=_without(XFeature.XTILECFG)),
        _register(XFeature.XTILEDATA, "TMM*", 8 * 1024),
        _register(XFeature.APX, "R*", 64),
    ],
)  # fmt: skip

_SET_XCRS = "arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_get_xcrs, kvm_vcpu_ioctl_x86_set_xcrs, __kvm_set_xcr"
_UNREAD = "virt/kvm/kvm_main.c and arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl (kzalloc): what no register fills is 0"
XCRS = Table(
    "xcrs",
    pieces("x86")["XCRS"],
    StructCodec("XCRS", "kvm_xcrs"),
    [
        Row("nr_xcrs", _SET_XCRS, fresh=1, values=Of(1, 1), init=After.KEPT,
            refused=[Refusal(17, errno.EINVAL), Refusal(0xFFFF_FFFF, errno.EINVAL)]),
        Row("flags", f"{_SET_XCRS}; Documentation/virt/kvm/api.rst, 4.44", fresh=0, values=None, init=None,
            refused=[Refusal(1, errno.EINVAL), Refusal(1 << 31, errno.EINVAL)]),
        Row("xcrs[[]0[]].xcr", _SET_XCRS, fresh=0, values=Of(0, 0), init=None),
        Row("xcrs[[]0[]].value", f"{_SET_XCRS}; Intel SDM volume 1, 13.3: x87 is never off, AVX needs SSE", fresh=1,
            values=Of(3, 1), init=After.KEPT,
            refused=[Refusal(value, errno.EINVAL) for value in (0, 2, 5, 1 << 63 | 1, 1 << 62 | 3)]),
        Row("xcrs[[]15[]].value xcrs[[]0[]].reserved padding[[]15[]]", _UNREAD, fresh=0, values=None, init=None,
            masked=[(1, 0)]),
        Row("xcrs* padding*", _UNREAD, fresh=0, values=None, init=None),
    ],
)  # fmt: skip
