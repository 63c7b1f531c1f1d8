/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every arm64 payload shares: the ways out, and the macros that use the mailbox.
 *
 * The mailbox is the page labelled `mailbox_*` in runtime.S. The host finds every field by its symbol,
 * so the layout has no second home. A payload is a set of entry points: the host writes parameters,
 * sets PC to an entry and runs; the entry leaves through DONE. All code runs at EL1 with the MMU on and
 * an identity mapping: memory is Normal and ends at 4 MiB, 1 to 2 GiB and 3 to 4 GiB are Device. The
 * stack pointer is set by the host. Nobody waits for an interrupt: there is no interrupt controller.
 */
#ifndef MAILBOX_H
#define MAILBOX_H

#define EVENT_HIGH 0x4000	/* 0x40000000: a store of an event number, and the host takes over */
#define TICK_LOW 0x1000		/* 0x40001000: a store for the sake of an exit: the shim's run loop absorbs it */
#define PACE_LOW 0x2000		/* 0x40002000: a store of microseconds: the VMM lets it go on when they are over */

#define EVENT_DONE 1       /* the entry point did what it is for */
#define EVENT_EXCEPTION 2  /* an exception without a fixup; mailbox_vector and following say which */
#define EVENT_DIFFERENT 3  /* a comparison failed; mailbox_difference and following say where */

/* Define a global entry point. */
.macro ENTRY name
	.globl \name
	.type \name, @function
	.balign 16
\name:
.endm

.macro ADDRESS register, symbol
	adrp	\register, \symbol
	add	\register, \register, :lo12:\symbol
.endm

.macro PARAM register, number
	adrp	\register, mailbox_params
	add	\register, \register, :lo12:mailbox_params
	ldr	\register, [\register, #8 * (\number)]
.endm

/* Put a register into VALUE(number). Uses X17. */
.macro VALUE register, number
	ADDRESS	x17, mailbox_values
	str	\register, [x17, #8 * (\number)]
.endm

/* Leave for the host with an event; being resumed means repeating it. */
.macro LEAVE event
	movz	x0, #EVENT_HIGH, lsl #16
	mov	x1, #\event
9:	str	x1, [x0]
	b	9b
.endm

.macro DONE
	LEAVE	EVENT_DONE
.endm

/* One exit that needs no host. Uses X17. */
.macro TICK
	movz	x17, #EVENT_HIGH, lsl #16
	movk	x17, #TICK_LOW
	str	xzr, [x17]
.endm

/* If the next instruction faults, go on at `label` with the fault in the mailbox. Uses X16 and X17. */
.macro ON_FAULT label
	adr	x16, \label
	ADDRESS	x17, mailbox_fixup
	str	x16, [x17]
.endm

/* Count from 0 and have the first fault go on at `label`. */
.macro MAY_FAULT label
	ADDRESS	x17, mailbox_faults
	str	xzr, [x17]
	ON_FAULT \label
.endm

/* VALUE(15) becomes the number of faults. */
.macro COUNT_FAULTS
	ADDRESS	x17, mailbox_fixup
	str	xzr, [x17]
	ADDRESS	x17, mailbox_faults
	ldr	x16, [x17]
	VALUE	x16, 15
.endm

#endif
