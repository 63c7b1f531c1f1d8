/* SPDX-License-Identifier: Apache-2.0 */
/*
 * still: runs, and changes nothing of its vCPU but where it is. It uses no memory, no stack and no register's value,
 * so that each of them may be anything; interrupts have to be off.
 *
 *	tick		ticks without end
 *	wait		goes to `waiting`, where it runs until somebody stops it
 *	halt		HLT (CPL0), then the same
 *	undefined	UD2: without an IDT there is no way on
 *
 * `halted` and `ticked` are where RIP is behind these instructions. What may be CPL0 only runs where that is
 * interpreted, too. An SMI handler is not here but with its address, in vmm/conformance/x86/smm.py.
 */
#include "mailbox.h"

	.globl	SMP
	.set	SMP, 1

	.text
ENTRY _start
ENTRY tick
	outb	%al, $TICK_PORT
	.globl	ticked
ticked:	jmp	tick

ENTRY wait
	jmp	waiting
	.globl	waiting
waiting:
	pause
	jmp	waiting

ENTRY halt
	hlt
	.globl	halted
halted:	jmp	tick

ENTRY undefined
	ud2
