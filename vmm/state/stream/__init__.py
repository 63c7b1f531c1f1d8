# SPDX-License-Identifier: Apache-2.0
"""The stream that a state is stored and sent in."""
