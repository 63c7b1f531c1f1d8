# SPDX-License-Identifier: Apache-2.0
"""What this host offers: its kernel, its KVM, its CPU, and what the process may do."""
