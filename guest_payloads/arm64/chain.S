/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chain: a hash that runs through a vCPU's registers. Each step stores all registers, mixes them with some memory
 * into a digest and into their own next values, loads those and ticks: at a tick only the registers hold the state
 * (what they were loaded from is wiped), and one bit of it lost changes every later digest.
 *
 *	chain_fpsimd	X0 to X30, SP, NZCV, V0 to V31, FPSR, FPCR, SP_EL0, TPIDR_EL0, TPIDRRO_EL0, TPIDR_EL1
 *	chain_sve	the same with Z, P and FFR, and with ZCR_EL1: most steps choose another vector length, of
 *			1, 2, 4, ... quadwords below PARAM(2), and that
 *
 * PARAM(0) ticks from seed PARAM(1). VALUE(0) and VALUE(1) are the digest, at a tick the running one, in the end the
 * one over all of the memory too. VALUE(2) counts the ticks, this one included.
 *
 * Of several vCPUs each runs a chain of its own, in what it has for itself of this memory.
 *
 * vmm/arm64/chain.py computes the same in Python: what is said here by numbers is said there again.
 */
#include "mailbox.h"

	.arch	armv8.2-a+sve
	.set	WINDOW_LINES, 512	/* 8 pages, in lines of 64 bytes */
	.set	LARGEST, 16		/* quadwords of a vector */

/* Offsets in the image, where registers are stored to and loaded from. */
	.set	AT_SP, 248		/* behind X0 to X30: how far SP is below where it began */
	.set	CONTROL, 256		/* NZCV, FPSR, FPCR, ZCR_EL1, TPIDR_EL0, TPIDRRO_EL0, TPIDR_EL1, SP_EL0 */
	.set	VECTORS, 320		/* as wide as they are, then, where they would end at PARAM(2), P and FFR */
	.set	FIXED_LINES, 5
	.set	IMAGE_LINES, FIXED_LINES + 8 * LARGEST + 9

