/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dirty: writes memory page by page, again and again, so that a migration has something to run after.
 *
 *	dirty, dirty_sse, dirty_avx, dirty_avx512, dirty_tile
 *		PARAM(1) pages from PARAM(0) on, PARAM(2) pages from each to the next, PARAM(3) passes (0: no
 *		end), a tick after every PARAM(4) pages (0: none). Of each page the first PARAM(5) bytes become
 *		the word ((pass << 40) ^ address of the page) * MULTIPLIER; passes count from 1. Written by REP
 *		STOS, in vectors of 16, 32 or 64 bytes, or by TILESTORED in tiles of 1024 bytes. VALUE(0) is the
 *		pass, VALUE(1) how many of its pages are written.
 *	dirty_across	the same with one vector of 16 bytes, half of it in the page before
 *	dirty_xsave	the same with XSAVE of x87, SSE and AVX
 *	input	the same with 4 bytes of port INPUT_PORT, by INS
 *	read	a word of each of PARAM(1) pages from PARAM(0) on, PARAM(2) pages from each to the next: writes nothing
 *	idle	PARAM(1) ticks (0: no end) with PARAM(0) times PAUSE before each (0: none comes): dirties nothing
 *
 * tests/guest/dirty_passes.py has the same words.
 */
#include "mailbox.h"

	.set	MULTIPLIER, 0x9e3779b97f4a7c15
	.globl	INPUT_PORT
	.set	INPUT_PORT, 0x3f8

/* RAX: the word, RDI: the page, RCX: how many bytes. */
.macro BEGIN_dirty
.endm
.macro WRITE_dirty
	shrq	$3, %rcx
	rep stosq
.endm

.macro BEGIN_dirty_sse
.endm
.macro WRITE_dirty_sse
	movq	%rax, %xmm0
	punpcklqdq %xmm0, %xmm0
1:	movdqa	%xmm0, (%rdi)
	addq	$16, %rdi
	subq	$16, %rcx
	ja	1b
.endm

.macro BEGIN_dirty_avx
.endm
.macro WRITE_dirty_avx
	vmovq	%rax, %xmm0
	vpunpcklqdq %xmm0, %xmm0, %xmm0
	vinsertf128 $1, %xmm0, %ymm0, %ymm0
1:	vmovaps	%ymm0, (%rdi)
	addq	$32, %rdi
	subq	$32, %rcx
	ja	1b
.endm

.macro BEGIN_dirty_across
.endm
.macro WRITE_dirty_across
	movq	%rax, %xmm0
	punpcklqdq %xmm0, %xmm0
	movdqu	%xmm0, -8(%rdi)
.endm

.macro BEGIN_dirty_xsave
.endm
.macro WRITE_dirty_xsave
	movl	$7, %eax
	xorl	%edx, %edx
	xsave64	(%rdi)
.endm

.macro BEGIN_input
	movl	$INPUT_PORT, %edx
.endm
.macro WRITE_input
	insl
.endm

.macro BEGIN_dirty_avx512
.endm
.macro WRITE_dirty_avx512
	vpbroadcastq %rax, %zmm0
1:	vmovdqa64 %zmm0, (%rdi)
	addq	$64, %rdi
	subq	$64, %rcx
	ja	1b
.endm

.macro BEGIN_dirty_tile
	ldtilecfg config
	movl	$64, %edx
.endm
.macro WRITE_dirty_tile
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	movq	%rax, row + 8 * \n
	.endr
	leaq	row, %rsi
	xorl	%eax, %eax
	tileloadd (%rsi,%rax), %tmm0	/* the same row 16 times */
1:	tilestored %tmm0, (%rdi,%rdx)
	addq	$1024, %rdi
	subq	$1024, %rcx
	ja	1b
.endm

.macro DIRTY name
ENTRY \name
	cld
	BEGIN_\name
	movabsq	$MULTIPLIER, %r15
	movq	PARAM(2), %r11
	shlq	$12, %r11
	movq	PARAM(4), %r10
	xorl	%r8d, %r8d
2:	incq	%r8
	movq	PARAM(0), %rbx
	xorl	%r9d, %r9d
3:	movq	%r8, %rax
	shlq	$40, %rax
	xorq	%rbx, %rax
	imulq	%r15, %rax
	movq	%rbx, %rdi
	movq	PARAM(5), %rcx
	WRITE_\name
	incq	%r9
	decq	%r10
	jnz	4f
	call	publish
	TICK
	movq	PARAM(4), %r10
4:	addq	%r11, %rbx
	cmpq	PARAM(1), %r9
	jb	3b
	cmpq	PARAM(3), %r8
	jne	2b
	call	publish
	DONE
.endm

	.text
ENTRY _start
	DONE

	DIRTY	dirty
	DIRTY	dirty_sse
	DIRTY	dirty_avx
	DIRTY	dirty_across
	DIRTY	dirty_xsave
	DIRTY	input
	DIRTY	dirty_avx512
	DIRTY	dirty_tile

publish:
	movq	%r8, VALUE(0)
	movq	%r9, VALUE(1)
	ret

ENTRY read
	movq	PARAM(0), %rbx
	movq	PARAM(1), %rcx
	movq	PARAM(2), %r11
	shlq	$12, %r11
1:	movq	(%rbx), %rax
	addq	%r11, %rbx
	decq	%rcx
	jnz	1b
	DONE

ENTRY idle
	movq	PARAM(1), %r9
1:	movq	PARAM(0), %rcx
2:	pause
	decq	%rcx
	jnz	2b
	TICK
	decq	%r9
	jnz	1b
	DONE

	.data
	.balign	64
/* Palette 1, TMM0 with 16 rows of 64 bytes. */
config:	.quad	1, 0, 64, 0, 0, 0, 16, 0

	.bss
	.balign	64
row:	.skip	64
