# SPDX-License-Identifier: Apache-2.0
"""TILECFG by its fields. Source: Intel SDM volume 1, 18.2."""

from __future__ import annotations


class TileConfig:
    """The 64 bytes of TILECFG: ``palette``, ``start_row``, and for each of 8 tiles rows and bytes per row."""

    def __init__(self, data: bytes) -> None:
        if len(data) != 64:
            raise ValueError(f"TILECFG has 64 bytes, not {len(data)}")
        self.data = bytes(data)

    @property
    def palette(self) -> int:
        """The palette; 0 is the initial state."""
        return self.data[0]

    @property
    def start_row(self) -> int:
        """Where an interrupted tile load or store resumes."""
        return self.data[1]

    def shape(self, tile: int) -> tuple[int, int]:
        """Return (rows, bytes per row) of a tile."""
        return self.data[48 + tile], int.from_bytes(self.data[16 + 2 * tile : 18 + 2 * tile], "little")

    def __str__(self) -> str:
        shapes = (
            f"TMM{n} {rows}x{columns}" for n in range(8) for rows, columns in [self.shape(n)] if rows or columns
        )
        return f"palette {self.palette}, start_row {self.start_row}, {' '.join(shapes) or 'no tiles'}"
