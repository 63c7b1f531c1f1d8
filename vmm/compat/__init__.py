# SPDX-License-Identifier: Apache-2.0
"""Whether a guest of one host may run on another, and what stands in its way."""
