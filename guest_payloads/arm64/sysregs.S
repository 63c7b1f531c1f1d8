/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sysregs: system registers by MRS and MSR, in the order of `encodings`: op0, op1, CRn, CRm and op2 of each in a byte.
 *
 *	get	each register to its place in `values`; NONE where MRS is undefined or traps
 *	put	each register that a payload can do without becomes what its place in `values` has
 */
#include "mailbox.h"

	.globl	NONE
	.set	NONE, 0x0bad0bad0bad0bad

.macro OWN what
	\what	3, 0, 1, 0, 0		/* SCTLR_EL1 */
	\what	3, 0, 1, 0, 2		/* CPACR_EL1 */
	\what	3, 0, 2, 0, 0		/* TTBR0_EL1 */
	\what	3, 0, 2, 0, 2		/* TCR_EL1 */
	\what	3, 0, 10, 2, 0		/* MAIR_EL1 */
	\what	3, 0, 12, 0, 0		/* VBAR_EL1 */
	\what	3, 0, 1, 0, 1		/* ACTLR_EL1 */
	\what	3, 0, 0, 0, 5		/* MPIDR_EL1 */
	\what	3, 1, 0, 0, 1		/* CLIDR_EL1 */
.endm

.macro FREE what
	\what	3, 0, 2, 0, 1		/* TTBR1_EL1 */
	\what	3, 0, 5, 2, 0		/* ESR_EL1 */
	\what	3, 0, 6, 0, 0		/* FAR_EL1 */
	\what	3, 0, 7, 4, 0		/* PAR_EL1 */
	\what	3, 0, 13, 0, 1		/* CONTEXTIDR_EL1 */
	\what	3, 0, 13, 0, 4		/* TPIDR_EL1 */
	\what	3, 3, 13, 0, 2		/* TPIDR_EL0 */
	\what	3, 3, 13, 0, 3		/* TPIDRRO_EL0 */
	\what	3, 0, 14, 1, 0		/* CNTKCTL_EL1 */
	\what	3, 2, 0, 0, 0		/* CSSELR_EL1 */
	\what	3, 3, 14, 3, 2		/* CNTV_CVAL_EL0 */
	\what	3, 3, 14, 3, 1		/* CNTV_CTL_EL0 */
	\what	3, 3, 14, 2, 2		/* CNTP_CVAL_EL0 */
	\what	3, 3, 14, 2, 1		/* CNTP_CTL_EL0 */
.endm

.macro KEYS what		/* of pointer authentication */
	\what	3, 0, 2, 1, 0
	\what	3, 0, 2, 1, 1
	\what	3, 0, 2, 1, 2
	\what	3, 0, 2, 1, 3
	\what	3, 0, 2, 2, 0
	\what	3, 0, 2, 2, 1
	\what	3, 0, 2, 2, 2
	\what	3, 0, 2, 2, 3
	\what	3, 0, 2, 3, 0
	\what	3, 0, 2, 3, 1
.endm

.macro ENCODING op0, op1, crn, crm, op2
	.byte	\op0, \op1, \crn, \crm, \op2
.endm

.macro GET op0, op1, crn, crm, op2
	adr	x16, 1f
	str	x16, [x18]
	mov	x2, x20
	mrs	x2, S\op0\()_\op1\()_C\crn\()_C\crm\()_\op2
1:	str	x2, [x19], #8
.endm

.macro PUT op0, op1, crn, crm, op2
	adr	x16, 1f
	str	x16, [x18]
	ldr	x2, [x19]
	msr	S\op0\()_\op1\()_C\crn\()_C\crm\()_\op2, x2
1:	add	x19, x19, #8
.endm

.macro SKIP op0, op1, crn, crm, op2
	add	x19, x19, #8
.endm

	.text
ENTRY _start
	DONE

ENTRY get
	ADDRESS	x18, mailbox_fixup
	ADDRESS	x19, values
	ldr	x20, =NONE
	OWN	GET
	FREE	GET
	KEYS	GET
	str	xzr, [x18]
	DONE

ENTRY put
	ADDRESS	x18, mailbox_fixup
	ADDRESS	x19, values
	OWN	SKIP
	FREE	SKIP
	KEYS	PUT		/* where they are undefined, ESR_EL1 changes */
	ADDRESS	x19, values
	OWN	SKIP
	FREE	PUT
	str	xzr, [x18]
	DONE

	.section .rodata
	.globl	encodings, free_encodings, encodings_end
encodings:
	OWN	ENCODING
free_encodings:
	FREE	ENCODING
	KEYS	ENCODING
encodings_end:

	.bss
	.balign	4096
	.globl	values
values:	.skip	4096
