# SPDX-License-Identifier: Apache-2.0
"""``python -m vmm`` is the command ``vmm``."""

from vmm.cli import main

if __name__ == "__main__":
    main()
