# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of what reads a stranger's bytes: ``python -m tests.fuzz TARGET --seconds N``.

What a run found worth keeping is in tests/data/fuzz, and is read again by an ordinary test.
"""
