# SPDX-License-Identifier: Apache-2.0
"""What is x86: CPUID, the XSAVE area, guest permission, MSRs, XCR0, boot into long mode."""
