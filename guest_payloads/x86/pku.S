/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pku: protection keys of the guest. CR4.PKE set by the host; pages have key 0 but for those the host gives another.
 *
 *	wrpkru		PKRU = PARAM(0)
 *	rdpkru		PKRU to VALUE(0)
 *	churn		PKRU = PARAM(1), PARAM(0) ticks, PKRU to VALUE(0)
 *	denied		PKRU = PARAM(0), a load from address PARAM(1), PKRU = 0; VALUE(15) counts the faults and VALUE(0)
 *			is the error code
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

ENTRY denied
	movq	$0, mailbox_faults
	ON_FAULT 2f
	movq	PARAM(1), %rbx
	movl	PARAM(0), %eax
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
