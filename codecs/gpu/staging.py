"""What a launch reads besides tensors that live on the device: packed into one buffer and copied over at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kvstore.codecs.frame import Buffer
from kvstore.errors import Corrupt

ALIGNMENT = 16  # bytes: of every piece


class Staging:
    """Gathers pieces of host memory. An array that is added twice (the tables of a layer, say) is staged once."""

    def __init__(self) -> None:
        self._pieces: list[Buffer] = []
        self._known: dict[int, tuple[npt.NDArray[Any], int]] = {}
        self.nbytes = 0

    def add(self, piece: Buffer) -> int:
        """Where a piece will lie, in bytes."""
        at = self.nbytes
        self._pieces.append(piece)
        self.nbytes += len(piece) + -len(piece) % ALIGNMENT
        return at

    def add_array(self, array: npt.NDArray[Any]) -> int:
        """Where an array's elements will lie, in bytes, C order. The array must not change before `on`."""
        known = self._known.get(id(array))
        if known is None:
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            known = self._known[id(array)] = (array, self.add(data))
        return known[1]

    def on(self, device: torch.device) -> torch.Tensor:
        """All pieces in one uint8 tensor on a device, through pinned memory where it has CUDA."""
        host = torch.empty(max(self.nbytes, ALIGNMENT), dtype=torch.uint8, pin_memory=device.type == "cuda")
        view, at = host.numpy().data, 0
        for piece in self._pieces:
            view[at : at + len(piece)] = piece
            at += len(piece) + -len(piece) % ALIGNMENT
        return host.to(device, non_blocking=True)


def table(rows: Sequence[tuple[int, ...]], device: torch.device) -> torch.Tensor:
    """Rows of whole numbers as int64 on a device: what the programs of a launch are to do, a row each."""
    return torch.tensor(rows, dtype=torch.int64).to(device)


def raise_corrupt(status: torch.Tensor, what: str) -> None:
    """Wait for the device, and raise `Corrupt` unless the status of every program is zero."""
    wrong = torch.nonzero(status.cpu()).reshape(-1).tolist()
    if wrong:
        raise Corrupt(f"no encoder makes {len(wrong)} of {len(status)} {what}: numbers {wrong[:8]}")
