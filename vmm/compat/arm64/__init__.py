# SPDX-License-Identifier: Apache-2.0
"""In which dimensions two arm64 hosts are compared."""
