/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xstate: fills x87, SSE, AVX and AVX-512 state with given data, leaves, and verifies it later.
 *
 * `expected` and `observed` are two images of the same shape:
 *	   0	x87: ST0..ST7, 16 bytes each, of which 10 count (the rest is 0)
 *	 128	MXCSR, 4 bytes; FCW, 2 bytes; padded to 64
 *	 192	opmasks: k0..k7, 8 bytes each
 *	 256	vectors: ZMM0..ZMM31, 64 bytes each; XMM and YMM are their low 16 and 32 bytes
 *	2304	the end
 *
 *	fill_LEVEL	load `expected` into the registers; LEVEL is sse, avx or avx512
 *	verify_LEVEL	store the registers into `observed` (whose other bytes are copied) and compare
 *	churn_LEVEL	fill, PARAM(0) ticks, verify, in one entry
 *	init_LEVEL	put every component back into its initial configuration
 *	xsave ... xinuse	see area.h
 *
 * The opmasks are 64 bits wide: LEVEL avx512 needs AVX512BW.
 */
#include "mailbox.h"
#include "area.h"

	.set	MXCSR_AT, 128
	.set	FCW_AT, 132
	.set	MASKS_AT, 192
	.set	VECTORS_AT, 256
	.set	IMAGE_SIZE, 2304
	.globl	IMAGE_SIZE

.macro LOAD_X87
	fninit
	.irp n, 7, 6, 5, 4, 3, 2, 1, 0
	fldt	expected + 16 * \n
	.endr
	fldcw	expected + FCW_AT
.endm

.macro VECTORS_sse op
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	\op	movdqu, %xmm\n, \n
	.endr
.endm
.macro VECTORS_avx op
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	\op	vmovdqu, %ymm\n, \n
	.endr
.endm
.macro VECTORS_avx512 op
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	\op	vmovdqu64, %zmm\n, \n
	.endr
	.irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	\op	vmovdqu64, %zmm\n, \n
	.endr
.endm

.macro LOAD_VECTOR insn, register, n
	\insn	expected + VECTORS_AT + 64 * \n, \register
.endm
.macro STORE_VECTOR insn, register, n
	\insn	\register, observed + VECTORS_AT + 64 * \n
.endm

.macro MASKS_sse op
.endm
.macro MASKS_avx op
.endm
.macro MASKS_avx512 op
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	\op	%k\n, \n
	.endr
.endm
.macro LOAD_MASK register, n
	kmovq	expected + MASKS_AT + 8 * \n, \register
.endm
.macro STORE_MASK register, n
	kmovq	\register, observed + MASKS_AT + 8 * \n
.endm

.macro LOAD_ALL level
	LOAD_X87
	VECTORS_\level LOAD_VECTOR
	MASKS_\level LOAD_MASK
	ldmxcsr	expected + MXCSR_AT
.endm

/* What this level cannot see counts as equal: start from a copy. FXSAVE does not disturb x87. */
.macro STORE_ALL level
	leaq	expected, %rsi
	leaq	observed, %rdi
	movl	$(IMAGE_SIZE / 8), %ecx
	rep movsq
	VECTORS_\level STORE_VECTOR
	MASKS_\level STORE_MASK
	stmxcsr	observed + MXCSR_AT
	fnstcw	observed + FCW_AT
	fxsave64 legacy
	leaq	legacy + 32, %rsi
	leaq	observed, %rdi
	movl	$16, %ecx
	rep movsq
.endm

.macro VERIFY level
	STORE_ALL \level
	leaq	expected, %rsi
	leaq	observed, %rdi
	movl	$IMAGE_SIZE, %ecx
	jmp	compare
.endm

.macro LEVEL level
ENTRY fill_\level
	LOAD_ALL \level
	DONE

ENTRY verify_\level
	VERIFY	\level

ENTRY churn_\level
	LOAD_ALL \level
	movq	PARAM(0), %rcx
1:	TICK
	decq	%rcx
	jnz	1b
	VERIFY	\level
.endm

	.text
ENTRY _start
	DONE

	LEVEL	sse
	LEVEL	avx
	LEVEL	avx512

.macro ZERO_XMM insn, register, n
	pxor	%xmm\n, %xmm\n
.endm
ENTRY init_sse
	fninit
	VECTORS_sse ZERO_XMM
	ldmxcsr	initial_mxcsr
	DONE

ENTRY init_avx
	fninit
	vzeroall
	ldmxcsr	initial_mxcsr
	DONE

ENTRY init_avx512
	fninit
	vzeroall
	.irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	vpxorq	%zmm\n, %zmm\n, %zmm\n
	.endr
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	kxorq	%k\n, %k\n, %k\n
	.endr
	ldmxcsr	initial_mxcsr
	DONE

	AREA_ENTRIES

	.data
	.balign	4
initial_mxcsr:
	.long	0x1f80

	.bss
	.balign	64
	.globl	expected, observed, area
expected:
	.skip	IMAGE_SIZE
observed:
	.skip	IMAGE_SIZE
legacy:	.skip	512
area:	.skip	16384
