# SPDX-License-Identifier: Apache-2.0
"""What the arm64 clauses share: guests, and needs."""
