/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chain: a hash that runs through a vCPU's registers. Each step stores all registers, mixes them with some memory
 * into a digest and into their own next values, loads those and ticks: at a tick only the registers hold the state
 * (what they were loaded from is wiped), and one bit of it lost changes every later digest.
 *
 *	chain_sse, chain_avx, chain_avx512, chain_amx
 *		PARAM(0) ticks from seed PARAM(1). VALUE(0) and VALUE(1) are the digest, at a tick the running one,
 *		in the end the one over all of the memory too. VALUE(2) counts the ticks, this one included.
 *
 * PARAM(2) adds what a level may have besides, by component number: 9 PKRU; 11 and 12 shadow stacks, whose MSRs,
 * IA32_XSS and live SSP then take part, U_CET with the bits PARAM(3) (CPL0, CR4.CET, a supervisor shadow stack with
 * its token at PARAM(4)); 18 IA32_XFD_ERR (CPL0). The vector levels run at any CPL, MXCSR and x87 are in all of them.
 * Left out are FOP, FIP and FDP: AMD CPUs keep those only while an exception is pending.
 *
 * Of several vCPUs each runs a chain of its own, in what it has for itself of this memory.
 *
 * vmm/x86/chain.py computes the same in Python: what is said here by numbers is said there again.
 */
#include "mailbox.h"
#include "chain.h"

	.set	MULTIPLIER, 0x9e3779b97f4a7c15
	.set	WINDOW_LINES, 512	/* 8 pages, in lines of 64 bytes */
	.set	FLAGS, 0x8d5		/* CF PF AF ZF SF OF */
	.set	IA32_XFD_ERR, 0x1c5

/* Skip to `label` unless PARAM(2) names a component. */
.macro UNLESS component, label
	testl	$(1 << \component), PARAM(2)
	jz	\label
.endm

/*
 * A word goes into a lane: lane = rotate((lane ^ word) * MULTIPLIER, 29), and the lane is what the word becomes.
 * There are 8 lanes, word n of a line belongs to lane n. RSI: the first line, ECX: how many; RDX: MULTIPLIER.
 */
mix_scalar:
	.irp n, 8, 9, 10, 11, 12, 13, 14, 15
	movq	lanes + 8 * (\n - 8), %r\n
	.endr
1:	.irp n, 8, 9, 10, 11, 12, 13, 14, 15
	xorq	8 * (\n - 8)(%rsi), %r\n
	imulq	%rdx, %r\n
	rolq	$29, %r\n
	movq	%r\n, 8 * (\n - 8)(%rsi)
	.endr
	addq	$64, %rsi
	decl	%ecx
	jnz	1b
	.irp n, 8, 9, 10, 11, 12, 13, 14, 15
	movq	%r\n, lanes + 8 * (\n - 8)
	.endr
	ret

/* The same in one register. */
mix_vector:
	vmovdqa64 lanes, %zmm0
	vpbroadcastq %rdx, %zmm1
1:	vpxorq	(%rsi), %zmm0, %zmm0
	vpmullq	%zmm1, %zmm0, %zmm0
	vprolq	$29, %zmm0, %zmm0
	vmovdqa64 %zmm0, (%rsi)
	addq	$64, %rsi
	decl	%ecx
	jnz	1b
	vmovdqa64 %zmm0, lanes
	ret

	.set	MIX_sse, mix_scalar
	.set	MIX_avx, mix_scalar
	.set	MIX_avx512, mix_vector
	.set	MIX_amx, mix_vector

/* The digest, RBX and RBP, becomes 8 lanes. RDX stays MULTIPLIER from here to the fold. */
spread:
	movabsq	$MULTIPLIER, %rdx
	movq	%rdx, %rax
	.irp n, 0, 2, 4, 6
	leaq	(%rbx,%rax), %rsi
	movq	%rsi, lanes + 8 * \n
	addq	%rdx, %rax
	leaq	(%rbp,%rax), %rsi
	movq	%rsi, lanes + 8 * \n + 8
	addq	%rdx, %rax
	.endr
	ret

/* The lanes become part of the digest, which goes to the mailbox. */
fold:
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	xorq	lanes + 8 * \n, %rbx
	imulq	%rdx, %rbx
	rolq	$31, %rbx
	addq	%rbx, %rbp
	xchgq	%rbx, %rbp
	.endr
	movq	%rbx, VALUE(0)
	movq	%rbp, VALUE(1)
	ret

