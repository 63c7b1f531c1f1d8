/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mmio: loads and stores of every size at PARAM(0), where there is no memory. It is the first byte of a page.
 *
 *	loads		nine loads; RAX, which was PARAM(1) before each, to VALUE(0..8): MOV of 1, 2, 4 and 8 bytes at 0x00,
 *			0x10, 0x20, 0x30; MOVZX of 1 and 2 at 0x40, 0x50; MOVSX of 1, 2 and 4 at 0x60, 0x70, 0x80. Then
 *			8 bytes at 0xffd, which is in two pages, to VALUE(9)
 *	stores		PARAM(1) by MOV of 1, 2, 4 and 8 bytes at 0x00, 0x10, 0x20, 0x30 and of 8 at 0xffd, then ADD of it
 *			to 8 bytes at 0x40
 *	sse_loads	XMM1 to XMM5 by MOVDQU at 0x00, MOVDQA at 0x10, MOVUPS at 0x20, MOVAPS at 0x30, MOVDQU at 0xffc
 *	sse_stores	the same registers to the same places, then XMM6 by MOVNTDQ at 0x40
 *	vex_loads	XMM1, YMM2 to YMM5 by VMOVDQU at 0x00, VMOVDQA at 0x20, VMOVUPS at 0x40, VMOVAPS at 0x60, VMOVDQU
 *			at 0xff0
 *	vex_stores	the same registers to the same places
 *	load		8 bytes at 0x00 to RAX, which it puts into VALUE(0) from `behind_load` on
 *	store		PARAM(1) at 0x00, then VALUE(0) is 1 from `behind_store` on
 *	load_vector	MOVDQU of XMM1 at 0x00
 */
#include "mailbox.h"

.macro LOAD insn, at, register, n
	movq	PARAM(1), %rax
	\insn	\at(%rdi), \register
	movq	%rax, VALUE(\n)
.endm

	.text
ENTRY _start
	DONE

ENTRY loads
	movq	PARAM(0), %rdi
	LOAD	movb, 0x00, %al, 0
	LOAD	movw, 0x10, %ax, 1
	LOAD	movl, 0x20, %eax, 2
	LOAD	movq, 0x30, %rax, 3
	LOAD	movzbl, 0x40, %eax, 4
	LOAD	movzwl, 0x50, %eax, 5
	LOAD	movsbq, 0x60, %rax, 6
	LOAD	movswq, 0x70, %rax, 7
	LOAD	movslq, 0x80, %rax, 8
	LOAD	movq, 0xffd, %rax, 9
	DONE

ENTRY stores
	movq	PARAM(0), %rdi
	movq	PARAM(1), %rcx
	movb	%cl, 0x00(%rdi)
	movw	%cx, 0x10(%rdi)
	movl	%ecx, 0x20(%rdi)
	movq	%rcx, 0x30(%rdi)
	movq	%rcx, 0xffd(%rdi)
	addq	%rcx, 0x40(%rdi)
	DONE

ENTRY sse_loads
	movq	PARAM(0), %rdi
	movdqu	0x00(%rdi), %xmm1
	movdqa	0x10(%rdi), %xmm2
	movups	0x20(%rdi), %xmm3
	movaps	0x30(%rdi), %xmm4
	movdqu	0xffc(%rdi), %xmm5
	DONE

ENTRY sse_stores
	movq	PARAM(0), %rdi
	movdqu	%xmm1, 0x00(%rdi)
	movdqa	%xmm2, 0x10(%rdi)
	movups	%xmm3, 0x20(%rdi)
	movaps	%xmm4, 0x30(%rdi)
	movdqu	%xmm5, 0xffc(%rdi)
	movntdq	%xmm6, 0x40(%rdi)
	DONE

ENTRY vex_loads
	movq	PARAM(0), %rdi
	vmovdqu	0x00(%rdi), %xmm1
	vmovdqa	0x20(%rdi), %ymm2
	vmovups	0x40(%rdi), %ymm3
	vmovaps	0x60(%rdi), %ymm4
	vmovdqu	0xff0(%rdi), %ymm5
	DONE

ENTRY vex_stores
	movq	PARAM(0), %rdi
	vmovdqu	%xmm1, 0x00(%rdi)
	vmovdqa	%ymm2, 0x20(%rdi)
	vmovups	%ymm3, 0x40(%rdi)
	vmovaps	%ymm4, 0x60(%rdi)
	vmovdqu	%ymm5, 0xff0(%rdi)
	DONE

ENTRY load
	movq	PARAM(0), %rdi
	movq	(%rdi), %rax
	.globl	behind_load
behind_load:
	movq	%rax, VALUE(0)
	DONE

ENTRY store
	movq	PARAM(0), %rdi
	movq	PARAM(1), %rcx
	movq	$0, VALUE(0)
	movq	%rcx, (%rdi)
	.globl	behind_store
behind_store:
	movq	$1, VALUE(0)
	DONE

ENTRY load_vector
	movq	PARAM(0), %rdi
	movdqu	(%rdi), %xmm1
	DONE
