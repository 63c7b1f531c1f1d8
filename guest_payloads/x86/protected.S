/* SPDX-License-Identifier: Apache-2.0 */
/*
 * protected: 32-bit code for a guest in protected mode without paging. It has no exception handlers: a fault is a
 * shutdown.
 *
 *	xgetbv32	XCR0 to VALUE(0)
 *	xsetbv32	XCR0 = PARAM(0), then the same
 */
#include "mailbox.h"

.macro REPORT_XCR0
	xorl	%ecx, %ecx
	xgetbv
	movl	%eax, VALUE(0)
	movl	%edx, VALUE(0) + 4
	LEAVE	EVENT_DONE
.endm

	.text
ENTRY _start
	DONE

	.code32
ENTRY xgetbv32
	REPORT_XCR0

ENTRY xsetbv32
	xorl	%ecx, %ecx
	movl	PARAM(0), %eax
	movl	PARAM(0) + 4, %edx
	xsetbv
	REPORT_XCR0
