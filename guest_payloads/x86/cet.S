/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cet: shadow stacks and indirect branch tracking. The host sets CR4.CET, the MSRs, the shadow stack pages and,
 * for CPL3, the SSP.
 *
 *	descend		CPL3: PARAM(0) nested calls, one tick at the bottom, all the returns; VALUE(0) counts them
 *	smash		CPL3: a return address changed on the stack, then RET at `at_smash`: #CP(1)
 *	branch		CPL3: indirect jump to PARAM(0): `with_endbr`, or `without_endbr`: #CP(3) there
 *	live		CPL3: PARAM(0) nested calls; at the bottom an exception into CPL0, where with a supervisor
 *			shadow stack: a call, XSAVES of components 0 and 11, one tick; then what needs each register:
 *			XRSTORS (IA32_XSS), INCSSP (S_CET), RET (SSP), IRET to CPL3 (PL3_SSP), INCSSP there (U_CET),
 *			and the returns. VALUE(0) counts them
 *	cpuid		CPUID with EAX = PARAM(0), ECX = PARAM(1); EAX and EBX to VALUE(0) and (1)
 *	call_read, jump_read, return_read	near branches whose target is read at PARAM(0), where there is no
 *			memory, by RET with the stack there: KVM has to emulate them. The VMM answers with
 *			`arrived`, which sets VALUE(0) and is DONE
 *	rdmsrs	CPL0: the MSRs whose numbers are PARAM(0), PARAM(1), ... up to a 0 to VALUE(0), VALUE(1), ...
 *	write_cr4, write_cr0, rdmsr, wrmsr	see system.h
 *	xsaves, xrstors ...	see area.h
 */
#include "mailbox.h"
#include "area.h"
#include "system.h"

	.text
ENTRY _start
	DONE

ENTRY descend
	movq	PARAM(0), %rcx
	movq	$0, VALUE(0)
	call	level
	DONE
level:	decq	%rcx
	jz	1f
	call	level
	incq	VALUE(0)
	ret
1:	TICK
	incq	VALUE(0)
	ret

ENTRY smash
	call	1f
	DONE
1:	leaq	2f(%rip), %rax
	movq	%rax, (%rsp)
	.globl	at_smash
at_smash:
	ret
2:	DONE

ENTRY branch
	movq	PARAM(0), %rax
	jmp	*%rax
	.globl	with_endbr, without_endbr
with_endbr:
	endbr64
without_endbr:
	DONE

ENTRY live
	movq	PARAM(0), %rcx
	movq	$0, VALUE(0)
	leaq	inside(%rip), %rax
	movq	%rax, mailbox_hook
	call	1f
	DONE
1:	decq	%rcx
	jz	2f
	call	1b
	incq	VALUE(0)
	ret
2:	ud2
	xorl	%eax, %eax
	.globl	at_user_incssp
at_user_incssp:
	incsspq	%rax
	incq	VALUE(0)
	.globl	at_user_ret
at_user_ret:
	ret

/* CPL0, the frame of #UD on the stack. */
inside:
	call	1f
	addq	$2, (%rsp)		/* past the UD2 */
	.globl	at_iret
at_iret:
	iretq
1:	movl	$0x801, %eax
	xorl	%edx, %edx
	xsaves64 area
	TICK
	movl	$1, %eax		/* only x87 is restored, but XCOMP_BV names component 11 */
	xorl	%edx, %edx
	.globl	at_xrstors
at_xrstors:
	xrstors64 area
	xorl	%eax, %eax
	.globl	at_kernel_incssp
at_kernel_incssp:
	incsspq	%rax
	.globl	at_kernel_ret
at_kernel_ret:
	ret

ENTRY cpuid
	movl	PARAM(0), %eax
	movl	PARAM(1), %ecx
	cpuid
	movq	%rax, VALUE(0)
	movq	%rbx, VALUE(1)
	DONE

ENTRY call_read
	movq	$0, VALUE(0)
	movq	PARAM(0), %rdi
	.globl	at_call_read
at_call_read:
	call	*(%rdi)

ENTRY jump_read
	movq	$0, VALUE(0)
	movq	PARAM(0), %rdi
	.globl	at_jump_read
at_jump_read:
	jmp	*(%rdi)

ENTRY return_read
	movq	$0, VALUE(0)
	movq	PARAM(0), %rsp
	.globl	at_return_read
at_return_read:
	ret
	.globl	arrived
arrived:
	endbr64
	movq	$1, VALUE(0)
	DONE

ENTRY rdmsrs
	xorl	%esi, %esi
1:	movl	mailbox_params(,%rsi,8), %ecx
	jrcxz	2f
	rdmsr
	movl	%eax, mailbox_values(,%rsi,8)
	movl	%edx, mailbox_values + 4(,%rsi,8)
	incl	%esi
	cmpl	$8, %esi
	jb	1b
2:	DONE

	SYSTEM_ENTRIES
	AREA_ENTRIES

	.bss
	.balign	64
	.globl	area
area:	.skip	16384
