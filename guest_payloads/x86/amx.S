/* SPDX-License-Identifier: Apache-2.0 */
/*
 * amx: tiles and XFD. CPL0 throughout (MSRs), CR4.OSXSAVE and XCR0[18:17] set by the host.
 *
 * `expected` is 64 bytes of TILECFG followed by 8 tiles of 1024 bytes (16 rows of 64); `observed` has the
 * same shape, and mailbox_difference is an offset into it.
 *
 *	load		LDTILECFG and TILELOADD of all 8 tiles from `expected`
 *	verify		STTILECFG and TILESTORED into `observed` (rows and columns that the configuration
 *			leaves out are copied), compare
 *	churn		load, PARAM(0) ticks, verify
 *	exchange	change the loaded tiles: PARAM(2) bytes at offsets PARAM(0) and PARAM(1) of the tile data
 *			change places; with PARAM(2) = 0 the byte at PARAM(0) is inverted
 *	release		TILERELEASE
 *	tdpXXX, tXX	load, then TMM0 += TMM1 * TMM2 by that instruction, TMM0 stored to `observed` + 64
 *	ldtilecfg_once, tileload_once, tilezero_once, tdpbssd_once, sse_once	one instruction that may fault
 *	demand		arm XFD, touch a tile, and do what an operating system does in #NM: PARAM(0) ticks, read
 *			XFD_ERR to VALUE(0), clear it, read it again to VALUE(1), disarm XFD, retry. VALUE(2) is
 *			CR0 as the handler saw it, VALUE(3) the vector, VALUE(15) the faults
 *	xsave ... xinuse	see area.h
 *
 *	toggle_xfd	PARAM(0) times XFD on and off
 *	rdmsr, wrmsr ...	see system.h; VALUE(15) counts faults, as for every entry that may fault
 */
#include "mailbox.h"
#include "area.h"
#include "system.h"

	.set	TILES, 8
	.set	TILE_SIZE, 1024
	.set	IMAGE_SIZE, 64 + TILES * TILE_SIZE
	.globl	IMAGE_SIZE
	.set	IA32_XFD, 0x1c4
	.set	IA32_XFD_ERR, 0x1c5

.macro EACH_TILE op
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	\op	%tmm\n, \n
	.endr
.endm
.macro LOAD_TILE tile, n
	leaq	expected + 64 + TILE_SIZE * \n, %rsi
	tileloadd (%rsi,%rbx), \tile
.endm
.macro STORE_TILE tile, n
	leaq	observed + 64 + TILE_SIZE * \n, %rdi
	tilestored \tile, (%rdi,%rbx)
.endm
.macro LOAD_TILES
	ldtilecfg expected
	movl	$64, %ebx
	EACH_TILE LOAD_TILE
.endm

/* An unconfigured tile cannot be stored: only those whose row count is not 0. */
.macro STORE_CONFIGURED tile, n
	cmpb	$0, expected + 48 + \n
	je	7f
	STORE_TILE \tile, \n
7:
.endm
.macro LOAD_CONFIGURED tile, n
	cmpb	$0, expected + 48 + \n
	je	7f
	LOAD_TILE \tile, \n
7:
.endm

	.text
ENTRY _start
	DONE

ENTRY load
	ldtilecfg expected
	movl	$64, %ebx
	EACH_TILE LOAD_CONFIGURED
	DONE

ENTRY verify
	jmp	verify_tiles

ENTRY churn
	ldtilecfg expected
	movl	$64, %ebx
	EACH_TILE LOAD_CONFIGURED
	movq	PARAM(0), %rcx
1:	TICK
	decq	%rcx
	jnz	1b
	jmp	verify_tiles

verify_tiles:
	leaq	expected, %rsi
	leaq	observed, %rdi
	movl	$(IMAGE_SIZE / 8), %ecx
	rep movsq
	sttilecfg observed
	movl	$64, %ebx
	EACH_TILE STORE_CONFIGURED
	leaq	expected, %rsi
	leaq	observed, %rdi
	movl	$IMAGE_SIZE, %ecx
	jmp	compare

.macro RELOAD_TILE tile, n
	leaq	observed + 64 + TILE_SIZE * \n, %rsi
	tileloadd (%rsi,%rbx), \tile
.endm

ENTRY exchange
	movl	$64, %ebx
	EACH_TILE STORE_TILE
	movq	PARAM(0), %rsi
	leaq	observed + 64(%rsi), %rsi
	movq	PARAM(1), %rdi
	leaq	observed + 64(%rdi), %rdi
	movq	PARAM(2), %rcx
	testq	%rcx, %rcx
	jnz	1f
	notb	(%rsi)
	jmp	2f
