/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sve: the vector state at whatever length ZCR_EL1 and the host allow.
 *
 *	load		the registers become `image`; DONE with them live
 *	store		the registers go to `observed`
 *	verify		the same, then compared with `image`
 *	hold		load, PARAM(0) ticks, verify
 *	load_zcr	load, then ZCR_EL1 = PARAM(0)
 *	lengths		RDVL with ZCR_EL1.LEN = n to VALUE(n); ZCR_EL1 = PARAM(0) in the end
 *	rdvl		ZCR_EL1 to VALUE(1), RDVL to VALUE(0): nothing is changed
 *	index		Z0 becomes 0, 1, 2, ... byte by byte
 *	neon		all bytes of V(0) become 0x55, an AdvSIMD write of 128 bits
 *	first_fault	a first-fault load of bytes at PARAM(0) to Z0, FFR as it leaves it
 */
#include "mailbox.h"
#include "area.h"

	.arch	armv8.2-a+sve
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
compare_areas:
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

ENTRY load_zcr
	bl	image_to_registers
	PARAM	x2, 0
	msr	S3_0_C1_C2_0, x2
	isb
	DONE

ENTRY lengths
	mov	x2, #0
	ADDRESS	x3, mailbox_values
1:	msr	S3_0_C1_C2_0, x2
	isb
	rdvl	x4, #1
	str	x4, [x3, x2, lsl #3]
	add	x2, x2, #1
	cmp	x2, #16
	b.ne	1b
	PARAM	x2, 0
	msr	S3_0_C1_C2_0, x2
	isb
	DONE

ENTRY rdvl
	rdvl	x2, #1
	VALUE	x2, 0
	mrs	x2, S3_0_C1_C2_0
	VALUE	x2, 1
	DONE

ENTRY index
	index	z0.b, #0, #1
	DONE

ENTRY neon
	movi	v0.16b, #0x55
	DONE

ENTRY first_fault
	PARAM	x2, 0
	ptrue	p0.b
	setffr
	ldff1b	{z0.b}, p0/z, [x2]
	DONE

image_to_registers:
	ADDRESS	x0, image
	mov	x2, x0
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	ldr	z\n, [x2]
	add	x2, x2, #256
	.endr
	add	x3, x2, #AREA_FFR - AREA_P
	ldr	p0, [x3]
	wrffr	p0.b
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
	ldr	p\n, [x2]
	add	x2, x2, #32
	.endr
	ldr	x3, [x2, #AREA_FPSR - AREA_FFR]
	msr	fpsr, x3
	ldr	x3, [x2, #AREA_FPCR - AREA_FFR]
	msr	fpcr, x3
	ret

registers_to_observed:
	ADDRESS	x2, observed
	mov	x3, #AREA_SIZE
1:	subs	x3, x3, #8
	str	xzr, [x2, x3]
	b.ne	1b
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	str	z\n, [x2]
	add	x2, x2, #256
	.endr
	mov	x3, x2
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
	str	p\n, [x2]
	add	x2, x2, #32
	.endr
	rdffr	p0.b
	str	p0, [x2]
	ldr	p0, [x3]
	mrs	x3, fpsr
	str	x3, [x2, #AREA_FPSR - AREA_FFR]
	mrs	x3, fpcr
	str	x3, [x2, #AREA_FPCR - AREA_FFR]
	ret
