/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pku: protection keys of the guest. CR4.PKE set by the host; every page has key 0.
 *
 *	wrpkru		PKRU = PARAM(0)
 *	rdpkru		PKRU to VALUE(0)
 *	churn		PKRU = PARAM(1), PARAM(0) ticks, PKRU to VALUE(0)
 *	denied		PKRU = 1 (no access to key 0), one load, PKRU = 0; VALUE(15) counts the faults and
 *			VALUE(0) is the error code (CPL3: supervisor pages ignore PKRU)
 */
#include "mailbox.h"

	.text
ENTRY _start
	DONE

.macro SET_PKRU
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	wrpkru
.endm
.macro GET_PKRU
	xorl	%ecx, %ecx
	rdpkru
.endm

ENTRY wrpkru
	movl	PARAM(0), %eax
	SET_PKRU
	DONE

ENTRY rdpkru
	GET_PKRU
	movq	%rax, VALUE(0)
	DONE

ENTRY churn
	movq	PARAM(0), %rsi
	movl	PARAM(1), %eax
	SET_PKRU
1:	TICK
	decq	%rsi
	jnz	1b
	GET_PKRU
	movq	%rax, VALUE(0)
	DONE

/* While access is denied no memory may be touched: the addresses are in registers before. */
ENTRY denied
	movq	$0, mailbox_faults
	ON_FAULT 2f
	leaq	VALUE(1), %rbx
	movl	$1, %eax
	SET_PKRU
	movq	(%rbx), %rax
2:	xorl	%eax, %eax
	SET_PKRU
	movq	$0, mailbox_fixup
	movq	mailbox_error, %rax
	movq	%rax, VALUE(0)
	movq	mailbox_faults, %rax
	movq	%rax, VALUE(15)
	DONE
