/* SPDX-License-Identifier: Apache-2.0 */
/*
 * writer: writes memory at a pace, and knows at every moment what each page has to hold.
 *
 *	write	Fills PARAM(1) pages from address PARAM(0) on, which is generation 1, as fast as it can. Then it
 *		writes the first PARAM(2) of them anew, pass after pass, each pass a generation: PARAM(3) pages,
 *		a tick, and PARAM(4) microseconds from the beginning of one such share to that of the next
 *		(0: no pace); PARAM(5) shares (0: no end). Pages from number PARAM(6) on lie PARAM(7) bytes
 *		further: behind a hole. All 512 words of a page are ((generation << 40) ^ its address) * MULTIPLIER.
 *		A page is looked at before it is written, its first and its last word; in the end all words of all
 *		pages are. One that is stale or torn is a DIFFERENT: mailbox_difference is its address, VALUE(4)
 *		what it has to be and VALUE(5) what it is.
 *		VALUE(0) is the generation, VALUE(1) how many of its pages are written, VALUE(3) how many pages the
 *		end has looked at.
 *
 * The pace is the VMM's: see vmm/guest/processor.py. vmm/guest/writer.py has the parameters, and tests the same words.
 */
#include "mailbox.h"

	.set	MULTIPLIER, 0x9e3779b97f4a7c15
	.globl	SMP, PACE_PORT_NUMBER
	.set	SMP, 1
	.set	PACE_PORT_NUMBER, PACE_PORT

/* RBX: the address of a page. */
.macro PAGE number
	movq	\number, %rbx
	shlq	$12, %rbx
	addq	PARAM(0), %rbx
	cmpq	PARAM(6), \number
	jb	8f
	addq	PARAM(7), %rbx
8:
.endm

/* RAX: what the page at RBX holds of a generation. */
.macro WORD generation
	movq	\generation, %rax
	shlq	$40, %rax
	xorq	%rbx, %rax
	imulq	%r15, %rax
.endm

.macro WRITE
	WORD	%r8
	movq	%rbx, %rdi
	movl	$512, %ecx
	rep stosq
	incq	%r9
.endm

.macro EXPECT address
	leaq	\address, %rdi
	cmpq	(%rdi), %rax
	jne	wrong
.endm

	.text
ENTRY _start
	DONE

ENTRY write
	cld
	movabsq	$MULTIPLIER, %r15
	movl	$1, %r8d
	xorl	%r9d, %r9d
1:	PAGE	%r9
	WRITE
	cmpq	PARAM(1), %r9
	jb	1b
	movq	PARAM(3), %r10
	movq	PARAM(5), %r11
2:	incq	%r8
	xorl	%r9d, %r9d
3:	PAGE	%r9
	leaq	-1(%r8), %rdx
	WORD	%rdx
	EXPECT	(%rbx)
	EXPECT	4088(%rbx)
	WRITE
	decq	%r10
	jnz	4f
	call	publish
	TICK
	movl	PARAM(4), %eax
	testl	%eax, %eax
	jz	5f
	outl	%eax, $PACE_PORT
5:	movq	PARAM(3), %r10
	decq	%r11
	jz	verify
4:	cmpq	PARAM(2), %r9
	jb	3b
	jmp	2b

/* All pages: this generation's, those that still have the one before, and those that were only filled. */
verify:
	xorl	%r12d, %r12d
1:	PAGE	%r12
	movq	%r8, %rdx
	cmpq	%r9, %r12
	jb	2f
	decq	%rdx
	cmpq	PARAM(2), %r12
	jb	2f
	movl	$1, %edx
2:	WORD	%rdx
	movq	%rbx, %rdi
	movl	$512, %ecx
	repe scasq
	leaq	-8(%rdi), %rdi
	jne	wrong
	incq	%r12
	cmpq	PARAM(1), %r12
	jb	1b
	movq	%r12, VALUE(3)
	DONE

/* RDI: the word that is not RAX. */
wrong:
	movq	%rax, VALUE(4)
	movq	(%rdi), %rax
	movq	%rax, VALUE(5)
	movq	%rdi, mailbox_difference
	movq	$8, mailbox_differences
	LEAVE	EVENT_DIFFERENT

publish:
	movq	%r8, VALUE(0)
	movq	%r9, VALUE(1)
	ret
