/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nested: a hypervisor at EL2 (L1, with HCR_EL2.E2H) and what it runs at EL1 (L2), both in the same memory by the same
 * tables. The host puts the vCPU at EL2; the exception vectors of the runtime are L1's own faults.
 *
 *	rdvl, neon, sve		L2 executes RDVL (X0 to VALUE(0)), an AdvSIMD or an SVE instruction, then HVC, with
 *				ZCR_EL2 = PARAM(0), ZCR_EL1 = PARAM(1) and CPTR_EL2 = PARAM(2). What brings L1 back is
 *				ESR_EL2, in VALUE(1), at ELR_EL2, in VALUE(2).
 *	keep_neon, keep_sve	L1 loads V or Z, with those lengths, from `image`; L2 leaves PARAM(3) ticks, stores them to `second`, inverts
 *				them and calls HVC; L1 stores them to `first`.
 *
 * Each register has 256 bytes in `image`, `second` and `first`.
 */
#include "mailbox.h"

	.arch	armv8.2-a+sve
	.set	L2_STATE, 0x3c5		/* EL1 with its own stack pointer, all masked */
	.set	ALL_OPEN, 0x330000	/* CPTR_EL2 under E2H: FPEN and ZEN */

.macro EACH_REGISTER op
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	\op	\n
	add	x2, x2, #256
	.endr
.endm
.macro LOAD_neon n
	ldr	q\n, [x2]
.endm
.macro STORE_neon n
	str	q\n, [x2]
.endm
.macro INVERT_neon n
	mvn	v\n\().16b, v\n\().16b
.endm
.macro LOAD_sve n
	ldr	z\n, [x2]
.endm
.macro STORE_sve n
	str	z\n, [x2]
.endm
.macro INVERT_sve n
	not	z\n\().b, p0/m, z\n\().b
.endm

	.text
ENTRY _start
	DONE

/* X0: where L2 begins. X1: where L1 goes on. */
enter_l2:
	ADDRESS	x2, resume
	str	x1, [x2]
	msr	S3_4_C4_C0_1, x0	/* ELR_EL2 */
	mov	x2, #L2_STATE
	msr	S3_4_C4_C0_0, x2	/* SPSR_EL2 */
	ADDRESS	x2, l1_vectors
	msr	S3_4_C12_C0_0, x2	/* VBAR_EL2 */
	PARAM	x2, 2
	msr	S3_4_C1_C1_2, x2	/* CPTR_EL2 */
	isb
	eret

.macro LENGTHS
	PARAM	x2, 0
	msr	S3_4_C1_C2_0, x2	/* ZCR_EL2 */
	PARAM	x2, 1
	msr	S3_5_C1_C2_0, x2	/* ZCR_EL12, L2's ZCR_EL1 */
	isb
.endm

ENTRY rdvl
	LENGTHS
	adr	x0, l2_rdvl
	adr	x1, finish
	b	enter_l2

ENTRY neon
	adr	x0, l2_neon
	adr	x1, finish
	b	enter_l2

ENTRY sve
	LENGTHS
	adr	x0, l2_sve
	adr	x1, finish
	b	enter_l2

	.globl	l2_rdvl, l2_neon, l2_sve
l2_rdvl:
	rdvl	x0, #1
	hvc	#0
l2_neon:
	movi	v0.16b, #0x55
	hvc	#0
l2_sve:
	ptrue	p0.b
	hvc	#0

.macro KEEP kind
ENTRY keep_\kind
	.ifc	\kind, sve
	LENGTHS
	.endif
	ADDRESS	x2, image
	EACH_REGISTER LOAD_\kind
	adr	x0, l2_keep_\kind
	adr	x1, back_\kind
	b	enter_l2
l2_keep_\kind:
	PARAM	x3, 3
1:	TICK
	subs	x3, x3, #1
	b.ne	1b
	ADDRESS	x2, second
	EACH_REGISTER STORE_\kind
	.ifc	\kind, sve
	ptrue	p0.b
	.endif
	ADDRESS	x2, second
	EACH_REGISTER INVERT_\kind
	hvc	#0
back_\kind:
	ADDRESS	x2, first
	EACH_REGISTER STORE_\kind
	b	finish
.endm
	KEEP	neon
	KEEP	sve

finish:
	DONE

/* L2 has left: from here on nothing is trapped from L1. X0 is L2's. */
from_l2:
	VALUE	x0, 0
	mrs	x2, S3_4_C5_C2_0	/* ESR_EL2 */
	VALUE	x2, 1
	mrs	x2, S3_4_C4_C0_1	/* ELR_EL2 */
	VALUE	x2, 2
	mov	x2, #ALL_OPEN
	msr	S3_4_C1_C1_2, x2
	isb
	ADDRESS	x2, resume
	ldr	x2, [x2]
	br	x2

	.balign	2048
l1_vectors:
	.set	vector, 0
	.rept	16
	.balign	128
	.if	vector == 8
	b	from_l2
	.else
	ADDRESS	x0, vectors
	add	x0, x0, #128 * vector
	br	x0
	.endif
	.set	vector, vector + 1
	.endr
	.balign	128

	.bss
	.balign	8
resume:	.skip	8
	.balign	256
	.globl	image, second, first
image:	.skip	32 * 256
second:	.skip	32 * 256
first:	.skip	32 * 256
