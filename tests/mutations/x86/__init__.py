# SPDX-License-Identifier: Apache-2.0
"""The lies about x86: one module a module of clauses, and what they share."""