1:	movb	(%rsi), %al
	xchgb	%al, (%rdi)
	movb	%al, (%rsi)
	incq	%rsi
	incq	%rdi
	decq	%rcx
	jnz	1b
2:	EACH_TILE RELOAD_TILE
	DONE

ENTRY release
	tilerelease
	DONE

.macro PRODUCT name, bytes
ENTRY \name
	LOAD_TILES
	.ifb \bytes
	\name	%tmm2, %tmm1, %tmm0
	.else
	.byte	\bytes
	.endif
	leaq	observed + 64, %rdi
	tilestored %tmm0, (%rdi,%rbx)
	DONE
.endm
	PRODUCT tdpbssd
	PRODUCT tdpbsud
	PRODUCT tdpbusd
	PRODUCT tdpbuud
	PRODUCT tdpbf16ps
/* Not every assembler knows these: VEX.128.0F38.W0 with TMM0, TMM1 and TMM2 as above. */
	PRODUCT tdpfp16ps, "0xc4, 0xe2, 0x6b, 0x5c, 0xc1"
	PRODUCT tcmmrlfp16ps, "0xc4, 0xe2, 0x68, 0x6c, 0xc1"
	PRODUCT tcmmimfp16ps, "0xc4, 0xe2, 0x69, 0x6c, 0xc1"
	PRODUCT tmmultf32ps, "0xc4, 0xe2, 0x69, 0x48, 0xc1"

/* Where the instructions below find their memory operand. */
.macro TILE_OPERAND
	movl	$64, %ebx
	leaq	expected + 64, %rsi
.endm

ENTRY ldtilecfg_once
	MAY_FAULT_BEGIN
	ldtilecfg expected
	MAY_FAULT_END
ENTRY tileload_once
	TILE_OPERAND
	MAY_FAULT_BEGIN
	tileloadd (%rsi,%rbx), %tmm0
	MAY_FAULT_END
ENTRY tilezero_once
	MAY_FAULT_BEGIN
	tilezero %tmm0
	MAY_FAULT_END
ENTRY tdpbssd_once
	MAY_FAULT_BEGIN
	tdpbssd	%tmm2, %tmm1, %tmm0
	MAY_FAULT_END

	SYSTEM_ENTRIES

/* PARAM(0) times: XFD on, XFD off. */
ENTRY toggle_xfd
	movq	PARAM(0), %rsi
	movl	$IA32_XFD, %ecx
	xorl	%edx, %edx
1:	movl	$(1 << 18), %eax
	wrmsr
	xorl	%eax, %eax
	wrmsr
	decq	%rsi
	jnz	1b
	DONE

/* An SSE instruction while CR0.TS is set by the host: #NM of the old kind. */
ENTRY sse_once
	MAY_FAULT_BEGIN
	movq	%rax, %xmm0
	MAY_FAULT_END

ENTRY demand
	ldtilecfg expected
	movq	$0, mailbox_faults
	movl	$IA32_XFD, %ecx
	movl	$(1 << 18), %eax
	xorl	%edx, %edx
	wrmsr
	movl	$64, %ebx
	leaq	expected + 64, %rsi
	ON_FAULT 2f
	.globl	at_demand
at_demand:
	tileloadd (%rsi,%rbx), %tmm0
	movq	mailbox_faults, %rax
	movq	%rax, VALUE(15)
	DONE
2:	movq	PARAM(0), %rsi
	testq	%rsi, %rsi
	jz	4f
3:	TICK
	decq	%rsi
	jnz	3b
4:	movl	$IA32_XFD_ERR, %ecx
	rdmsr
	movl	%eax, VALUE(0)
	movl	%edx, VALUE(0) + 4
	xorl	%eax, %eax
	xorl	%edx, %edx
	wrmsr
	rdmsr
	movl	%eax, VALUE(1)
	movl	%edx, VALUE(1) + 4
	movq	mailbox_cr0, %rax
	movq	%rax, VALUE(2)
	movq	mailbox_vector, %rax
	movq	%rax, VALUE(3)
	movl	$IA32_XFD, %ecx
	xorl	%eax, %eax
	wrmsr
	leaq	expected + 64, %rsi
	jmp	at_demand

	AREA_ENTRIES

	.bss
	.balign	64
	.globl	expected, observed, area
expected:
	.skip	IMAGE_SIZE
	.balign	64
observed:
	.skip	IMAGE_SIZE
	.balign	64
area:	.skip	16384
