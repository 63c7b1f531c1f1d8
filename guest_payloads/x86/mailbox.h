/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every x86 payload shares: the ways out, and the macros that use the mailbox.
 *
 * The mailbox is the page labelled `mailbox_*` in runtime.S. The host finds every field by its symbol,
 * so the layout has no second home. A payload is a set of entry points: the host writes parameters,
 * sets RIP to an entry and runs; the entry leaves through DONE. All code runs at CPL0 or CPL3 alike,
 * with an identity mapping of the first 4 GiB; RSP is set by the host.
 */
#ifndef MAILBOX_H
#define MAILBOX_H

#define EVENT_PORT 0xe4  /* OUT with an event number: the host takes over */
#define TICK_PORT 0xe8   /* OUT for the sake of an exit: the shim's run loop absorbs it */
#define PACE_PORT 0xec   /* OUT with microseconds: the VMM lets it go on when they are over, see vmm/guest/processor.py */

#define EVENT_DONE 1       /* the entry point did what it is for */
#define EVENT_EXCEPTION 2  /* an exception without a fixup; mailbox_vector and following say which */
#define EVENT_DIFFERENT 3  /* a comparison failed; mailbox_difference and following say where */

#define PARAM(n) mailbox_params + 8 * (n)
#define VALUE(n) mailbox_values + 8 * (n)

/* Define a global entry point. */
.macro ENTRY name
	.globl \name
	.type \name, @function
	.balign 16
\name:
.endm

/* Leave for the host with an event; being resumed means repeating it. */
.macro LEAVE event
	movl	$\event, %eax
9:	outl	%eax, $EVENT_PORT
	jmp	9b
.endm

.macro DONE
	LEAVE	EVENT_DONE
.endm

/* One exit that needs no host. */
.macro TICK
	outl	%eax, $TICK_PORT
.endm

/* If the next instruction faults, go on at `label` with the fault in the mailbox. Uses RAX. */
.macro ON_FAULT label
	leaq	\label(%rip), %rax
	movq	%rax, mailbox_fixup
.endm

#endif
