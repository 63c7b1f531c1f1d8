# SPDX-License-Identifier: Apache-2.0
"""The clauses of KVM's extended-state ABI and how they are judged."""
