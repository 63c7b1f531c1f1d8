# SPDX-License-Identifier: Apache-2.0
"""What an x86 host offers."""
