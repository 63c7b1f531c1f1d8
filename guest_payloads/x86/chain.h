/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registers of chain.S: where the image has them, and how each vector level loads and stores them. `image` is
 * 64-byte aligned; the levels are sse, avx, avx512 and amx.
 */
#ifndef CHAIN_H
#define CHAIN_H

/* The image: where registers are stored to and loaded from, in lines of 64 bytes. */
	.set	GPRS, image		/* RAX RCX RDX RBX RSP RBP RSI RDI R8 to R15, 8 bytes each */
	.set	CONTROL, image + 128	/* 8 bytes each, as the following */
	.set	MSRS, image + 192
	.set	EXPONENTS, image + 256	/* of ST0 to ST7, with the sign */
	.set	MANTISSAS, image + 320
	.set	MASKS, image + 384	/* k0 to k7 */
	.set	TILECFG, image + 448
	.set	VECTORS, image + 512	/* as wide as the level has them, then the tiles of 1024 bytes */
	.set	MXCSR, CONTROL
	.set	FCW, CONTROL + 8
	.set	FSW, CONTROL + 16
	.set	FTW, CONTROL + 24
	.set	RFLAGS, CONTROL + 32
	.set	PKRU, CONTROL + 40
	.set	XFD_ERR, CONTROL + 48
	.set	SSP, CONTROL + 56	/* how far it is below where it began; so is RSP */
	.set	AT_RCX, GPRS + 8
	.set	AT_RBX, GPRS + 24
	.set	AT_RSP, GPRS + 32
	.set	AT_RBP, GPRS + 40

	.set	LINES_sse, 8 + 4
	.set	LINES_avx, 8 + 8
	.set	LINES_avx512, 8 + 32
	.set	LINES_amx, 8 + 32 + 128

.macro EACH_16 op
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	\op	\n
	.endr
.endm
.macro LOAD_XMM n
	movdqu	VECTORS + 16 * \n, %xmm\n
.endm
.macro STORE_XMM n
	movdqu	%xmm\n, VECTORS + 16 * \n
.endm
.macro LOAD_YMM n
	vmovdqu	VECTORS + 32 * \n, %ymm\n
.endm
.macro STORE_YMM n
	vmovdqu	%ymm\n, VECTORS + 32 * \n
.endm
.macro EACH_ZMM op
	EACH_16	\op
	.irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	\op	\n
	.endr
.endm
.macro LOAD_ZMM n
	vmovdqu64 VECTORS + 64 * \n, %zmm\n
.endm
.macro STORE_ZMM n
	vmovdqu64 %zmm\n, VECTORS + 64 * \n
.endm

.macro LOAD_sse
	EACH_16	LOAD_XMM
.endm
.macro STORE_sse
	EACH_16	STORE_XMM
.endm
.macro LOAD_avx
	EACH_16	LOAD_YMM
.endm
.macro STORE_avx
	EACH_16	STORE_YMM
.endm
.macro LOAD_avx512
	EACH_ZMM LOAD_ZMM
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	kmovq	MASKS + 8 * \n, %k\n
	.endr
.endm
.macro STORE_avx512
	EACH_ZMM STORE_ZMM
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	kmovq	%k\n, MASKS + 8 * \n
	.endr
.endm

/* All tiles have 16 rows of 64 bytes but one, and its number and shape are three fields of the mixed word. */
.macro LOAD_amx
	LOAD_avx512
	movl	TILECFG, %eax
	movl	%eax, %ecx
	andl	$7, %ecx
	leaq	full_tiles, %rsi
	leaq	TILECFG, %rdi
	.rept	8
	movsq
	.endr
	movl	%eax, %edx
	shrl	$16, %edx
	andl	$0x3c, %edx
	addl	$4, %edx
	movw	%dx, TILECFG + 16(,%rcx,2)
	shrl	$8, %eax
	andl	$15, %eax
	incl	%eax
	movb	%al, TILECFG + 48(%rcx)
	ldtilecfg TILECFG
	movl	$64, %ecx
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	leaq	VECTORS + 2048 + 1024 * \n, %rsi
	tileloadd (%rsi,%rcx), %tmm\n
	.endr
.endm
.macro STORE_amx
	STORE_avx512
	sttilecfg TILECFG
	movl	$64, %ecx
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	leaq	VECTORS + 2048 + 1024 * \n, %rdi
	tilestored %tmm\n, (%rdi,%rcx)
	.endr
.endm

/* RSP and EBX, RBP, ECX (the digest, the ticks) have their own values, the others those of the image. */
.macro EACH_GPR op
	\op	rax, 0
	\op	rcx, 1
	\op	rdx, 2
	\op	rbx, 3
	\op	rbp, 5
	\op	rsi, 6
	\op	rdi, 7
	.irp n, 8, 9, 10, 11, 12, 13, 14, 15
	\op	r\n, \n
	.endr
.endm
.macro LOAD_GPR register, n
	movq	GPRS + 8 * \n, %\register
.endm
.macro WIPE_GPR register, n
	movq	$0, GPRS + 8 * \n
.endm
.macro STORE_GPR register, n
	movq	%\register, GPRS + 8 * \n
.endm

#endif
