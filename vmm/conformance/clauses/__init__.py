# SPDX-License-Identifier: Apache-2.0
"""The clauses, one package per architecture, one module per area."""