.macro EACH_LANE_PAIR op, base
	\op	x8, x9, [\base]
	\op	x10, x11, [\base, #16]
	\op	x12, x13, [\base, #32]
	\op	x14, x15, [\base, #48]
.endm
.macro MIX_PAIR first, second, offset
	ldp	x2, x3, [x0, #\offset]
	eor	\first, \first, x2
	eor	\second, \second, x3
	mul	\first, \first, x22
	mul	\second, \second, x22
	ror	\first, \first, #35
	ror	\second, \second, #35
	stp	\first, \second, [x0, #\offset]
.endm

	.text
/*
 * A word goes into a lane: lane = rotate left((lane ^ word) * X22, 29), and the lane is what the word becomes.
 * There are 8 lanes, word n of a line belongs to lane n. X0: the first line, X1: how many lines of 64 bytes.
 */
mix:
	ADDRESS	x7, lanes
	EACH_LANE_PAIR ldp, x7
1:	MIX_PAIR x8, x9, 0
	MIX_PAIR x10, x11, 16
	MIX_PAIR x12, x13, 32
	MIX_PAIR x14, x15, 48
	add	x0, x0, #64
	subs	x1, x1, #1
	b.ne	1b
	EACH_LANE_PAIR stp, x7
	ret

/* The digest, X19 and X20, becomes 8 lanes. X22 is the multiplier. */
spread:
	ldr	x22, =0x9e3779b97f4a7c15
	ADDRESS	x7, lanes
	mov	x2, x22
	.rept	4
	add	x3, x19, x2
	add	x2, x2, x22
	add	x4, x20, x2
	add	x2, x2, x22
	stp	x3, x4, [x7], #16
	.endr
	ret

/* The lanes become part of the digest, which goes to the mailbox. */
fold:
	ADDRESS	x7, lanes
	.rept	8
	ldr	x2, [x7], #8
	eor	x2, x19, x2
	mul	x2, x2, x22
	ror	x2, x2, #33
	add	x19, x20, x2
	mov	x20, x2
	.endr
	VALUE	x19, 0
	VALUE	x20, 1
	ret

/* X1 lines from X0 on: zeros. */
wipe:
	.irp	offset, 0, 16, 32, 48
	stp	xzr, xzr, [x0, #\offset]
	.endr
	add	x0, x0, #64
	subs	x1, x1, #1
	b.ne	wipe
	ret

/* The memory, then the first step without registers. X2: lines of the image. */
begin:
	mov	x29, x30
	ADDRESS	x3, image_lines
	str	x2, [x3]
	mov	x3, sp
	ADDRESS	x4, sp_base
	str	x3, [x4]
	ADDRESS	x0, lanes
	mov	x1, #1 + IMAGE_LINES
	bl	wipe
	ADDRESS	x0, window
	mov	x1, #WINDOW_LINES
	bl	wipe
	PARAM	x19, 1
	PARAM	x20, 2
	mov	x21, #0
	VALUE	x21, 2
	bl	mix_window
	mov	x30, x29
	b	mix_step

/* All of the memory becomes part of the digest. */
mix_window:
	mov	x28, x30
	bl	spread
	ADDRESS	x0, window
	mov	x1, #WINDOW_LINES
	bl	mix
	mov	x30, x28
	b	fold

/* The image and the line of memory that belongs to this tick; the next one is in another page. */
mix_step:
	mov	x28, x30
	bl	spread
	ADDRESS	x0, image
	ADDRESS	x1, image_lines
	ldr	x1, [x1]
	bl	mix
	ADDRESS	x0, window
	mov	x1, #65
	mul	x1, x1, x21
	and	x1, x1, #WINDOW_LINES - 1
	add	x0, x0, x1, lsl #6
	mov	x1, #1
	bl	mix
	mov	x30, x28
	b	fold

/* X0: the image. FPSR, FPCR and the registers that take any value; X4: what becomes NZCV. */
load_control:
	ldp	x4, x2, [x0, #CONTROL]
	and	x4, x4, #0xf0000000
	ldr	x3, =0x0800009f
	and	x2, x2, x3
	msr	fpsr, x2
	ldr	x2, [x0, #CONTROL + 16]
	and	x2, x2, #0x07c00000
	msr	fpcr, x2
	ldp	x2, x3, [x0, #CONTROL + 32]
	msr	tpidr_el0, x2
	msr	tpidrro_el0, x3
	ldp	x2, x3, [x0, #CONTROL + 48]
	msr	tpidr_el1, x2
	msr	sp_el0, x3
	ret

store_control:
	mrs	x2, fpsr
	mrs	x3, fpcr
	stp	x2, x3, [x0, #CONTROL + 8]
	mrs	x2, tpidr_el0
	mrs	x3, tpidrro_el0
	stp	x2, x3, [x0, #CONTROL + 32]
	mrs	x2, tpidr_el1
	mrs	x3, sp_el0
	stp	x2, x3, [x0, #CONTROL + 48]
	ret

.macro EACH_VECTOR op
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	\op	\n
	.endr
.endm
.macro EACH_PREDICATE op
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
	\op	\n
	.endr
.endm
.macro LOAD_V n
	ldr	q\n, [x1, #16 * \n]
.endm
.macro STORE_V n
	str	q\n, [x1, #16 * \n]
.endm
.macro LOAD_Z n
	ldr	z\n, [x1, #\n, mul vl]
.endm
.macro STORE_Z n
	str	z\n, [x1, #\n, mul vl]
.endm
.macro LOAD_P n
	ldr	p\n, [x2, #\n, mul vl]
.endm
.macro STORE_P n
	str	p\n, [x2, #\n, mul vl]
.endm

.macro LINES_fpsimd
	mov	x2, #FIXED_LINES + 8
.endm
.macro LOAD_fpsimd
	add	x1, x0, #VECTORS
	EACH_VECTOR LOAD_V
.endm
.macro STORE_fpsimd
	add	x1, x0, #VECTORS
	EACH_VECTOR STORE_V
.endm

/* 8 lines of Z and 34 bytes of P and FFR for each quadword. */
.macro LINES_sve
	PARAM	x1, 2
	mov	x2, #34
	mul	x2, x2, x1
	add	x2, x2, #63
	lsr	x2, x2, #6
	add	x2, x2, x1, lsl #3
	add	x2, x2, #FIXED_LINES
.endm

/* X1: where Z lie, X2: P. */
.macro PLACES
	PARAM	x3, 2
	add	x1, x0, #VECTORS
	add	x2, x1, x3, lsl #9
.endm

/* The length is chosen by a mixed word, FFR has as many ones as another one says. */
.macro LOAD_sve
	PLACES
	sub	x5, x3, #1
	clz	x5, x5
	mov	x6, #65
	sub	x6, x6, x5		/* how many lengths there are to choose from */
	ldr	x5, [x0, #CONTROL + 24]
	udiv	x7, x5, x6
	msub	x5, x7, x6, x5
	mov	x6, #1
	lsl	x5, x6, x5
	cmp	x5, x3
	csel	x5, x5, x3, lo
	sub	x6, x5, #1
	msr	S3_0_C1_C2_0, x6	/* ZCR_EL1 */
	isb
	add	x6, x2, x5, lsl #5
	ldr	x6, [x6]
	lsl	x5, x5, #4
	add	x5, x5, #1
	udiv	x7, x6, x5
	msub	x6, x7, x5, x6
	whilelo	p0.b, xzr, x6
	wrffr	p0.b
	EACH_VECTOR LOAD_Z
	EACH_PREDICATE LOAD_P
.endm
.macro STORE_sve
	mrs	x1, S3_0_C1_C2_0
	str	x1, [x0, #CONTROL + 24]
	PLACES
	EACH_VECTOR STORE_Z
	EACH_PREDICATE STORE_P
	rdffr	p0.b
	str	p0, [x2, #16, mul vl]
.endm

.macro EACH_GPR_PAIR op
	\op	x2, x3, [x17, #16]
	\op	x4, x5, [x17, #32]
	\op	x6, x7, [x17, #48]
	\op	x8, x9, [x17, #64]
	\op	x10, x11, [x17, #80]
	\op	x12, x13, [x17, #96]
	\op	x14, x15, [x17, #112]
	\op	x18, x19, [x17, #144]
	\op	x20, x21, [x17, #160]
	\op	x22, x23, [x17, #176]
	\op	x24, x25, [x17, #192]
	\op	x26, x27, [x17, #208]
	\op	x28, x29, [x17, #224]
.endm

/* As many calls as `depth` says, so that SP is not always the same at the tick below them. */
descend:
	stp	x29, x30, [sp, #-16]!
	ADDRESS	x1, depth
	ldr	x2, [x1]
	subs	x2, x2, #1
	str	x2, [x1]
	b.eq	1f
	bl	descend
	ldp	x29, x30, [sp], #16
	ret
1:	ADDRESS	x17, image
	ldr	x0, [x17, #AT_SP]	/* the flags are kept there */
	msr	nzcv, x0
	ldp	x0, x1, [x17]
	EACH_GPR_PAIR ldp
	ldr	x16, [x17, #128]
	ldr	x30, [x17, #240]
	.irp	offset, 0,16,32,48,64,80,96,112,128,144,160,176,192,208,224,240
	stp	xzr, xzr, [x17, #\offset]
	.endr
	movz	x17, #EVENT_HIGH, lsl #16
	movk	x17, #TICK_LOW
	.globl	at_tick
at_tick:
	str	xzr, [x17]
	stp	x16, x17, [sp, #-16]!
	ADDRESS	x17, image
	stp	x0, x1, [x17]
	EACH_GPR_PAIR stp
	str	x30, [x17, #240]
	ldp	x0, x1, [sp], #16
	stp	x0, x1, [x17, #128]
	ADDRESS	x0, sp_base
	ldr	x0, [x0]
	mov	x1, sp
	sub	x0, x0, x1
	str	x0, [x17, #AT_SP]
	mrs	x0, nzcv
	str	x0, [x17, #CONTROL]
	ldp	x29, x30, [sp], #16
	ret

.macro CHAIN level
ENTRY chain_\level
	LINES_\level
	bl	begin
2:	PARAM	x0, 0
	cmp	x21, x0
	b.hs	3f
	add	x21, x21, #1
	VALUE	x21, 2
	ADDRESS	x0, image
	stp	x19, x20, [x0, #8 * 19]
	str	x21, [x0, #8 * 21]
	and	x2, x20, #7
	add	x2, x2, #1
	ADDRESS	x1, depth
	str	x2, [x1]
	bl	load_control
	str	x4, [x0, #AT_SP]
	LOAD_\level
	ADDRESS	x0, lanes
	mov	x1, #1
	bl	wipe
	ADDRESS	x0, image + CONTROL
	ADDRESS	x1, image_lines
	ldr	x1, [x1]
	sub	x1, x1, #CONTROL / 64
	bl	wipe
	bl	descend
	ADDRESS	x0, image
	bl	store_control
	STORE_\level
	ldp	x19, x20, [x0, #8 * 19]
	ldr	x21, [x0, #8 * 21]
	bl	mix_step
	b	2b
3:	bl	mix_window
	DONE
.endm

	.globl	SMP
	.set	SMP, 1
ENTRY _start
	DONE

	CHAIN	fpsimd
	CHAIN	sve

	.bss
	.balign	8
sp_base:
	.skip	8
depth:	.skip	8
image_lines:
	.skip	8
	.balign	4096
	.globl	image, window, IMAGE_SIZE, WINDOW_SIZE
	.set	IMAGE_SIZE, 64 * IMAGE_LINES
	.set	WINDOW_SIZE, 64 * WINDOW_LINES
lanes:	.skip	64
image:	.skip	IMAGE_SIZE
	.balign	4096
window:	.skip	WINDOW_SIZE
