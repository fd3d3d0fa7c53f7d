"""Two classifiers of short texts by characters: a convolutional network and a Transformer encoder.

Both take UTF-8 bytes and decode them in the network. Their outputs do not depend on the amount of padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relu_deploy.zoo.nn.utf8 import characters_of

__all__ = ["TextCNN", "TextTransformer", "TransformerEncoderLayer", "text_cnn", "text_transformer"]

#: code points below this one have an embedding of their own (the Latin blocks up to Extended-B); all others share one
CHARACTERS = 0x250


class Characters(nn.Embedding):
    """Embeds the characters of a text: uint8 (N, L) to float32 (N, L, width), and a mask of characters, bool (N, L)."""

    def __init__(self, width: int, characters: int = CHARACTERS) -> None:
        super().__init__(characters + 1, width, padding_idx=0)

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        codes = characters_of(text)
        last = self.num_embeddings - 1
        return super().forward(torch.where(codes < last, codes, torch.full_like(codes, last))), codes > 0


class TextCNN(nn.Module):
    """Convolutions of several widths, the maximum of each filter over the text, two linear layers (Kim, 2014).

    The input is uint8 (N, L); the output is logits (N, num_classes). Each convolution pads the text with as many zeros as it is wide,
    so that the maximum always includes a window of padding, and further padding does not change it.
    """

    def __init__(
        self,
        num_classes: int = 10,
        width: int = 64,
        filters: int = 128,
        kernels: tuple[int, ...] = (2, 3, 4, 5),
        hidden: int = 256,
    ) -> None:
        super().__init__()
        self.characters = Characters(width)
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv1d(width, filters, kernel, padding=kernel), nn.ReLU()) for kernel in kernels
        )
        self.hidden = nn.Linear(filters * len(kernels), hidden)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(0.2)
        self.classify = nn.Linear(hidden, num_classes)

    def forward(self, text: Tensor) -> Tensor:
        vectors, _ = self.characters(text)
        vectors = vectors.transpose(1, 2)
        found = torch.cat([conv(vectors).amax(2) for conv in self.convs], 1)
        logits: Tensor = self.classify(self.dropout(self.relu(self.hidden(found))))
        return logits


class TransformerEncoderLayer(nn.Module):
    """A Transformer encoder layer with post-norm; same state dict and results as torch.nn's with ReLU.

    Feature maps are (N, width, L) around the ReLU, so that its channels stand on axis 1 like those of a convolution.
    """

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.self_attn = SelfAttention(d_model, nhead)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """Return (N, L, d_model).

        Args:
            x: (N, L, d_model).
            present: Positions that are attended to, bool (N, L).
        """
        x = self.norm1(x + self.dropout(self.self_attn(x, present)))
        fired = self.dropout(self.relu(_pointwise(self.linear1, x.transpose(1, 2))))
        output: Tensor = self.norm2(x + self.dropout(_pointwise(self.linear2, fired).transpose(1, 2)))
        return output


def _pointwise(linear: nn.Linear, x: Tensor) -> Tensor:
    """Apply `linear` to each column of `x`, (N, in_features, L)."""
    return F.conv1d(x, linear.weight[:, :, None], linear.bias)


class SelfAttention(nn.Module):
    """Scaled dot-product attention of several heads; state dict of torch.nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        rows, length, width = x.shape
        parts = F.linear(x, self.in_proj_weight, self.in_proj_bias).reshape(rows, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(2, 3) * (width // self.heads) ** -0.5
        # Minus infinity would give NaN for rows without characters, and a lower number does not fit float16.
        scores = torch.where(present[:, None, None, :], scores, torch.full_like(scores, -30000.0))
        mixed = (scores.softmax(3) @ value).transpose(1, 2).reshape(rows, length, width)
        output: Tensor = self.out_proj(mixed)
        return output


class TextTransformer(nn.Module):
    """A Transformer encoder over characters with mean pooling.

    The input is uint8 (N, L) with L up to `positions`; the output is logits (N, num_classes). Padding is neither attended to nor part of the mean.
    """

    def __init__(
        self,
        num_classes: int = 10,
        width: int = 96,
        heads: int = 4,
        layers: int = 2,
        feedforward: int = 256,
        positions: int = 128,
    ) -> None:
        super().__init__()
        self.characters = Characters(width)
        self.positions = nn.Parameter(nn.init.normal_(torch.empty(positions, width), std=0.1))
        self.layers = nn.ModuleList(TransformerEncoderLayer(width, heads, feedforward) for _ in range(layers))
        self.classify = nn.Linear(width, num_classes)

    def forward(self, text: Tensor) -> Tensor:
        x, present = self.characters(text)
        x = x + self.positions[: text.shape[1]]
        for layer in self.layers:
            x = layer(x, present)
        share = present.to(x.dtype)
        share = share / share.sum(1, keepdim=True).clamp(min=1)
        logits: Tensor = self.classify((x * share[:, :, None]).sum(1))
        return logits


def text_cnn(num_classes: int = 10) -> TextCNN:
    """Return the text CNN with random weights."""
    return TextCNN(num_classes)


def text_transformer(num_classes: int = 10) -> TextTransformer:
    """Return the Transformer encoder with random weights."""
    return TextTransformer(num_classes)
