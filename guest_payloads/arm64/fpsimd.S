/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fpsimd: V0 to V31, FPSR and FPCR of a vCPU without SVE, in the first 128 bits of the Z registers' places.
 *
 *	load	the registers become `image`; DONE with them live
 *	store	the registers go to `observed`
 *	verify	the same, then compared with `image`
 *	hold	load, PARAM(0) ticks, verify
 */
#include "mailbox.h"
#include "area.h"

	.globl	SMP
	.set	SMP, 1

	.text
ENTRY _start
	bl	registers_to_observed
	DONE

ENTRY load
	bl	image_to_registers
	DONE

ENTRY store
	bl	registers_to_observed
	DONE

ENTRY verify
	bl	registers_to_observed
	ADDRESS	x1, image
	ADDRESS	x2, observed
	mov	x3, #AREA_SIZE
	b	compare

ENTRY hold
	bl	image_to_registers
	PARAM	x2, 0
1:	TICK
	subs	x2, x2, #1
	b.ne	1b
	b	verify

image_to_registers:
	ADDRESS	x2, image
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	ldr	q\n, [x2], #128
	add	x2, x2, #128
	.endr
	ldr	x3, [x2, #AREA_FPSR - AREA_P]
	msr	fpsr, x3
	ldr	x3, [x2, #AREA_FPCR - AREA_P]
	msr	fpcr, x3
	ret

registers_to_observed:
	ADDRESS	x2, observed
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	str	q\n, [x2], #128
	add	x2, x2, #128
	.endr
	mrs	x3, fpsr
	str	x3, [x2, #AREA_FPSR - AREA_P]
	mrs	x3, fpcr
	str	x3, [x2, #AREA_FPCR - AREA_P]
	ret
