"""Normalization as part of the model, so that the exported graph takes uint8 pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["PixelsIn"]


class PixelsIn(nn.Module):
    """A model after (x * scale - mean) / std, which converts uint8 NHWC to the model's floating-point NCHW.

    Args:
        model: The model.
        scale: Factor of the pixels.
        mean: Mean of each channel, in units of the scaled pixels.
        std: Standard deviation of each channel, in units of the scaled pixels.
        bgr: The model takes the channels of RGB pixels in the opposite order; mean and std are in that order.
        dtype: Element type of the input of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        scale: float,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        bgr: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        self.order = [2, 1, 0] if bgr else None
        spread = torch.tensor(std, dtype=torch.float64).reshape(1, -1, 1, 1)
        offset = torch.tensor(mean, dtype=torch.float64).reshape(1, -1, 1, 1)
        # One product and one sum, each constant rounded once from float64.
        self.register_buffer("factor", (scale / spread).float(), persistent=False)
        self.register_buffer("shift", (-offset / spread).float(), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the model's output for `pixels`, uint8 (N, H, W, C)."""
        planes = pixels.permute(0, 3, 1, 2).to(torch.float32)
        if self.order is not None:
            planes = planes[:, self.order]
        normalized = planes * self.factor + self.shift
        output: Tensor = self.model(normalized if self.dtype == torch.float32 else normalized.to(self.dtype))
        return output
