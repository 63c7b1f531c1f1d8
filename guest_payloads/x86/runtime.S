/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Linked into every x86 payload: the mailbox, the exception vectors, small services.
 * Everything at CPL0 here is integer-only, so that a back end that interprets CPL0 can run it.
 */
#include "mailbox.h"

	.globl	EVENT_PORT_NUMBER, TICK_PORT_NUMBER
	.set	EVENT_PORT_NUMBER, EVENT_PORT
	.set	TICK_PORT_NUMBER, TICK_PORT

.macro FIELD name, quads
	.globl	mailbox_\name
mailbox_\name:
	.fill	\quads, 8, 0
.endm

	.section .mailbox, "aw", @progbits
	FIELD	params, 8
	FIELD	values, 16
	FIELD	vector, 1
	FIELD	error, 1
	FIELD	rip, 1
	FIELD	cs, 1
	FIELD	rflags, 1
	FIELD	rsp, 1
	FIELD	cr2, 1
	FIELD	cr0, 1
	FIELD	faults, 1	/* how many exceptions arrived */
	FIELD	fixup, 1	/* where to go on after the next exception; 0: report it */
	FIELD	hook, 1		/* CPL0 code that takes over after the next exception, its frame on the stack */
	FIELD	scratch, 2
	FIELD	difference, 1	/* offset of the first byte that differs */
	FIELD	differences, 1	/* how many bytes differ */

	.text

/* 32 stubs of 16 bytes: the host builds the IDT from `vectors`. */
	.globl	vectors
	.balign	16
vectors:
	.set	vector, 0
	.rept	32
	.balign	16
	.if (vector == 8) || (vector == 10) || (vector == 11) || (vector == 12) || (vector == 13) || (vector == 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
	.else
	pushq	$0			/* no error code from the CPU */
	.endif
	pushq	$vector
	jmp	exception
	.set	vector, vector + 1
	.endr
	.balign	16

/* Stack: vector, error code, RIP, CS, RFLAGS, RSP, SS. */
exception:
	movq	%rax, mailbox_scratch
	popq	%rax
	movq	%rax, mailbox_vector
	popq	%rax
	movq	%rax, mailbox_error
	movq	(%rsp), %rax
	movq	%rax, mailbox_rip
	movq	8(%rsp), %rax
	movq	%rax, mailbox_cs
	movq	16(%rsp), %rax
	movq	%rax, mailbox_rflags
	movq	24(%rsp), %rax
	movq	%rax, mailbox_rsp
	movq	%cr2, %rax
	movq	%rax, mailbox_cr2
	movq	%cr0, %rax
	movq	%rax, mailbox_cr0
	incq	mailbox_faults
	movq	mailbox_hook, %rax
	testq	%rax, %rax
	jz	2f
	movq	$0, mailbox_hook
	jmp	*%rax
2:	movq	mailbox_fixup, %rax
	testq	%rax, %rax
	jz	1f
	movq	%rax, (%rsp)
	movq	$0, mailbox_fixup
	movq	mailbox_scratch, %rax
	iretq
1:	movq	mailbox_scratch, %rax
	LEAVE	EVENT_EXCEPTION

/* PARAM(0) ticks, then DONE. */
ENTRY ticks
	movq	PARAM(0), %rcx
1:	TICK
	decq	%rcx
	jnz	1b
	DONE

/* Runs until somebody stops it. */
ENTRY spin
	pause
	jmp	spin

/*
 * Compare RCX bytes at RSI (expected) and RDI (observed), then DONE or EVENT_DIFFERENT.
 */
	.globl	compare
compare:
	movq	$0, mailbox_differences
	movq	$-1, mailbox_difference
	xorl	%edx, %edx
1:	cmpq	%rcx, %rdx
	jae	3f
	movb	(%rsi,%rdx), %al
	cmpb	(%rdi,%rdx), %al
	je	2f
	incq	mailbox_differences
	cmpq	$-1, mailbox_difference
	jne	2f
	movq	%rdx, mailbox_difference
2:	incq	%rdx
	jmp	1b
3:	cmpq	$0, mailbox_differences
	jne	4f
	DONE
4:	LEAVE	EVENT_DIFFERENT

	.bss
	.balign	64
	.globl	kernel_stack_top, user_stack_top
	.skip	4096
kernel_stack_top:
	.skip	4096
user_stack_top:
	.skip	64
