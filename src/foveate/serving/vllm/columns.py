"""What travels with a feature from the vision tower to the language model, in further columns of its row.

Engines cache features by image, and hand them over by request; a column goes where its feature goes. Numbers are stored bit by
bit, whatever the dtype of the features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FIELDS = 5


@dataclass(frozen=True, eq=False)
class Columns:
    """Of ``K`` features.

    Attributes:
        cell: ``(K,)`` int64, which cell of its image's grids each is; -1: it stands for no patch.
        row: ``(K,)`` int64, which of its image's features it would be without a method; its position is of that.
        sizes: ``(K,)`` fp32, original tokens that it stands for.
        coords: ``(K, 2)`` fp32, y and x in its span's grid.
    """

    cell: Tensor
    row: Tensor
    sizes: Tensor
    coords: Tensor

    def at(self, take: Tensor) -> Columns:
        """Those of the features ``take``."""
        return Columns(self.cell[take], self.row[take], self.sizes[take], self.coords[take])

    def beside(self, features: Tensor) -> Tensor:
        """``(K, C + width)``: features and columns in one row."""
        bits = (self.sizes[:, None].float(), self.coords.float())
        integers = torch.stack([self.cell, self.row], dim=1).to(torch.int32)
        numbers = torch.cat([integers, *(part.contiguous().view(torch.int32) for part in bits)], dim=1)
        return torch.cat([features, numbers.contiguous().view(features.dtype)], dim=1)

    @classmethod
    def split(cls, rows: Tensor) -> tuple[Tensor, Columns]:
        """Return the features and the columns of ``beside``."""
        width = FIELDS * 4 // rows.element_size()
        features, numbers = rows[:, :-width], rows[:, -width:].contiguous().view(torch.int32)
        sizes, *coords = (numbers[:, i].contiguous().view(torch.float32) for i in (2, 3, 4))
        return features, cls(numbers[:, 0].long(), numbers[:, 1].long(), sizes, torch.stack(coords, dim=1))
