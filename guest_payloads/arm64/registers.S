/* SPDX-License-Identifier: Apache-2.0 */
/*
 * registers: what a vCPU's registers are for the guest itself.
 *
 *	seen	X0 to X30, SP, NZCV, DAIF, CurrentEL, SPSel, SP_EL0 (0 where that is SP), ELR_EL1 and SPSR_EL1, as they are when
 *		PC gets here, go to where SP points, in 8 bytes each; SP has to be at `saved`
 *	give	X0 to X29, SP, SP_EL0, ELR_EL1, SPSR_EL1 and NZCV become what `saved` has in the places of above; then X29
 *		is the event, and X30 its address
 *	sign	PARAM(0) signed with the modifier PARAM(1) by PACIA, PACIB, PACDA, PACDB to VALUE(0) to VALUE(3), PACGA
 *		of both to VALUE(4); then PARAM(2) ticks, and what AUTIA, AUTIB, AUTDA and AUTDB make of them goes to
 *		VALUE(8) to VALUE(11), AUTIB of VALUE(0) to VALUE(12)
 *	unmask	PSTATE.A becomes 0 for a moment; VALUE(15) says whether there was an exception then
 *	secondary_vectors, secondary_sve
 *		where PSCI CPU_ON may send another vCPU, its MMU off: X0, in which every bit is inverted that is 1 in any
 *		of X1 to X30, CPACR_EL1, FPSR, FPCR, V0 to V31, or ZCR_EL1, Z, P and FFR at the longest length, is its event
 */
#include "mailbox.h"

	.arch	armv8.3-a+sve
	.set	SCTLR_PAUTH, 1 << 31 | 1 << 30 | 1 << 27 | 1 << 13	/* EnIA, EnIB, EnDA, EnDB */

	.globl	SMP
	.set	SMP, 1

	.text
ENTRY _start
	DONE

ENTRY seen
	.irp	n, 0,2,4,6,8,10,12,14,16,18,20,22,24,26,28
	stp	x\n, x30, [sp, #8 * \n]
	.endr
	.irp	n, 1,3,5,7,9,11,13,15,17,19,21,23,25,27,29
	str	x\n, [sp, #8 * \n]
	.endr
	str	x30, [sp, #240]
	mov	x0, sp
	mrs	x1, nzcv
	stp	x0, x1, [sp, #248]
	mrs	x0, daif
	mrs	x1, CurrentEL
	stp	x0, x1, [sp, #264]
	mrs	x0, SPSel
	mov	x1, xzr
	cbz	x0, 1f		/* SP is SP_EL0, which MRS cannot read then */
	mrs	x1, sp_el0
1:	stp	x0, x1, [sp, #280]
	mrs	x0, elr_el1
	mrs	x1, spsr_el1
	stp	x0, x1, [sp, #296]
	DONE

ENTRY give
	ADDRESS	x30, saved
	ldr	x0, [x30, #248]
	mov	sp, x0
	ldp	x0, x1, [x30, #288]	/* SP_EL0 and ELR_EL1 */
	msr	sp_el0, x0
	msr	elr_el1, x1
	ldr	x0, [x30, #304]
	msr	spsr_el1, x0
	ldr	x0, [x30, #256]
	msr	nzcv, x0
	.irp	n, 0,2,4,6,8,10,12,14,16,18,20,22,24,26
	ldp	x\n, x29, [x30, #8 * \n]
	.endr
	.irp	n, 1,3,5,7,9,11,13,15,17,19,21,23,25,27,28,29
	ldr	x\n, [x30, #8 * \n]
	.endr
	ldr	x30, =EVENT_HIGH << 16
	.globl	at_give
at_give:
	str	x29, [x30]
	b	at_give

ENTRY sign
	mrs	x2, sctlr_el1
	ldr	x3, =SCTLR_PAUTH
	orr	x2, x2, x3
	msr	sctlr_el1, x2
	isb
	PARAM	x19, 0
	PARAM	x20, 1
	PARAM	x21, 2
	mov	x2, x19
	mov	x3, x19
	mov	x4, x19
	mov	x5, x19
	pacia	x2, x20
	pacib	x3, x20
	pacda	x4, x20
	pacdb	x5, x20
	pacga	x6, x19, x20
	VALUE	x2, 0
	VALUE	x3, 1
	VALUE	x4, 2
	VALUE	x5, 3
	VALUE	x6, 4
	mov	x7, x2
	cbz	x21, 2f
1:	TICK
	subs	x21, x21, #1
	b.ne	1b
2:	autia	x2, x20
	autib	x3, x20
	autda	x4, x20
	autdb	x5, x20
	VALUE	x2, 8
	VALUE	x3, 9
	VALUE	x4, 10
	VALUE	x5, 11
	MAY_FAULT 3f
	autib	x7, x20
3:	VALUE	x7, 12
	COUNT_FAULTS
	DONE

ENTRY unmask
	MAY_FAULT 1f
	msr	daifclr, #4
	isb
	msr	daifset, #4
1:	COUNT_FAULTS
	DONE

/* X1 gets the bits of all others, X2 is scratch; what follows adds to X1. */
.macro COLLECT_GENERAL
	.irp	n, 2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
	orr	x1, x1, x\n
	.endr
	mrs	x2, cpacr_el1
	orr	x1, x1, x2
	mov	x2, #0x330000		/* FPEN and ZEN */
	msr	cpacr_el1, x2
	isb
	mrs	x2, fpsr
	orr	x1, x1, x2
	mrs	x2, fpcr
	orr	x1, x1, x2
.endm

/* The bits of `saved` from its beginning to X3 are added, then the event. */
.macro COLLECT_MEMORY
	ADDRESS	x2, saved
1:	ldr	x4, [x2], #8
	orr	x1, x1, x4
	cmp	x2, x3
	b.lo	1b
	eor	x0, x0, x1
	movz	x1, #EVENT_HIGH, lsl #16
2:	str	x0, [x1]
	b	2b
.endm

ENTRY secondary_vectors
	COLLECT_GENERAL
	ADDRESS	x3, saved
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	str	q\n, [x3], #16
	.endr
	COLLECT_MEMORY

ENTRY secondary_sve
	COLLECT_GENERAL
	mrs	x2, S3_0_C1_C2_0	/* ZCR_EL1 */
	orr	x1, x1, x2
	mov	x2, #15
	msr	S3_0_C1_C2_0, x2
	isb
	ADDRESS	x3, saved
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	str	z\n, [x3]
	addvl	x3, x3, #1
	.endr
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
	str	p\n, [x3]
	add	x3, x3, #32
	.endr
	rdffr	p0.b
	str	p0, [x3]
	add	x3, x3, #32
	COLLECT_MEMORY

	.bss
	.balign	4096
	.globl	saved
saved:	.skip	4096 * 3
