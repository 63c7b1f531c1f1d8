/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hello: one exit of each simple kind, and the instructions whose behaviour a VMM controls.
 *
 *	_start		OUT 'H' to port 0x3f8 (byte), IN from 0x3f9 (byte) to VALUE(0), 8-byte MMIO write of
 *			0x1122334455667788 to 0xd0000000, 4-byte MMIO read of 0xd0000008 to VALUE(1)
 *	outs		PARAM(0) bytes 0, 1, 2, ... to port 0x3f8
 *	halt		HLT (CPL0)
 *	cpuid		CPUID with EAX = PARAM(0), ECX = PARAM(1); EAX..EDX to VALUE(0..3)
 *	xgetbv		ECX = PARAM(0); EDX:EAX to VALUE(0)
 *	xsetbv		RCX = PARAM(0), EDX:EAX = PARAM(1) (CPL0)
 *	read_cr4	CR4 to VALUE(0) (CPL0)
 *	rdmsr, wrmsr, write_cr4, write_cr0	see system.h
 *
 * Entries that may fault set VALUE(15) to the number of faults, which are 0 or 1 of them.
 */
#include "mailbox.h"
#include "system.h"

	.text
ENTRY _start
	movl	$'H', %eax
	movw	$0x3f8, %dx
	outb	%al, %dx
	incl	%edx
	xorl	%eax, %eax
	inb	%dx, %al
	movq	%rax, VALUE(0)
	movl	$0xd0000000, %ebx
	movabsq	$0x1122334455667788, %rax
	movq	%rax, (%rbx)
	xorl	%eax, %eax
	movl	8(%rbx), %eax
	movq	%rax, VALUE(1)
	DONE

ENTRY outs
	movq	PARAM(0), %rcx
	xorl	%eax, %eax
	movw	$0x3f8, %dx
1:	outb	%al, %dx
	incl	%eax
	decq	%rcx
	jnz	1b
	DONE

ENTRY halt
	hlt
	DONE

ENTRY cpuid
	movl	PARAM(0), %eax
	movl	PARAM(1), %ecx
	cpuid
	movq	%rax, VALUE(0)
	movq	%rbx, VALUE(1)
	movq	%rcx, VALUE(2)
	movq	%rdx, VALUE(3)
	DONE

	SYSTEM_ENTRIES

ENTRY xgetbv
	MAY_FAULT_BEGIN
	xgetbv
	VALUE_EDX_EAX
	MAY_FAULT_END

ENTRY xsetbv
	MAY_FAULT_BEGIN
	movq	PARAM(0), %rcx
	xsetbv
	MAY_FAULT_END

ENTRY read_cr4
	movq	%cr4, %rax
	movq	%rax, VALUE(0)
	DONE
