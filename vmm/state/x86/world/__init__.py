# SPDX-License-Identifier: Apache-2.0
"""The closed world of x86: the rows of each piece of a vCPU's state."""
