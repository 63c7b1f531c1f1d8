# SPDX-License-Identifier: Apache-2.0
"""The clauses about arm64: a module has the name of an area, or of an area and a topic of it."""
