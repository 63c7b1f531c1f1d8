# SPDX-License-Identifier: Apache-2.0
"""The closed world: a row for every field of a vCPU's state, with what the ABI says of it."""
