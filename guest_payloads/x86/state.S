/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state: what a vCPU was given before it ran, as its guest sees it.
 *
 *	registers	the general registers and RFLAGS, in the order of struct kvm_regs, to `general` (16 quads) and
 *			`flags`; RSP has to be a stack only after it was stored
 *	debug		DR0 to DR3, DR6, DR7 to VALUE(0..5) (CPL0)
 *	control		CR0, CR2, CR3, CR4, TR and the selectors of CS, SS, DS, ES, FS, GS to VALUE(0..10),
 *			the descriptor tables to `gdt` and `idt` as SGDT and SIDT store them (CPL0)
 *	cr8		CR8 to VALUE(0) (CPL0)
 *	rdmsrs		the first PARAM(0) rows of `rows`: RDMSR of the first quad to the second, whose place holds
 *			1 in the third if that faulted (CPL0)
 *	peek		the same with loads of 32 bits from the address in the first quad, which may not fault
 *	step		VALUE(0) = 1 by the first instruction, VALUE(1) = 1 by the next one at `stepped`, then two ticks
 *	unmask		a tick, VALUE(0) = 1, IRET to `unmasked`, two ticks (CPL0)
 */
#include "mailbox.h"

	.text
ENTRY _start
	DONE

ENTRY registers
	movq	%rax, general
	movq	%rbx, general + 8
	movq	%rcx, general + 16
	movq	%rdx, general + 24
	movq	%rsi, general + 32
	movq	%rdi, general + 40
	movq	%rsp, general + 48
	movq	%rbp, general + 56
	movq	%r8, general + 64
	movq	%r9, general + 72
	movq	%r10, general + 80
	movq	%r11, general + 88
	movq	%r12, general + 96
	movq	%r13, general + 104
	movq	%r14, general + 112
	movq	%r15, general + 120
	movq	$user_stack_top, %rsp
	pushfq
	popq	%rax
	movq	%rax, flags
	DONE

ENTRY debug
	movq	%dr0, %rax
	movq	%rax, VALUE(0)
	movq	%dr1, %rax
	movq	%rax, VALUE(1)
	movq	%dr2, %rax
	movq	%rax, VALUE(2)
	movq	%dr3, %rax
	movq	%rax, VALUE(3)
	movq	%dr6, %rax
	movq	%rax, VALUE(4)
	movq	%dr7, %rax
	movq	%rax, VALUE(5)
	DONE

ENTRY control
	movq	%cr0, %rax
	movq	%rax, VALUE(0)
	movq	%cr2, %rax
	movq	%rax, VALUE(1)
	movq	%cr3, %rax
	movq	%rax, VALUE(2)
	movq	%cr4, %rax
	movq	%rax, VALUE(3)
	xorl	%eax, %eax
	str	%eax
	movq	%rax, VALUE(4)
	movl	%cs, %eax
	movq	%rax, VALUE(5)
	movl	%ss, %eax
	movq	%rax, VALUE(6)
	movl	%ds, %eax
	movq	%rax, VALUE(7)
	movl	%es, %eax
	movq	%rax, VALUE(8)
	movl	%fs, %eax
	movq	%rax, VALUE(9)
	movl	%gs, %eax
	movq	%rax, VALUE(10)
	sgdt	gdt
	sidt	idt
	DONE

ENTRY cr8
	movq	%cr8, %rax
	movq	%rax, VALUE(0)
	DONE

ENTRY rdmsrs
	movq	PARAM(0), %rdi
	movl	$rows, %esi
1:	ON_FAULT 2f
	movl	(%rsi), %ecx
	rdmsr
	movl	%eax, 8(%rsi)
	movl	%edx, 12(%rsi)
	jmp	3f
2:	movq	$1, 16(%rsi)
3:	movq	$0, mailbox_fixup
	addq	$24, %rsi
	decq	%rdi
	jnz	1b
	DONE

ENTRY peek
	movq	PARAM(0), %rdi
	movl	$rows, %esi
1:	movq	(%rsi), %rbx
	movl	(%rbx), %eax
	movq	%rax, 8(%rsi)
	addq	$24, %rsi
	decq	%rdi
	jnz	1b
	DONE

ENTRY step
	movq	$1, VALUE(0)
	.globl	stepped
stepped:
	movq	$1, VALUE(1)
	TICK
	TICK
	DONE

ENTRY unmask
	TICK
	movq	$1, VALUE(0)
	movq	%rsp, %rbx
	movl	%ss, %eax
	pushq	%rax
	pushq	%rbx
	pushfq
	movl	%cs, %eax
	pushq	%rax
	pushq	$unmasked
	iretq
	.globl	unmasked
unmasked:
	movq	$1, VALUE(1)
	TICK
	TICK
	DONE

	.bss
	.balign	64
	.globl	general, flags, gdt, idt, rows, ROWS
general:
	.skip	128
flags:	.skip	8
gdt:	.skip	16
idt:	.skip	16
	.set	ROWS, 64
rows:	.skip	24 * ROWS
