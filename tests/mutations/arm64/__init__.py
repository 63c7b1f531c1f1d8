# SPDX-License-Identifier: Apache-2.0
"""The lies about arm64: one module a module of clauses, and what they share."""
