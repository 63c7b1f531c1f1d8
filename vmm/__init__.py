# SPDX-License-Identifier: Apache-2.0
"""xstate-vmm: proves, clause by clause, that a KVM keeps a guest's extended state as its ABI promises."""
