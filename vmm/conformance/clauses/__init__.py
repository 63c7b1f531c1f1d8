# SPDX-License-Identifier: Apache-2.0
"""The clauses, one package an architecture, one module an area."""
