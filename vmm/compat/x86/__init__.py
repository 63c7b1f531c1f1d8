# SPDX-License-Identifier: Apache-2.0
"""In which dimensions two x86 hosts are compared."""
