/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The image of a vCPU's vector state, the same for the host, whatever the vector length: Z0 to Z31 in
 * 256 bytes each, P0 to P15 in 32 bytes each, FFR in 32 bytes, FPSR and FPCR in 8 bytes each. What the
 * vector length does not reach stays 0.
 */
#ifndef AREA_H
#define AREA_H

#define AREA_P 8192
#define AREA_FFR 8704
#define AREA_FPSR 8736
#define AREA_FPCR 8744
#define AREA_SIZE 8752

	.bss
	.balign	4096
	.globl	image, observed, AREA_BYTES
	.set	AREA_BYTES, AREA_SIZE
image:	.skip	AREA_SIZE	/* what the host wants in the registers */
	.balign	4096
observed:
	.skip	AREA_SIZE	/* what the registers had */
	.balign	4096

#endif
