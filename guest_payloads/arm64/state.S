/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state: what a vCPU was given before it ran, as its guest sees it.
 *
 *	sysregs	MRS of TPIDR_EL0, TPIDRRO_EL0, TPIDR_EL1, FAR_EL1, ESR_EL1, CONTEXTIDR_EL1, CNTKCTL_EL1 and CSSELR_EL1
 *		to VALUE(0..7)
 *	unmask	a tick, VALUE(0) = 1, SErrors are unmasked at `unmasked`, two ticks
 */
#include "mailbox.h"

	.text
ENTRY _start
	DONE

.macro READ register, number
	mrs	x2, \register
	VALUE	x2, \number
.endm

ENTRY sysregs
	READ	tpidr_el0, 0
	READ	tpidrro_el0, 1
	READ	tpidr_el1, 2
	READ	far_el1, 3
	READ	esr_el1, 4
	READ	contextidr_el1, 5
	READ	cntkctl_el1, 6
	READ	csselr_el1, 7
	DONE

ENTRY unmask
	TICK
	mov	x2, #1
	VALUE	x2, 0
	.globl	unmasked
unmasked:
	msr	daifclr, #4
	isb
	TICK
	TICK
	DONE
