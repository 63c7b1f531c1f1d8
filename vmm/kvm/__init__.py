# SPDX-License-Identifier: Apache-2.0
"""The KVM API as the kernel has it: one class per file descriptor, one door to the kernel."""
