# SPDX-License-Identifier: Apache-2.0
"""The instructions of tiles in the guest: what they compute and release, and when they fault."""

from __future__ import annotations

from vmm.conformance.context import Context
from vmm.conformance.expect import equal
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import TILE_GUESTS, judged_call, offers
from vmm.conformance.x86.tiles import FULL, TileImage, data_entries, expect_fault, guest_area, loaded, tile_guest
from vmm.conformance.x86.tmul import PRODUCTS, operands
from vmm.x86 import cpuid
from vmm.x86.registers import set_xcr0
from vmm.x86.xfeature import XTILE, XFeature
from vmm.x86.xsave import get_xsave


@clause("amx.tilerelease-init", arch="x86", needs=(*TILE_GUESTS, offers("XGETBV1"), offers("XSAVEC")))
def release_means_initial(context: Context) -> None:
    """After TILERELEASE both components are initial: for XGETBV(1), for XSAVEC, and in the XSAVE area as zeros.

    Source: Intel SDM volume 2, TILERELEASE; volume 1, 13.6.
    """
    guest, _ = loaded(context, 9)
    judged_call(context, guest, "xinuse")
    equal("XINUSE with tiles", guest.mailbox.values[0] & XTILE, XTILE)
    judged_call(context, guest, "release")
    judged_call(context, guest, "xinuse")
    equal("XINUSE after TILERELEASE", guest.mailbox.values[0] & XTILE, 0)
    judged_call(context, guest, "xsavec", XTILE)
    equal("XSTATE_BV of XSAVEC", guest_area(guest).xstate_bv & XTILE, 0)
    area = get_xsave(guest.vcpu)
    equal("XSTATE_BV of KVM_GET_XSAVE2", area.xstate_bv & XTILE, 0)
    for number in (XFeature.XTILECFG, XFeature.XTILEDATA):
        equal(f"bytes of {number.name}", area.component(number).strip(b"\0"), b"")


def _product(context: Context, name: str) -> None:
    """Multiply in the guest and compare with Python's result, bit for bit."""
    guest = tile_guest(context)
    for seed in range(2):
        image = operands(name, seed)
        image.load(guest)
        judged_call(context, guest, name)
        seen = guest.memory.read(guest.payload.symbol("observed") + 64, 1024)
        wanted = PRODUCTS[name](image.tiles)
        wrong = [n for n in range(256) if seen[4 * n : 4 * n + 4] != wanted[4 * n : 4 * n + 4]]
        shown = [f"row {n // 16} column {n % 16}: {seen[4 * n : 4 * n + 4].hex()}" for n in wrong[:4]]
        equal(f"elements of {name.upper()} that differ from the reference (operands {seed})", shown, [])


def _define_products() -> None:
    texts = {
        "tdpbssd": ("signed bytes by signed bytes", "AMX-INT8"),
        "tdpbsud": ("signed bytes by unsigned bytes", "AMX-INT8"),
        "tdpbusd": ("unsigned bytes by signed bytes", "AMX-INT8"),
        "tdpbuud": ("unsigned bytes by unsigned bytes", "AMX-INT8"),
        "tdpbf16ps": ("BF16 pairs into single precision", "AMX-BF16"),
        "tdpfp16ps": ("FP16 pairs into single precision", "AMX-FP16"),
        "tcmmrlfp16ps": ("the real part of complex FP16 numbers", "AMX-COMPLEX"),
        "tcmmimfp16ps": ("the imaginary part of complex FP16 numbers", "AMX-COMPLEX"),
        "tmmultf32ps": ("TF32 numbers into single precision", "AMX-TF32"),
    }
    for name, (what, feature) in texts.items():

        def check(context: Context, name: str = name) -> None:
            _product(context, name)

        check.__doc__ = (
            f"{name.upper()} in the guest ({what}) gives bit by bit the result of a reference in Python.\n\n"
            f"Source: Intel SDM volume 2, {name.upper()}; volume 1, 18.3; Architecture Instruction Set Extensions "
            f"Programming Reference ({feature})."
        )
        clause(f"amx.tmul-{name}", arch="x86", needs=(*TILE_GUESTS, offers(feature.replace("-", "_"))))(check)


_define_products()


@clause("amx.xcr0-off-ud", arch="x86", needs=TILE_GUESTS)
def disabled_means_undefined(context: Context) -> None:
    """With XCR0[18:17] clear or CR4.OSXSAVE clear, tile instructions are #UD.

    Source: Intel SDM volume 2, LDTILECFG, TILELOADD, TILEZERO (exceptions type AMX-E1, E3, E5).
    """
    guest = tile_guest(context)
    TileImage.random(14).load(guest)
    entries = ("ldtilecfg_once", "tileload_once", *data_entries(guest))
    set_xcr0(guest.vcpu, guest.cpuid.xcr0 & ~XTILE)
    expect_fault(context, guest, entries, "#UD", "XCR0[18:17]=0")
    set_xcr0(guest.vcpu, guest.cpuid.xcr0)
    guest.cr4 = 0
    expect_fault(context, guest, entries, "#UD", "CR4.OSXSAVE=0")


@clause("amx.bad-tilecfg-gp", arch="x86", needs=TILE_GUESTS)
def bad_configuration(context: Context) -> None:
    """LDTILECFG of a palette that the CPU lacks, of a set reserved byte or of a tile that palette 1 lacks is #GP.

    Source: Intel SDM volume 2, LDTILECFG.
    """
    guest = tile_guest(context)
    good = FULL.data
    beyond = cpuid.host(0x1D).eax + 1
    wrong = {
        f"palette {beyond}": bytes([beyond]) + good[1:],
        "reserved byte 2": good[:2] + b"\1" + good[3:],
        "no rows": good[:48] + b"\0" + good[49:],
        "17 rows": good[:48] + b"\x11" + good[49:],
        "65 bytes per row": good[:16] + b"\x41\0" + good[18:],
    }
    for name, config in wrong.items():
        guest.memory.write(guest.payload.symbol("expected"), config)
        expect_fault(context, guest, ("ldtilecfg_once",), "#GP", name)
    guest.memory.write(guest.payload.symbol("expected"), good)
    judged_call(context, guest, "ldtilecfg_once")
    equal("faults of the right configuration", guest.mailbox.read("values", 15), 0)


@clause("amx.unconfigured-ud", arch="x86", needs=TILE_GUESTS)
def unconfigured_tile(context: Context) -> None:
    """Tile operations without a configuration are #UD, not #NM and not ignored.

    Source: Intel SDM volume 2, TILELOADD, TILEZERO, TDPBSSD.
    """
    guest = tile_guest(context)
    expect_fault(context, guest, ("tileload_once", *data_entries(guest)), "#UD", "no configuration")
