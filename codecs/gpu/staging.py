"""What a launch reads besides tensors that live on the device: packed into one buffer and copied over at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kvstore.codecs.block import Block
from kvstore.codecs.frame import Buffer
from kvstore.errors import Corrupt, InvalidArgument

ALIGNMENT = 16  # bytes: of every piece


@dataclass(frozen=True, slots=True)
class Rows:
    """Staged int64: from byte `at` on, `size` numbers."""

    at: int
    size: int

    def of(self, staged: torch.Tensor) -> torch.Tensor:
        """They themselves."""
        return staged[self.at : self.at + 8 * self.size].view(torch.int64)


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

    def add_rows(self, rows: Sequence[tuple[int, ...]] | npt.NDArray[np.int64]) -> Rows:
        """Rows of whole numbers: what the programs of a launch are to do, a row each."""
        return Rows(self.add_array(np.array(rows, np.int64)), np.size(rows)) if len(rows) else Rows(0, 0)

    def on(self, device: torch.device) -> torch.Tensor:
        """All pieces in one uint8 tensor on a device, through pinned memory where it has CUDA."""
        host = torch.empty(max(self.nbytes, ALIGNMENT), dtype=torch.uint8, pin_memory=device.type == "cuda")
        view, at = host.numpy().data, 0
        for piece in self._pieces:
            view[at : at + len(piece)] = piece
            at += len(piece) + -len(piece) % ALIGNMENT
        return host.to(device, non_blocking=True)


def raise_corrupt(status: torch.Tensor, what: str) -> None:
    """Wait for the device, and raise `Corrupt` unless the status of every program is zero."""
    wrong = torch.nonzero(status.cpu()).reshape(-1).tolist()
    if wrong:
        raise Corrupt(f"no encoder makes {len(wrong)} of {len(status)} {what}: numbers {wrong[:8]}")


def device_of(blocks: Sequence[Block], tensors: Sequence[torch.Tensor]) -> torch.device:
    """The one device of tensors that have the bytes of a block each. `InvalidArgument` where they have not."""
    for block, each in zip(blocks, tensors, strict=True):
        if not each.is_contiguous() or each.nbytes != block.nbytes:
            raise InvalidArgument(f"the tensor must be contiguous, of {block.nbytes} bytes; it has {each.nbytes}")
        if each.device != tensors[0].device:
            raise InvalidArgument(f"tensors on two devices: {tensors[0].device} and {each.device}")
    return tensors[0].device if tensors else torch.device("cpu")
