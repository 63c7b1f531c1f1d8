/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Linked into every arm64 payload: the mailbox, the exception vectors, small services. No vector
 * instruction here: each payload says by itself when it touches that state.
 */
#include "mailbox.h"

	.globl	EVENT_ADDRESS, TICK_ADDRESS
	.set	EVENT_ADDRESS, EVENT_HIGH << 16
	.set	TICK_ADDRESS, EVENT_HIGH << 16 | TICK_LOW

.macro FIELD name, quads
	.globl	mailbox_\name
mailbox_\name:
	.fill	\quads, 8, 0
.endm

	.section .mailbox, "aw", @progbits
	FIELD	params, 8
	FIELD	values, 16
	/* The handler below counts on the order from here to `fixup`. */
	FIELD	vector, 1	/* number of the entry in the vector table */
	FIELD	esr, 1
	FIELD	elr, 1
	FIELD	far, 1
	FIELD	spsr, 1
	FIELD	faults, 1	/* how many exceptions arrived */
	FIELD	fixup, 1	/* where to go on after the next exception; 0: report it */
	FIELD	difference, 1	/* offset of the first byte that differs */
	FIELD	differences, 1	/* how many bytes differ */

	.text

	.globl	vectors
	.balign	2048
vectors:
	.set	vector, 0
	.rept	16
	.balign	128
	stp	x0, x1, [sp, #-16]!
	mov	x1, #vector
	b	exception
	.set	vector, vector + 1
	.endr
	.balign	128

exception:
	ADDRESS	x0, mailbox_vector
	str	x1, [x0]
	mrs	x1, esr_el1
	str	x1, [x0, #8]
	mrs	x1, elr_el1
	str	x1, [x0, #16]
	mrs	x1, far_el1
	str	x1, [x0, #24]
	mrs	x1, spsr_el1
	str	x1, [x0, #32]
	ldr	x1, [x0, #40]
	add	x1, x1, #1
	str	x1, [x0, #40]
	ldr	x1, [x0, #48]
	cbz	x1, 1f
	msr	elr_el1, x1
	str	xzr, [x0, #48]
	ldp	x0, x1, [sp], #16
	eret
1:	LEAVE	EVENT_EXCEPTION

/* PARAM(0) ticks, then DONE. */
ENTRY ticks
	PARAM	x2, 0
1:	TICK
	subs	x2, x2, #1
	b.ne	1b
	DONE

/* Runs until somebody stops it. */
ENTRY spin
	yield
	b	spin

/* HVC #0 with X0 to X3 = PARAM(0..3); X0 to X3 afterwards to VALUE(0..3). */
ENTRY hvc
	PARAM	x0, 0
	PARAM	x1, 1
	PARAM	x2, 2
	PARAM	x3, 3
	hvc	#0
	VALUE	x0, 0
	VALUE	x1, 1
	VALUE	x2, 2
	VALUE	x3, 3
	DONE

/*
 * Executes the instruction PARAM(0) with X0 = PARAM(1): X0 afterwards to VALUE(0), 0 or 1 to VALUE(15)
 * if it did not or did fault.
 */
ENTRY execute
	PARAM	x3, 0
	adr	x2, slot
	str	w3, [x2]
	dc	cvau, x2
	dsb	ish
	ic	ivau, x2
	dsb	ish
	isb
	MAY_FAULT 8f
	PARAM	x0, 1
	.globl	slot
slot:	nop
8:	isb
	VALUE	x0, 0
	COUNT_FAULTS
	DONE

/* Compare X3 bytes at X1 (expected) and X2 (observed), then DONE or EVENT_DIFFERENT. */
	.globl	compare
compare:
	mov	x4, #0		/* the offset */
	mov	x5, #0		/* how many differ */
	mov	x6, #-1		/* the first of them */
1:	cmp	x4, x3
	b.hs	3f
	ldrb	w7, [x1, x4]
	ldrb	w8, [x2, x4]
	cmp	w7, w8
	b.eq	2f
	add	x5, x5, #1
	cmn	x6, #1
	csel	x6, x4, x6, eq
2:	add	x4, x4, #1
	b	1b
3:	ADDRESS	x7, mailbox_difference
	str	x6, [x7]
	str	x5, [x7, #8]
	cbnz	x5, 4f
	DONE
4:	LEAVE	EVENT_DIFFERENT

	.bss
	.balign	64
	.globl	stack_top
	.skip	4096
stack_top:
	.skip	64
