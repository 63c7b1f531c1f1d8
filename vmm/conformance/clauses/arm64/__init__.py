# SPDX-License-Identifier: Apache-2.0
"""The clauses about arm64: one module per area."""
