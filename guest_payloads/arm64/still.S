/* SPDX-License-Identifier: Apache-2.0 */
/*
 * still: a guest that changes none of its registers but PC. X30 has to be the address of a tick, SP a place for a vector.
 *
 *	still	ticks
 *	still_vectors, still_sve	Q0 or Z0 is stored once, so that the vector registers are in use; then ticks
 *	asleep	WFI, again and again
 */
#include "mailbox.h"

	.arch	armv8-a+sve
	.globl	SMP
	.set	SMP, 1

	.text
ENTRY _start
	DONE

ENTRY still_sve
	str	z0, [sp]
	b	still

ENTRY still_vectors
	str	q0, [sp]
ENTRY still
	str	xzr, [x30]
	b	still

ENTRY asleep
	wfi
	b	asleep

	.bss
	.balign	256
	.globl	room
room:	.skip	4096
