/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dirty: writes memory page by page, again and again, so that a migration has something to run after.
 *
 *	dirty, dirty_neon, dirty_sve, dirty_across
 *		PARAM(1) pages from PARAM(0) on, PARAM(2) pages from each to the next, PARAM(3) passes (0: no
 *		end), a tick after every PARAM(4) pages (0: none). Of each page, which are 4096 bytes, the first
 *		PARAM(5) bytes become the word ((pass << 40) ^ address of the page) * MULTIPLIER; passes count
 *		from 1. Written by pairs of X registers, by Q registers, or by predicated stores of Z at the current
 *		length; dirty_across writes 16 bytes by a Q register, 8 of them in the page before.
 *		VALUE(0) is the pass, VALUE(1) how many of its pages are written.
 *	read	a word of each of PARAM(1) pages from PARAM(0) on, PARAM(2) pages from each to the next: writes nothing
 *	idle	PARAM(1) ticks (0: no end) with PARAM(0) times YIELD before each (0: none comes): dirties nothing
 *
 * tests/guest/dirty_passes.py has the same words.
 */
#include "mailbox.h"

	.arch	armv8.2-a+sve

/* X0: the word, X1: the page, X2: how many bytes, a multiple of 16. */
.macro WRITE_dirty_neon
	dup	v0.2d, x0
1:	str	q0, [x1], #16
	subs	x2, x2, #16
	b.hi	1b
.endm
.macro WRITE_dirty_across
	dup	v0.2d, x0
	stur	q0, [x1, #-8]
.endm
.macro WRITE_dirty
1:	stp	x0, x0, [x1], #16
	subs	x2, x2, #16
	b.hi	1b
.endm
.macro WRITE_dirty_sve
	dup	z0.d, x0
	lsr	x2, x2, #3
	mov	x3, #0
	whilelo	p0.d, x3, x2
1:	st1d	{z0.d}, p0, [x1, x3, lsl #3]
	incd	x3
	whilelo	p0.d, x3, x2
	b.first	1b
.endm

.macro DIRTY name
ENTRY \name
	ldr	x19, =0x9e3779b97f4a7c15
	PARAM	x20, 0
	PARAM	x21, 1
	PARAM	x22, 2
	lsl	x22, x22, #12
	PARAM	x23, 3
	PARAM	x24, 4
	PARAM	x25, 5
	mov	x26, x24
	mov	x27, #0
2:	add	x27, x27, #1
	mov	x28, #0
	mov	x29, x20
3:	eor	x0, x29, x27, lsl #40
	mul	x0, x0, x19
	mov	x1, x29
	mov	x2, x25
	WRITE_\name
	add	x28, x28, #1
	subs	x26, x26, #1
	b.ne	4f
	bl	publish
	TICK
	mov	x26, x24
4:	add	x29, x29, x22
	cmp	x28, x21
	b.lo	3b
	cmp	x27, x23
	b.ne	2b
	bl	publish
	DONE
.endm

	.text
ENTRY _start
	DONE

	DIRTY	dirty
	DIRTY	dirty_neon
	DIRTY	dirty_across
	DIRTY	dirty_sve

publish:
	VALUE	x27, 0
	VALUE	x28, 1
	ret

ENTRY read
	PARAM	x2, 0
	PARAM	x3, 1
	PARAM	x4, 2
	lsl	x4, x4, #12
1:	ldr	x0, [x2]
	add	x2, x2, x4
	subs	x3, x3, #1
	b.ne	1b
	DONE

ENTRY idle
	PARAM	x2, 0
	PARAM	x3, 1
1:	mov	x4, x2
2:	yield
	subs	x4, x4, #1
	b.ne	2b
	TICK
	subs	x3, x3, #1
	b.ne	1b
	DONE