/* RDI bytes from there, RCX quadwords: zeros. */
.macro WIPE start, quads
	leaq	\start, %rdi
	movl	$\quads, %ecx
	xorl	%eax, %eax
	rep stosq
.endm

begin:
	cld
	WIPE	scratch, ((scratch_end-scratch)/8)
	UNLESS	11, 1f
	rdsspq	%rax			/* as the caller will have it again */
	addq	$8, %rax
	movq	%rax, ssp_base
	movl	PARAM(3), %eax
	movq	%rax, legal_u_cet
	andl	$0x32, %eax		/* of S_CET: neither SH_STK_EN, which is always set, nor ENDBR_EN */
	movq	%rax, legal_s_cet
1:	leaq	8(%rsp), %rax
	movq	%rax, rsp_base
	movq	PARAM(1), %rbx
	movl	PARAM(2), %ebp
	xorl	%edi, %edi
	movq	%rdi, VALUE(2)
	ret

/* CPL0 and CR4.CET: a supervisor shadow stack, from its token on. */
.macro BEGIN_SHADOW_STACK
	UNLESS	11, 1f
	xorl	%edx, %edx
	movl	$0x6a4, %ecx		/* IA32_PL0_SSP */
	movl	PARAM(4), %eax
	wrmsr
	movl	$0x6a2, %ecx		/* IA32_S_CET */
	movl	$1, %eax
	wrmsr
	setssbsy
1:
.endm

/* Make the words that are to become registers values that these registers take. */
legalise:
	xorl	%ecx, %ecx
1:	movq	CONTROL(,%rcx,8), %rax
	andq	legal(,%rcx,8), %rax
	orq	fixed(,%rcx,8), %rax
	movq	%rax, CONTROL(,%rcx,8)
	incl	%ecx
	cmpl	$24, %ecx
	jb	1b
	ret

/* MXCSR and x87 by FXRSTOR, PKRU and MSRs: all that is neither a vector nor a general register. */
load_control:
	movl	MXCSR, %eax
	movl	%eax, legacy + 24
	movl	FCW, %eax
	movw	%ax, legacy
	movl	FSW, %eax
	movw	%ax, legacy + 2
	movl	FTW, %eax
	movb	%al, legacy + 4
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	movq	MANTISSAS + 8 * \n, %rax
	movq	%rax, legacy + 32 + 16 * \n
	movl	EXPONENTS + 8 * \n, %eax
	movw	%ax, legacy + 40 + 16 * \n
	.endr
	fxrstor64 legacy
	UNLESS	9, 1f
	movl	PKRU, %eax
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	wrpkru
1:	UNLESS	18, 2f
	movl	XFD_ERR, %eax
	xorl	%edx, %edx
	movl	$IA32_XFD_ERR, %ecx
	wrmsr
2:	UNLESS	11, 4f
	xorl	%esi, %esi
3:	movl	msrs(,%rsi,4), %ecx
	movl	MSRS(,%rsi,8), %eax
	movl	MSRS + 4(,%rsi,8), %edx
	wrmsr
	incl	%esi
	cmpl	$8, %esi
	jb	3b
4:	ret

store_control:
	fxsave64 legacy
	movl	legacy + 24, %eax
	movq	%rax, MXCSR
	movzwl	legacy, %eax
	movq	%rax, FCW
	movzwl	legacy + 2, %eax
	movq	%rax, FSW
	movzbl	legacy + 4, %eax
	movq	%rax, FTW
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	movq	legacy + 32 + 16 * \n, %rax
	movq	%rax, MANTISSAS + 8 * \n
	movzwl	legacy + 40 + 16 * \n, %eax
	movq	%rax, EXPONENTS + 8 * \n
	.endr
	UNLESS	9, 1f
	xorl	%ecx, %ecx
	rdpkru
	movq	%rax, PKRU
1:	UNLESS	18, 2f
	movl	$IA32_XFD_ERR, %ecx
	rdmsr
	movl	%eax, XFD_ERR
	movl	%edx, XFD_ERR + 4
2:	UNLESS	11, 4f
	xorl	%esi, %esi
3:	movl	msrs(,%rsi,4), %ecx
	rdmsr
	movl	%eax, MSRS(,%rsi,8)
	movl	%edx, MSRS + 4(,%rsi,8)
	incl	%esi
	cmpl	$8, %esi
	jb	3b
4:	ret

/* As many calls as `depth` says, so that RSP and SSP are not always the same at the tick below them. */
descend:
	decl	depth
	jz	1f
	call	descend
	ret
