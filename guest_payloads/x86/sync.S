/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sync: shows the registers that a VMM gives by struct kvm_run. CPL0.
 *
 *	report	RBX to VALUE(0), R15 to VALUE(1), CR2 to VALUE(2), CR4 to VALUE(3)
 *	other	the same, and 1 to VALUE(4)
 */
#include "mailbox.h"

.macro REPORT
	movq	%rbx, VALUE(0)
	movq	%r15, VALUE(1)
	movq	%cr2, %rax
	movq	%rax, VALUE(2)
	movq	%cr4, %rax
	movq	%rax, VALUE(3)
.endm

	.text
ENTRY _start
	DONE

ENTRY report
	REPORT
	movq	$0, VALUE(4)
	DONE

ENTRY other
	REPORT
	movq	$1, VALUE(4)
	DONE
