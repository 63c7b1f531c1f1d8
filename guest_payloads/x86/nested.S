/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nested: a hypervisor (L1, CPL0) with one guest of its own (L2), which shares its tables, its mailbox and its handlers.
 * CR4.VMXE and OSXSAVE set by the host, and IA32_FEATURE_CONTROL; for tiles XCR0[18:17] too.
 *
 * `fields` are pairs of a VMCS field's encoding and its value, written by the host; `vmxon_region` and `vmcs_region` begin
 * with the revision. VALUE(15) is 1 if an instruction of VMX failed (CF or ZF).
 *
 *	enter		VMXON, VMCLEAR, VMPTRLD, and VMWRITE of PARAM(0) fields
 *	vmxon, vmptrld	only the first, only the third
 *	launch		XRSTOR of tiles from `areas` if PARAM(1) is 1, XFD = PARAM(2), VMLAUNCH; see `leave`
 *	again		XFD = PARAM(2), VMRESUME; see `leave`
 *	leave		where L2's exits lead: their reason to VALUE(4), interruption information to VALUE(5), XFD_ERR as L1
 *			reads it to VALUE(6), XFD to VALUE(7); the tiles to the fourth of `areas` if PARAM(1) is 1
 *	l2_demand	(L2) arm XFD, touch a tile; the #NM handler ticks PARAM(0) times and reads XFD_ERR to VALUE(0), the
 *			vector to VALUE(1); VMCALL, and what follows does so again
 *	l2_tiles	(L2) XSAVE of the tiles to the second of `areas`, XRSTOR from the third, PARAM(0) ticks, VMCALL
 */
#include "mailbox.h"

	.set	IA32_XFD, 0x1c4
	.set	IA32_XFD_ERR, 0x1c5
	.set	TILEDATA, 1 << 18
	.set	XTILE, 3 << 17
	.set	AREA_SIZE, 16384
	.set	EXIT_REASON, 0x4402
	.set	EXIT_INFORMATION, 0x4404

/* XFD = EAX. */
.macro WRITE_XFD
	movl	$IA32_XFD, %ecx
	xorl	%edx, %edx
	wrmsr
.endm

/* The tiles to or from one of the areas. */
.macro TILES insn, number
	movl	$XTILE, %eax
	xorl	%edx, %edx
	\insn	areas + AREA_SIZE * \number
.endm

/* An instruction of VMX says by CF or ZF that it failed. */
.macro OR_FAIL
	jbe	failed
.endm

	.text
ENTRY _start
	DONE

failed:
	movq	$1, VALUE(15)
	DONE

ENTRY enter
	movq	$0, VALUE(15)
	vmxon	vmxon_address
	OR_FAIL
	vmclear	vmcs_address
	OR_FAIL
	vmptrld	vmcs_address
	OR_FAIL
	leaq	fields, %rsi
	movq	PARAM(0), %rdi
1:	movq	(%rsi), %rax
	movq	8(%rsi), %rdx
	vmwrite	%rdx, %rax
	OR_FAIL
	addq	$16, %rsi
	decq	%rdi
	jnz	1b
	DONE

ENTRY vmxon
	movq	$0, VALUE(15)
	vmxon	vmxon_address
	OR_FAIL
	DONE

ENTRY vmptrld
	movq	$0, VALUE(15)
	vmclear	vmcs_address
	OR_FAIL
	vmptrld	vmcs_address
	OR_FAIL
	DONE

ENTRY launch
	movq	$0, VALUE(15)
	cmpq	$1, PARAM(1)
	jne	1f
	TILES	xrstor64, 0
1:	movl	PARAM(2), %eax
	WRITE_XFD
	vmlaunch
	jmp	failed

ENTRY again
	movq	$0, VALUE(15)
	movl	PARAM(2), %eax
	WRITE_XFD
	vmresume
	jmp	failed

	.globl	leave
leave:
	movl	$EXIT_REASON, %eax
	vmread	%rax, %rdx
	movq	%rdx, VALUE(4)
	movl	$EXIT_INFORMATION, %eax
	vmread	%rax, %rdx
	movq	%rdx, VALUE(5)
	movl	$IA32_XFD_ERR, %ecx
	rdmsr
	movl	%eax, VALUE(6)
	movl	%edx, VALUE(6) + 4
	movl	$IA32_XFD, %ecx
	rdmsr
	movl	%eax, VALUE(7)
	movl	%edx, VALUE(7) + 4
	cmpq	$1, PARAM(1)
	jne	1f
	TILES	xsave64, 3
1:	DONE

	.globl	l2_demand, l2_tiles, at_l2_demand
l2_demand:
	ldtilecfg configuration
	movl	$TILEDATA, %eax
	WRITE_XFD
	movq	$0, mailbox_vector
	ON_FAULT 1f
at_l2_demand:
	tilezero %tmm0
	jmp	4f
1:	movq	PARAM(0), %rsi
	testq	%rsi, %rsi
	jz	3f
2:	TICK
	decq	%rsi
	jnz	2b
3:	movl	$IA32_XFD_ERR, %ecx
	rdmsr
	movl	%eax, VALUE(0)
	movl	%edx, VALUE(0) + 4
4:	movq	mailbox_vector, %rax
	movq	%rax, VALUE(1)
	movq	$0, mailbox_fixup
	vmcall
	jmp	4b

l2_tiles:
	TILES	xsave64, 1
	TILES	xrstor64, 2
	movq	PARAM(0), %rsi
1:	TICK
	decq	%rsi
	jnz	1b
2:	vmcall
	jmp	2b

	.data
	.balign	8
vmxon_address:	.quad vmxon_region
vmcs_address:	.quad vmcs_region
	.balign	64
configuration:	/* palette 1, TMM0 with 16 rows of 64 bytes */
	.byte	1
	.skip	15
	.word	64
	.skip	30
	.byte	16
	.skip	15

	.bss
	.balign	4096
	.globl	vmxon_region, vmcs_region, fields, areas, msr_bitmap, l2_stack_top
vmxon_region:	.skip 4096
vmcs_region:	.skip 4096
msr_bitmap:	.skip 4096
fields:		.skip 4096
		.skip 4096
l2_stack_top:
		.skip 64
	.balign	64
areas:		.skip 4 * AREA_SIZE
