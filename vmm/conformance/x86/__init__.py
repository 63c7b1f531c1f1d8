# SPDX-License-Identifier: Apache-2.0
"""What the x86 clauses share: guests, and needs."""
