/* SPDX-License-Identifier: Apache-2.0 */
/*
 * writer: writes memory at a pace, and knows at every moment what each page has to hold.
 *
 *	write	Fills PARAM(1) pages from address PARAM(0) on, which is generation 1, as fast as it can. Then it
 *		writes the first PARAM(2) of them anew, pass after pass, each pass a generation: PARAM(3) pages,
 *		a tick, and PARAM(4) microseconds from the beginning of one such share to that of the next
 *		(0: no pace); PARAM(5) shares (0: no end). Pages from number PARAM(6) on lie PARAM(7) bytes
 *		further: behind a hole. All 512 words of a page are ((generation << 40) ^ its address) * MULTIPLIER.
 *		A page is looked at before it is written, its first and its last word; in the end all words of all
 *		pages are. One that is stale or torn is a DIFFERENT: mailbox_difference is its address, VALUE(4)
 *		what it has to be and VALUE(5) what it is.
 *		VALUE(0) is the generation, VALUE(1) how many of its pages are written, VALUE(3) how many pages the
 *		end has looked at.
 *
 * The pace is the VMM's: see vmm/guest/processor.py. vmm/guest/writer.py has the parameters, and tests the same words.
 */
#include "mailbox.h"

	.globl	SMP, PACE_ADDRESS
	.set	SMP, 1
	.set	PACE_ADDRESS, EVENT_HIGH << 16 | PACE_LOW

/* X1: the address of a page. Uses X2. */
.macro PAGE number
	add	x1, x20, \number, lsl #12
	add	x2, x1, x27
	cmp	\number, x26
	csel	x1, x2, x1, hs
.endm

/* X0: what the page at X1 holds of a generation. */
.macro WORD generation
	eor	x0, x1, \generation, lsl #40
	mul	x0, x0, x19
.endm

.macro WRITE
	WORD	x8
	mov	x3, x1
	mov	x2, #4096
1:	stp	x0, x0, [x3], #16
	subs	x2, x2, #16
	b.hi	1b
	add	x9, x9, #1
.endm

/* X5: the word that has to be X0. */
.macro EXPECT
	ldr	x6, [x5]
	cmp	x6, x0
	b.ne	wrong
.endm

	.text
ENTRY _start
	DONE

ENTRY write
	ldr	x19, =0x9e3779b97f4a7c15
	PARAM	x20, 0
	PARAM	x21, 1
	PARAM	x22, 2
	PARAM	x23, 3
	PARAM	x24, 4
	PARAM	x25, 5
	PARAM	x26, 6
	PARAM	x27, 7
	mov	x8, #1
	mov	x9, #0
2:	PAGE	x9
	WRITE
	cmp	x9, x21
	b.lo	2b
	mov	x10, x23
	mov	x11, x25
3:	add	x8, x8, #1
	mov	x9, #0
4:	PAGE	x9
	sub	x4, x8, #1
	WORD	x4
	mov	x5, x1
	EXPECT
	add	x5, x1, #4088
	EXPECT
	WRITE
	subs	x10, x10, #1
	b.ne	6f
	bl	publish
	TICK
	cbz	x24, 5f
	movz	x17, #EVENT_HIGH, lsl #16
	movk	x17, #PACE_LOW
	str	w24, [x17]
5:	mov	x10, x23
	subs	x11, x11, #1
	b.eq	verify
6:	cmp	x9, x22
	b.lo	4b
	b	3b

/* All pages: this generation's, those that still have the one before, and those that were only filled. */
verify:
	mov	x12, #0
1:	PAGE	x12
	mov	x4, x8
	cmp	x12, x9
	b.lo	2f
	sub	x4, x4, #1
	cmp	x12, x22
	b.lo	2f
	mov	x4, #1
2:	WORD	x4
	mov	x5, x1
	add	x7, x1, #4096
3:	EXPECT
	add	x5, x5, #8
	cmp	x5, x7
	b.lo	3b
	add	x12, x12, #1
	cmp	x12, x21
	b.lo	1b
	VALUE	x12, 3
	DONE

/* X5: the word, which is X6 and not X0. */
wrong:
	VALUE	x0, 4
	VALUE	x6, 5
	ADDRESS	x7, mailbox_difference
	mov	x6, #8
	stp	x5, x6, [x7]
	LEAVE	EVENT_DIFFERENT

publish:
	VALUE	x8, 0
	VALUE	x9, 1
	ret
