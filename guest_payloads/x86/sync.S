/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sync: shows the registers that a VMM gives by struct kvm_run. CPL0.
 *
 *	report	RBX to VALUE(0), R15 to VALUE(1), the 8 bytes at GS:0 to VALUE(2), 0 to VALUE(3)
 *	other	the same, but 1 to VALUE(3)
 *
 * `marked` is 8 bytes that GS may begin at.
 */
#include "mailbox.h"

.macro REPORT
	movq	%rbx, VALUE(0)
	movq	%r15, VALUE(1)
	movq	%gs:0, %rax
	movq	%rax, VALUE(2)
.endm

	.text
ENTRY _start
	DONE

ENTRY report
	REPORT
	movq	$0, VALUE(3)
	DONE

ENTRY other
	REPORT
	movq	$1, VALUE(3)
	DONE

	.data
	.balign	8
	.globl	marked
marked:	.quad	0x5a5a0f0f3c3c9696
