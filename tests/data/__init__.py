# SPDX-License-Identifier: Apache-2.0
"""Data that was recorded for the tests."""
