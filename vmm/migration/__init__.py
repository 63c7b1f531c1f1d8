# SPDX-License-Identifier: Apache-2.0
"""Moving a guest to another host."""
