# SPDX-License-Identifier: Apache-2.0
"""The machine `amx`: Bochs with our patches, its option ROM and its configuration."""

__all__: list[str] = []
