# SPDX-License-Identifier: Apache-2.0
"""What an arm64 host offers."""
