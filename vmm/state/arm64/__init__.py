# SPDX-License-Identifier: Apache-2.0
"""The state of an arm64 vCPU: its pieces, and what is checked of them."""
