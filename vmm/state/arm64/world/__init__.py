# SPDX-License-Identifier: Apache-2.0
"""The rows of every piece of an arm64 vCPU's state."""