1:	pushfq
	andq	$~FLAGS, (%rsp)
	movq	AT_RSP, %rax		/* the flags are kept there */
	orq	%rax, (%rsp)
	EACH_GPR LOAD_GPR
	EACH_GPR WIPE_GPR
	movq	$0, AT_RSP
	popfq
	.globl	at_tick
at_tick:
	TICK
	pushfq
	EACH_GPR STORE_GPR
	popq	%rax
	andl	$FLAGS, %eax
	movq	%rax, RFLAGS
	movq	rsp_base, %rax
	subq	%rsp, %rax
	movq	%rax, AT_RSP
	UNLESS	11, 2f
	xorl	%eax, %eax
	rdsspq	%rax
	subq	ssp_base, %rax
	negq	%rax
	movq	%rax, SSP
2:	ret

/* RSI: the line of the window that belongs to tick EDI; the next one is in another page. */
.macro WINDOW_LINE
	imull	$65, %edi, %eax
	andl	$(WINDOW_LINES - 1), %eax
	shll	$6, %eax
	leaq	window(%rax), %rsi
	movl	$1, %ecx
.endm

.macro CHAIN level
ENTRY chain_\level
	BEGIN_SHADOW_STACK
	call	begin
	call	spread
	leaq	window, %rsi
	movl	$WINDOW_LINES, %ecx
	call	MIX_\level
	call	fold
2:	call	spread
	leaq	image, %rsi
	movl	$LINES_\level, %ecx
	call	MIX_\level
	WINDOW_LINE
	call	MIX_\level
	call	fold
	cmpq	PARAM(0), %rdi
	jae	3f
	incq	%rdi
	movq	%rdi, VALUE(2)
	call	legalise
	movq	%rbx, AT_RBX
	movq	%rbp, AT_RBP
	movq	%rdi, AT_RCX
	movq	RFLAGS, %rax
	movq	%rax, AT_RSP
	andl	$7, %ebp
	incl	%ebp
	movl	%ebp, depth
	call	load_control
	LOAD_\level
	WIPE	lanes, ((64+512)/8)
	WIPE	image+128, (8*(LINES_\level-2))
	call	descend
	call	store_control
	STORE_\level
	movq	AT_RBX, %rbx
	movq	AT_RBP, %rbp
	movq	AT_RCX, %rdi
	jmp	2b
3:	call	spread
	leaq	window, %rsi
	movl	$WINDOW_LINES, %ecx
	call	MIX_\level
	call	fold
	DONE
.endm

	.text
	.globl	SMP
	.set	SMP, 1
ENTRY _start
	DONE

	CHAIN	sse
	CHAIN	avx
	CHAIN	avx512
	CHAIN	amx

	.data
	.balign	64
full_tiles:
	.quad	1, 0, 0x0040004000400040, 0x0040004000400040, 0, 0, 0x1010101010101010, 0
/* The bits of CONTROL, MSRS and EXPONENTS that may be set, and those that always are. */
legal:	.quad	0xffff, 0x1d00, 0x7f7f, 0xff, FLAGS, 0xfffffffc, 1 << 18, 0
legal_u_cet:
	.quad	0
legal_s_cet:
	.quad	0
	.rept	5
	.quad	0x00007ffffffffff8	/* canonical, a multiple of 8 */
	.endr
	.quad	0x1800
	.fill	8, 8, 0xffff
fixed:	.quad	0, 0x027f, 0, 0, 0, 0, 0, 0
	.quad	0, 1, 0, 0, 0, 0, 0, 0
	.fill	8, 8, 0
/* IA32_U_CET, S_CET, PL0_SSP to PL3_SSP, INT_SSP_TAB, XSS. */
msrs:	.long	0x6a0, 0x6a2, 0x6a4, 0x6a5, 0x6a6, 0x6a7, 0x6a8, 0xda0

	.bss
	.balign	8
rsp_base:
	.skip	8
ssp_base:
	.skip	8
depth:	.skip	8
	.balign	4096
	.globl	image, window, IMAGE_SIZE, WINDOW_SIZE
	.set	IMAGE_SIZE, 64 * LINES_amx
	.set	WINDOW_SIZE, 64 * WINDOW_LINES
scratch:
lanes:	.skip	64
legacy:	.skip	512
image:	.skip	IMAGE_SIZE
	.balign	4096
window:	.skip	WINDOW_SIZE
scratch_end:
