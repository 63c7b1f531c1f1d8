# SPDX-License-Identifier: Apache-2.0
"""The closed world judged: what the rows of vmm.state say of every field, property by property."""
