# SPDX-License-Identifier: Apache-2.0
"""The clauses about x86: a module has the name of an area, or of an area and a topic of it."""
