"""Decodes UTF-8 to code points with integer arithmetic, which exports as a few dozen standard operators.

String operators are not used, because runtimes for GPUs do not have them. Any bytes are accepted; each byte that is not part of a
well-formed sequence (Unicode 17, table 3-7: stray and missing continuation bytes, overlong forms, surrogates, code points above
U+10FFFF) becomes U+FFFD.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["REPLACEMENT", "characters_of"]

#: code of a byte that is not part of a valid character
REPLACEMENT = 0xFFFD


def characters_of(text: Tensor) -> Tensor:
    """Return the code points of each row's characters, moved to the front, 0 behind them: int32 (N, L).

    Args:
        text: UTF-8 bytes, padded with 0, uint8 (N, L). A byte of 0 is never a character.
    """
    # Integers only, so that a conversion of the graph to a lower precision cannot change characters.
    byte = text.to(torch.int32)
    length = byte.shape[1]
    behind = [F.pad(byte, (0, ahead))[:, ahead:] for ahead in (1, 2, 3)]
    continues = [(one >= 0x80) & (one < 0xC0) for one in behind]
    six = [one - 0x80 for one in behind]
    two = (byte - 0xC0) * 64 + six[0]
    three = (byte - 0xE0) * 4096 + six[0] * 64 + six[1]
    four = (byte - 0xF0) * 262144 + six[0] * 4096 + six[1] * 64 + six[2]
    # The smallest code point of each length excludes overlong forms, and with them the bytes C0 and C1.
    is_two = (byte >= 0xC2) & (byte < 0xE0) & continues[0]
    is_three = (byte >= 0xE0) & (byte < 0xF0) & continues[0] & continues[1] & (three >= 0x800)
    is_three = is_three & ((three < 0xD800) | (three > 0xDFFF))
    is_four = (byte >= 0xF0) & continues[0] & continues[1] & continues[2] & (four >= 0x10000) & (four <= 0x10FFFF)
    replaced = torch.full_like(byte, REPLACEMENT)
    code = torch.where(is_two, two, torch.where(is_three, three, torch.where(is_four, four, replaced)))
    code = torch.where(byte < 0x80, byte, code)
    more = is_two.to(torch.int32) + is_three.to(torch.int32) * 2 + is_four.to(torch.int32) * 3
    inside = F.pad(more, (1, 0))[:, :length] >= 1
    for back in (2, 3):
        inside = inside | (F.pad(more, (back, 0))[:, :length] >= back)
    return _moved_to_front(code, (byte > 0) & ~inside)


def _moved_to_front(code: Tensor, is_first: Tensor) -> Tensor:
    """Return `code` where `is_first`, in order and without gaps, 0 behind: int32 (N, L).

    By comparing places, L * L of them: CumSum, Compress and ScatterElements each miss int32 somewhere.
    """
    length = code.shape[1]
    place = torch.arange(length, dtype=torch.int32)
    before = (place[:, None] > place[None, :]).to(torch.int32)
    firsts = is_first.to(torch.int32)
    target = (before[None] * firsts[:, None, :]).sum(2, dtype=torch.int32)
    lands = (target[:, None, :] == place[None, :, None]) & is_first[:, None, :]
    return torch.where(lands, code[:, None, :], torch.zeros_like(code)[:, None, :]).sum(2, dtype=torch.int32)
