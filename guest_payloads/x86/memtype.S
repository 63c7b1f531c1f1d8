/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memtype: how long loads and stores take, which tells how the memory they go to is cached. The host maps pages with
 * the types it wants; all is timed by TSC, and the fastest of several batches counts, because an interrupt only
 * makes one slower. Plain integer code for CPL3, where any back end runs it natively; what needs CPL0 are single steps.
 *
 *	chain		the 64 lines of the page at PARAM(0) become a ring of pointers in the order that the 64 bytes at
 *			`order` give
 *	loads		PARAM(1) dependent loads around the ring at PARAM(0), PARAM(2) batches; cycles of the fastest to
 *			VALUE(0)
 *	flushed		the same, with every line of the page flushed before each batch
 *	once		a single batch of 64 dependent loads, as the caches happen to be
 *	stores		PARAM(1) times all 512 words of the page at PARAM(0) stored in order, then SFENCE, PARAM(2) batches
 *	flush		the lines of the page at PARAM(0) flushed
 *	wbinvd		WBINVD (CPL0)
 *	cpuid		CPUID, an exit like that of WBINVD without its effect
 *	read_cr0	CR0 to VALUE(0) (CPL0)
 *	rdmsr, wrmsr, write_cr4, write_cr0	see system.h
 */
#include "mailbox.h"
#include "system.h"

#define LINE 64
#define LINES 64
#define PAGE 4096

	.text
ENTRY _start
	DONE

/* The time to \to; nothing before is still running, nothing after has begun. Uses RAX, RDX. */
.macro NOW to
	mfence
	lfence
	rdtsc
	lfence
	shlq	$32, %rdx
	leaq	(%rax, %rdx), \to
.endm

/* R8 is when the batch began; keep the time since in VALUE(0) if it is the shortest. */
.macro KEEP_SHORTEST
	NOW	%r9
	subq	%r8, %r9
	cmpq	VALUE(0), %r9
	cmovaq	VALUE(0), %r9
	movq	%r9, VALUE(0)
.endm

.macro FLUSH_PAGE
	movq	PARAM(0), %rdi
	movl	$LINES, %ecx
7:	clflush	(%rdi)
	addq	$LINE, %rdi
	decl	%ecx
	jnz	7b
	mfence
.endm

/* RCX loads, each of which needs the one before. */
.macro FOLLOW
	movq	PARAM(0), %rsi
6:	movq	(%rsi), %rsi
	decq	%rcx
	jnz	6b
.endm

ENTRY chain
	movq	PARAM(0), %rdi
	movzbl	order + LINES - 1, %ebx
	xorl	%ecx, %ecx
1:	movzbl	order(%rcx), %eax	/* the line before points to this one */
	movl	%eax, %edx
	shll	$6, %edx
	addq	%rdi, %rdx
	shll	$6, %ebx
	movq	%rdx, (%rdi, %rbx)
	movl	%eax, %ebx
	incl	%ecx
	cmpl	$LINES, %ecx
	jb	1b
	mfence
	DONE

ENTRY loads
	movq	$-1, VALUE(0)
	movq	PARAM(2), %rbx
1:	NOW	%r8
	movq	PARAM(1), %rcx
	FOLLOW
	KEEP_SHORTEST
	decq	%rbx
	jnz	1b
	DONE

ENTRY flushed
	movq	$-1, VALUE(0)
	movq	PARAM(2), %rbx
1:	FLUSH_PAGE
	NOW	%r8
	movq	PARAM(1), %rcx
	FOLLOW
	KEEP_SHORTEST
	decq	%rbx
	jnz	1b
	DONE

ENTRY once
	movq	$-1, VALUE(0)
	NOW	%r8
	movl	$LINES, %ecx
	FOLLOW
	KEEP_SHORTEST
	DONE

ENTRY stores
	movq	$-1, VALUE(0)
	movq	PARAM(2), %rbx
1:	NOW	%r8
	movq	PARAM(1), %r10
2:	movq	PARAM(0), %rdi
	movl	$PAGE / 8, %ecx
3:	movq	%rdi, (%rdi)
	addq	$8, %rdi
	decl	%ecx
	jnz	3b
	decq	%r10
	jnz	2b
	sfence
	KEEP_SHORTEST
	decq	%rbx
	jnz	1b
	DONE

ENTRY flush
	FLUSH_PAGE
	DONE

ENTRY wbinvd
	wbinvd
	DONE

ENTRY cpuid
	xorl	%eax, %eax
	xorl	%ecx, %ecx
	cpuid
	DONE

ENTRY read_cr0
	movq	%cr0, %rax
	movq	%rax, VALUE(0)
	DONE

	SYSTEM_ENTRIES

	.data
	.globl	order
order:	.skip	LINES
