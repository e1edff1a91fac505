"""Decoding many chunks into device tensors, in a few launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from kvstore.codecs.base import Artefacts, Form, Opened, open_frames
from kvstore.codecs.block import Block
from kvstore.codecs.frame import Buffer
from kvstore.codecs.gpu.dequantize import Dequantizer
from kvstore.codecs.gpu.staging import Staging, raise_corrupt
from kvstore.codecs.gpu.transform import TransformDecoder
from kvstore.errors import InvalidArgument


class Decoder(Protocol):
    """Gathers frames of one kind, and decodes them together."""

    def add(self, opened: Opened, staging: Staging, address: int, chunk: int) -> None:
        """Take a frame whose layers are to go to `address`; its chunk's place in the status is `chunk`."""
        ...

    def launch(self, staged: torch.Tensor, status: torch.Tensor) -> None:
        """Decode all of them. Where one turns out to be corrupt, its chunk's status becomes another than 0."""
        ...


DECODERS: dict[str, type[Any]] = {
    "fp8": Dequantizer,
    "int8": Dequantizer,
    "int4": Dequantizer,
    "kivi": Dequantizer,
    "transform": TransformDecoder,
}


def supports(form: Form) -> bool:
    """Whether chunks of a form can be decoded on a device."""
    return form.codec.name in DECODERS


def decode(
    containers: Sequence[Buffer | torch.Tensor],
    blocks: Sequence[Block],
    outs: Sequence[torch.Tensor],
    *,
    artefacts: Artefacts | None = None,
    verify: bool = True,
) -> None:
    """Decode a container each into a tensor each, all on one device, and wait until that is done.

    A container is host memory, or a uint8 tensor, which is copied to the host: headers and checksums are checked there
    before anything is launched (`verify=False`: headers alone). A tensor is contiguous, of any dtype, and has the
    bytes of its block in the order of its axes. What they hold after an error says nothing. Raises `InvalidArgument`
    for a codec without kernels (`supports`) and for a tensor that does not fit, else as `kvstore.codecs.decode`.
    """
    device = _device_of(blocks, outs)
    staging, decoders = Staging(), dict[Any, Decoder]()
    for chunk, (container, block, out) in enumerate(zip(containers, blocks, outs, strict=True)):
        data = container.cpu().numpy().data if isinstance(container, torch.Tensor) else container
        for opened in open_frames(data, block, artefacts=artefacts, verify=verify):
            name, each = opened.codec.name, opened.block
            if name not in DECODERS:
                raise InvalidArgument(f"{name} has no kernels: decode it on the host")
            kind = (name, opened.frame.level, opened.frame.artefact, each.dtype, each.planes, each.heads, each.dim)
            if kind not in decoders:
                decoders[kind] = DECODERS[name](opened, device)
            address = out.data_ptr() + opened.frame.first * block.layer_bytes
            decoders[kind].add(opened, staging, address, chunk)
    if not decoders:
        return
    status = torch.zeros(len(outs), dtype=torch.int32, device=device)
    staged = staging.on(device)
    for decoder in decoders.values():
        decoder.launch(staged, status)
    raise_corrupt(status, "chunks")


def _device_of(blocks: Sequence[Block], outs: Sequence[torch.Tensor]) -> torch.device:
    for block, out in zip(blocks, outs, strict=True):
        if not out.is_contiguous() or out.nbytes != block.nbytes:
            raise InvalidArgument(f"the tensor must be contiguous, of {block.nbytes} bytes; it has {out.nbytes}")
        if out.device != outs[0].device:
            raise InvalidArgument(f"tensors on two devices: {outs[0].device} and {out.device}")
    return outs[0].device if outs else torch.device("cpu")
