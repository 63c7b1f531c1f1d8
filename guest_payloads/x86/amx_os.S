/* SPDX-License-Identifier: Apache-2.0 */
/*
 * amx_os: what an operating system does with tiles and XFD. CPL0, CR4.OSXSAVE and XCR0[18:17] set by the host.
 *
 *	contended	arm XFD, spin until `neighbour` counts a first use of tiles, touch a tile; the #NM handler spins
 *			at `contended_handler`, and never leaves to the VMM, for PARAM(0) first uses more, then does as `demand` of amx.S: XFD_ERR to VALUE(0),
 *			clear it, read it again to VALUE(1), disarm XFD, retry. VALUE(2) is how many there were,
 *			VALUE(3) the vector, VALUE(15) the faults
 *	configure	LDTILECFG: one tile
 *	storm		with XFD armed by the host: #NM at `at_storm` again and again, until somebody stops it
 *	wrmsrs		PARAM(0) times: MSR PARAM(1) = PARAM(2), then = PARAM(3)
 *	rdmsrs		PARAM(0) times: read MSR PARAM(1); the last value to VALUE(0)
 *	task_switched	CR0.TS set, an #NM by FNOP PARAM(0) times, CR0.TS clear; VALUE(3) is the vector of the last one,
 *			VALUE(15) the faults
 *	two_tasks	PARAM(0) turns of two tasks, whose tiles lie in `areas` while they do not run. A turn begins with
 *			XFD armed: TILECFG is restored, a tick, the task touches a tile (#NM: XFD_ERR is read and
 *			cleared, XFD disarmed, all of the area restored) and adds 1 to the first doubleword of TMM0, a
 *			tick, and the task is put away: XSAVE, TILERELEASE, XFD armed.
 *			VALUE(0) is the number of #NM, VALUE(1) of those with XFD_ERR 1<<18, VALUE(2) of other faults
 *	rdmsr, wrmsr ...	see system.h
 */
#include "mailbox.h"
#include "system.h"

	.set	IA32_XFD, 0x1c4
	.set	IA32_XFD_ERR, 0x1c5
	.set	TILEDATA, 1 << 18
	.set	TILECFG, 1 << 17
	.set	XTILE, TILECFG | TILEDATA
	.set	AREA_SIZE, 16384

/* MSR ECX = value, a number of 32 bits. */
.macro WRITE_MSR index, value
	movl	$\index, %ecx
	movl	$\value, %eax
	xorl	%edx, %edx
	wrmsr
.endm

	.text
ENTRY _start
	DONE

	SYSTEM_ENTRIES

ENTRY contended
	ldtilecfg configuration
	movq	$0, mailbox_faults
	WRITE_MSR IA32_XFD, TILEDATA
	ON_FAULT 2f
	movq	neighbour + 8, %rbx
	movq	$1, neighbour
0:	pause
	cmpq	neighbour + 8, %rbx
	je	0b
1:	tilezero %tmm0
	movq	mailbox_faults, %rax
	movq	%rax, VALUE(15)
	tilerelease
	DONE
2:	movq	neighbour + 8, %rbx
	movq	%rbx, %rsi
	addq	PARAM(0), %rsi
	.globl	contended_handler
contended_handler:
3:	pause
	movq	neighbour + 8, %rdi
	cmpq	%rsi, %rdi
	jb	3b
	movl	$IA32_XFD_ERR, %ecx
	rdmsr
	movl	%eax, VALUE(0)
	movl	%edx, VALUE(0) + 4
	movq	$0, neighbour
	subq	%rbx, %rdi
	movq	%rdi, VALUE(2)
	movq	mailbox_vector, %rax
	movq	%rax, VALUE(3)
	WRITE_MSR IA32_XFD_ERR, 0
	rdmsr
	movl	%eax, VALUE(1)
	movl	%edx, VALUE(1) + 4
	WRITE_MSR IA32_XFD, 0
	jmp	1b

ENTRY configure
	ldtilecfg configuration
	DONE

ENTRY storm
	ON_FAULT storm
	.globl	at_storm
at_storm:
	tilezero %tmm0
	DONE

ENTRY wrmsrs
	movq	PARAM(0), %rsi
	movl	PARAM(1), %ecx
1:	movl	PARAM(2), %eax
	movl	PARAM(2) + 4, %edx
	wrmsr
	movl	PARAM(3), %eax
	movl	PARAM(3) + 4, %edx
	wrmsr
	decq	%rsi
	jnz	1b
	DONE

ENTRY rdmsrs
	movq	PARAM(0), %rsi
	movl	PARAM(1), %ecx
1:	rdmsr
	decq	%rsi
	jnz	1b
	VALUE_EDX_EAX
	DONE

ENTRY task_switched
	movq	$0, mailbox_faults
	movq	$0, mailbox_vector
	movq	PARAM(0), %rsi
	movq	%cr0, %rax
	orl	$8, %eax
	movq	%rax, %cr0
	jmp	3f
1:	ON_FAULT 2f
	fnop
2:	decq	%rsi
3:	testq	%rsi, %rsi
	jnz	1b
	clts
	movq	$0, mailbox_fixup
	movq	mailbox_vector, %rax
	movq	%rax, VALUE(3)
	movq	mailbox_faults, %rax
	movq	%rax, VALUE(15)
	DONE

/* RBP: area of the task whose turn it is; RSI: turns left. */
ENTRY two_tasks
	movq	PARAM(0), %rsi
	leaq	areas, %rbp
	movq	$0, VALUE(0)
	movq	$0, VALUE(1)
	movq	$0, VALUE(2)
	movl	$64, %ebx
	WRITE_MSR IA32_XFD, TILEDATA
1:	movl	$TILECFG, %eax
	xorl	%edx, %edx
	xrstor64 (%rbp)
	TICK
	ON_FAULT 4f
2:	leaq	scratch, %rdi
	tilestored %tmm0, (%rdi,%rbx)
	movq	$0, mailbox_fixup
	incl	scratch
	tileloadd (%rdi,%rbx), %tmm0
	TICK
	movl	$XTILE, %eax
	xorl	%edx, %edx
	xsave64	(%rbp)
	tilerelease
	WRITE_MSR IA32_XFD, TILEDATA
	/* The other one: areas + areas + AREA_SIZE - RBP. */
	movl	$(areas + AREA_SIZE), %eax
	addl	$areas, %eax
	subq	%rbp, %rax
	movq	%rax, %rbp
	decq	%rsi
	jnz	1b
	DONE
4:	cmpq	$7, mailbox_vector
	je	5f
	incq	VALUE(2)
	DONE
5:	incq	VALUE(0)
	movl	$IA32_XFD_ERR, %ecx
	rdmsr
	cmpl	$TILEDATA, %eax
	jne	6f
	incq	VALUE(1)
6:	WRITE_MSR IA32_XFD_ERR, 0
	WRITE_MSR IA32_XFD, 0
	movl	$XTILE, %eax
	xorl	%edx, %edx
	xrstor64 (%rbp)
	jmp	2b

	.data
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
	.globl	neighbour, areas
neighbour:	/* does the guest wait, the host's threads that used tiles so far, is it over */
	.skip	24
	.balign	64
scratch: .skip	1024
	.balign	64
areas:	.skip	2 * AREA_SIZE
