/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entry points that put state components into `area` and take them out again, RFBM = PARAM(0):
 * xsave, xsavec, xsaveopt, xrstor (any CPL), xsaves, xrstors (CPL0). VALUE(15) counts the faults, 0 or 1.
 * A payload that includes this defines `area`, 64-byte aligned.
 */
#ifndef AREA_H
#define AREA_H

.macro AREA_ENTRY name, insn
ENTRY \name
	movq	$0, mailbox_faults
	ON_FAULT 8f
	movl	PARAM(0), %eax
	movl	PARAM(0) + 4, %edx
	\insn	area
8:	movq	$0, mailbox_fixup
	movq	mailbox_faults, %rax
	movq	%rax, VALUE(15)
	DONE
.endm

.macro AREA_ENTRIES
	AREA_ENTRY xsave, xsave64
	AREA_ENTRY xsavec, xsavec64
	AREA_ENTRY xsaveopt, xsaveopt64
	AREA_ENTRY xsaves, xsaves64
	AREA_ENTRY xrstor, xrstor64
	AREA_ENTRY xrstors, xrstors64

/* XGETBV(1), the components in use, to VALUE(0). */
ENTRY xinuse
	movl	$1, %ecx
	xgetbv
	movl	%eax, VALUE(0)
	movl	%edx, VALUE(0) + 4
	DONE
.endm

#endif
