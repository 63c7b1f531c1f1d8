# SPDX-License-Identifier: Apache-2.0
"""What pytest is taught for these tests; tests/conftest.py loads them."""
