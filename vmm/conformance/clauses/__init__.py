# SPDX-License-Identifier: Apache-2.0
"""The clauses: a package for each architecture; a module, or some by topic, for each area."""
