/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entry points with one instruction that may fault: a fault skips it, and VALUE(15) is the number of faults, 0 or 1.
 *
 *	rdmsr, wrmsr		ECX = PARAM(0), EDX:EAX = PARAM(1); the value read to VALUE(0) (CPL0)
 *	write_cr4, write_cr0	PARAM(0) (CPL0)
 */
#ifndef SYSTEM_H
#define SYSTEM_H

.macro MAY_FAULT_BEGIN
	movq	$0, mailbox_faults
	ON_FAULT 8f
	movl	PARAM(0), %ecx
	movl	PARAM(1), %eax
	movl	PARAM(1) + 4, %edx
.endm
.macro MAY_FAULT_END
8:	movq	$0, mailbox_fixup
	movq	mailbox_faults, %rax
	movq	%rax, VALUE(15)
	DONE
.endm
.macro VALUE_EDX_EAX
	movl	%eax, VALUE(0)
	movl	%edx, VALUE(0) + 4
.endm

.macro SYSTEM_ENTRIES
ENTRY rdmsr
	MAY_FAULT_BEGIN
	rdmsr
	VALUE_EDX_EAX
	MAY_FAULT_END

ENTRY wrmsr
	MAY_FAULT_BEGIN
	wrmsr
	MAY_FAULT_END

ENTRY write_cr4
	MAY_FAULT_BEGIN
	movq	PARAM(0), %rax
	movq	%rax, %cr4
	MAY_FAULT_END

ENTRY write_cr0
	MAY_FAULT_BEGIN
	movq	PARAM(0), %rax
	movq	%rax, %cr0
	MAY_FAULT_END
.endm

#endif
