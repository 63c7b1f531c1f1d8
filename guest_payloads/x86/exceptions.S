/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exceptions: entry point `raise_X` raises exception X at the label `at_X`, which the handler must
 * find as RIP (after it for the trap #BP). Nothing here has a fixup: the handler reports and stops.
 */
#include "mailbox.h"

	.text
ENTRY _start
	DONE

ENTRY raise_de
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	movl	$1, %eax
	.globl	at_de
at_de:	divl	%ecx
	DONE

ENTRY raise_bp
	int3
	.globl	at_bp
at_bp:	DONE

ENTRY raise_ud
	.globl	at_ud
at_ud:	ud2
	DONE

/* A CPL0 instruction at CPL3, a non-canonical address at either. */
ENTRY raise_gp
	movabsq	$0x8000000000000000, %rbx
	.globl	at_gp
at_gp:	movq	(%rbx), %rax
	DONE

/* 5 GiB: outside the identity mapping. CR2 has to be it. */
ENTRY raise_pf
	movabsq	$0x140000000, %rbx
	.globl	at_pf
at_pf:	movq	%rax, (%rbx)
	DONE

/* The stack's address is not canonical: #SS and not #GP. */
ENTRY raise_ss
	movabsq	$0x8000000000000000, %rbp
	.globl	at_ss
at_ss:	movq	(%rbp), %rax
	DONE

/* Selector 0x38 is a data segment that is not present. */
ENTRY raise_np
	movl	$0x3b, %eax
	.globl	at_np
at_np:	movw	%ax, %gs
	DONE

/* Unaligned with CR0.AM and RFLAGS.AC: CPL3 only. */
ENTRY raise_ac
	pushfq
	orq	$(1 << 18), (%rsp)
	popfq
	leaq	buffer + 1, %rbx
	.globl	at_ac
at_ac:	movq	(%rbx), %rax
	DONE

/* 1/0 with every SIMD exception unmasked. */
ENTRY raise_xm
	movl	$0x1f80 & ~0x1f80, buffer
	ldmxcsr	buffer
	movl	$1, %eax
	cvtsi2sd %eax, %xmm0
	pxor	%xmm1, %xmm1
	.globl	at_xm
at_xm:	divsd	%xmm1, %xmm0
	DONE

/* 1/0 with every x87 exception unmasked; the fault arrives at the next waiting instruction. */
ENTRY raise_mf
	fninit
	movw	$0x340, buffer
	fldcw	buffer
	fld1
	fldz
	fdivrp
	.globl	at_mf
at_mf:	fwait
	DONE

	.bss
	.balign	64
buffer:	.skip	64
