# SPDX-License-Identifier: Apache-2.0
"""The state of an x86 vCPU: its pieces, their names, what is checked of them."""
