# SPDX-License-Identifier: Apache-2.0
"""A guest's whole state as a value: captured, compared by name, restored, and written to a stream."""
