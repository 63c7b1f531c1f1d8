/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hello: one exit of each simple kind.
 *
 *	_start	8-byte MMIO write of 0x1122334455667788 to 0xd0000000, 4-byte MMIO read of 0xd0000008 to
 *		VALUE(0), 1-byte MMIO write of 'H' to 0xd0000010
 *	load	a load of PARAM(1) bytes (1, 2, 4, 8) at PARAM(0) to VALUE(0), sign-extended if PARAM(2)
 *	store_vector	STR Q0 at PARAM(0): an exit without a syndrome where that is unbacked
 *	secondary	where PSCI CPU_ON may send another vCPU, its MMU off: stores X0 as its event
 */
#include "mailbox.h"

	.text
ENTRY _start
	movz	x2, #0xd000, lsl #16
	ldr	x3, =0x1122334455667788
	str	x3, [x2]
	ldr	w3, [x2, #8]
	VALUE	x3, 0
	mov	w3, #'H'
	strb	w3, [x2, #16]
	DONE

ENTRY load
	PARAM	x2, 0
	PARAM	x3, 1
	PARAM	x4, 2
	cbnz	x4, 2f
	cmp	x3, #2
	b.lo	11f
	b.eq	12f
	cmp	x3, #8
	b.lo	14f
	ldr	x5, [x2]
	b	3f
11:	ldrb	w5, [x2]
	b	3f
12:	ldrh	w5, [x2]
	b	3f
14:	ldr	w5, [x2]
	b	3f
2:	cmp	x3, #2
	b.lo	21f
	b.eq	22f
	ldrsw	x5, [x2]
	b	3f
21:	ldrsb	x5, [x2]
	b	3f
22:	ldrsh	x5, [x2]
3:	VALUE	x5, 0
	DONE

ENTRY store_vector
	PARAM	x2, 0
	.globl	at_store_vector
at_store_vector:
	str	q0, [x2]
	DONE

ENTRY secondary
	movz	x1, #EVENT_HIGH, lsl #16
1:	str	x0, [x1]
	b	1b
