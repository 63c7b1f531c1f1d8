/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lists: one instruction again and again, with the operands of a list, at CPL0; and two that use what MSRs hold.
 *
 * PARAM(0) is the list, PARAM(1) how many entries it has, PARAM(2) where the answers go, 16 bytes for each entry.
 * An answer that may be a fault has the number of faults (0 or 1) at its byte 8 and the vector at 12, 4 bytes each.
 *
 *	cpuid_list	EAX and ECX; the answer is EAX, EBX, ECX, EDX
 *	rdmsr_list	MSR (8 bytes); the value and the fault
 *	wrmsr_list	MSR, value (8 bytes each); 0 and the fault
 *	cr4_list	a value for CR4 (8 bytes); what CR4 is then and the fault. CR4 is put back behind each
 *	based		the words at FS:0 and GS:0 to VALUE(0) and VALUE(1)
 *	aux		TSC_AUX by RDTSCP to VALUE(0)
 */
#include "mailbox.h"

.macro LIST
	movq	PARAM(0), %rsi
	movq	PARAM(1), %rbx
	movq	PARAM(2), %rdi
.endm

/* RBX entries of `size` bytes at RSI, answers at RDI. */
.macro NEXT size
	addq	$\size, %rsi
	addq	$16, %rdi
	decq	%rbx
	jnz	1b
	DONE
.endm

.macro TRY
	movq	$0, mailbox_faults
	movq	$0, mailbox_vector
	movq	$0, (%rdi)
	ON_FAULT 2f
.endm

.macro TRIED
	movq	$0, mailbox_fixup
	movq	mailbox_faults, %rax
	movl	%eax, 8(%rdi)
	movq	mailbox_vector, %rax
	movl	%eax, 12(%rdi)
.endm

	.text
ENTRY _start
	DONE

ENTRY cpuid_list
	movq	PARAM(0), %rsi
	movq	PARAM(1), %r8
	movq	PARAM(2), %rdi
1:	movl	(%rsi), %eax
	movl	4(%rsi), %ecx
	cpuid
	movl	%eax, (%rdi)
	movl	%ebx, 4(%rdi)
	movl	%ecx, 8(%rdi)
	movl	%edx, 12(%rdi)
	addq	$8, %rsi
	addq	$16, %rdi
	decq	%r8
	jnz	1b
	DONE

ENTRY rdmsr_list
	LIST
1:	TRY
	movl	(%rsi), %ecx
	rdmsr
	movl	%eax, (%rdi)
	movl	%edx, 4(%rdi)
2:	TRIED
	NEXT	8

ENTRY wrmsr_list
	LIST
1:	TRY
	movl	(%rsi), %ecx
	movl	8(%rsi), %eax
	movl	12(%rsi), %edx
	wrmsr
2:	TRIED
	NEXT	16

ENTRY cr4_list
	LIST
	movq	%cr4, %r8
1:	TRY
	movq	(%rsi), %rax
	movq	%rax, %cr4
2:	movq	%cr4, %rax
	movq	%rax, (%rdi)
	movq	%r8, %cr4
	TRIED
	NEXT	8

ENTRY based
	movq	%fs:0, %rax
	movq	%rax, VALUE(0)
	movq	%gs:0, %rax
	movq	%rax, VALUE(1)
	DONE

ENTRY aux
	rdtscp
	movl	%ecx, %ecx
	movq	%rcx, VALUE(0)
	DONE
