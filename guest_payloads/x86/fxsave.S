/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fxsave: x87 and SSE state as one FXSAVE image (64-bit format), with the status word, the tags and the pointers that
 * xstate leaves alone.
 *
 * `expected` and `observed` are 512 bytes each, of which the first 416 count; MXCSR_MASK counts as equal.
 *
 *	load	FXRSTOR `expected`
 *	verify	FXSAVE into `observed` and compare
 *	churn	load, PARAM(0) ticks, verify
 */
#include "mailbox.h"

	.set	MXCSR_MASK_AT, 28
	.set	STATE_SIZE, 416

/* What a CPU does not store, such as the pointers without a pending exception, counts as equal: start from a copy. */
.macro VERIFY
	leaq	expected, %rsi
	leaq	observed, %rdi
	movl	$(512 / 8), %ecx
	rep movsq
	fxsave64 observed
	movl	expected + MXCSR_MASK_AT, %eax
	movl	%eax, observed + MXCSR_MASK_AT
	leaq	expected, %rsi
	leaq	observed, %rdi
	movl	$STATE_SIZE, %ecx
	jmp	compare
.endm

	.text
ENTRY _start
	DONE

ENTRY load
	fxrstor64 expected
	DONE

ENTRY verify
	VERIFY

ENTRY churn
	fxrstor64 expected
	movq	PARAM(0), %rcx
1:	TICK
	decq	%rcx
	jnz	1b
	VERIFY

	.bss
	.balign	64
	.globl	expected, observed
expected:
	.skip	512
observed:
	.skip	512
