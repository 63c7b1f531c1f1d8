# SPDX-License-Identifier: Apache-2.0
"""The x86 clauses. Every module of this package is imported by the registry."""
