"""Decoding many chunks into device tensors, in a few launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from kvstore.codecs.base import Artefacts, Form, Opened, open_frames
from kvstore.codecs.block import Block
from kvstore.codecs.frame import Buffer
from kvstore.codecs.gpu.cachegen import CacheGenDecoder
from kvstore.codecs.gpu.dequantize import Dequantizer
from kvstore.codecs.gpu.lossless import LosslessDecoder
from kvstore.codecs.gpu.staging import Staging, device_of, raise_corrupt
from kvstore.codecs.gpu.transform import TransformDecoder
from kvstore.errors import InvalidArgument


class Decoder(Protocol):
    """Gathers frames of one kind, and decodes them together."""

    def add(self, opened: Opened, staging: Staging, address: int, chunk: int) -> None:
        """Take a frame whose layers are to go to `address`; its chunk's place in the status is `chunk`."""
        ...

    def close(self, staging: Staging) -> None:
        """Stage what else the launches read: there will be no more frames."""
        ...

    def launch(self, staged: torch.Tensor, status: torch.Tensor) -> None:
        """Decode all of them. Where one turns out to be corrupt, its chunk's status becomes another than 0."""
        ...


DECODERS: dict[str, type[Any]] = {
    "lossless": LosslessDecoder,
    "fp8": Dequantizer,
    "int8": Dequantizer,
    "int4": Dequantizer,
    "kivi": Dequantizer,
    "cachegen": CacheGenDecoder,
    "transform": TransformDecoder,
}


def supports(form: Form) -> bool:
    """Whether chunks of a form can be decoded on a device."""
    return form.codec.name in DECODERS


class Batch:
    """Many chunks to decode, a container each into a tensor each, all on one device.

    A container is host memory, or a uint8 tensor, which is copied to the host: headers and checksums are checked there
    before anything is launched (`verify=False`: headers alone). A tensor is contiguous, of any dtype, and has the
    bytes of its block in the order of its axes; what they hold after an error says nothing. Raises `InvalidArgument`
    for a codec without kernels (`supports`) and for a tensor that does not fit, else as `kvstore.codecs.decode`.
    """

    def __init__(
        self,
        containers: Sequence[Buffer | torch.Tensor],
        blocks: Sequence[Block],
        outs: Sequence[torch.Tensor],
        *,
        artefacts: Artefacts | None = None,
        verify: bool = True,
    ) -> None:
        self._device, self._outs = device_of(blocks, outs), tuple(outs)
        self._staging, self._decoders = Staging(), dict[Any, Decoder]()
        for chunk, (container, block, out) in enumerate(zip(containers, blocks, outs, strict=True)):
            data = container.cpu().numpy().data if isinstance(container, torch.Tensor) else container
            for opened in open_frames(data, block, artefacts=artefacts, verify=verify):
                address = out.data_ptr() + opened.frame.first * block.layer_bytes
                self._decoder_of(opened).add(opened, self._staging, address, chunk)
        for decoder in self._decoders.values():
            decoder.close(self._staging)
        self._staged = self._status = torch.empty(0)

    def _decoder_of(self, opened: Opened) -> Decoder:
        name, block, frame = opened.codec.name, opened.block, opened.frame
        if name not in DECODERS:
            raise InvalidArgument(f"{name} has no kernels: decode it on the host")
        kind = (name, frame.level, frame.artefact, block.dtype, block.planes, block.heads, block.dim)
        if kind not in self._decoders:
            self._decoders[kind] = DECODERS[name](opened, self._device)
        return self._decoders[kind]

    def upload(self) -> None:
        """Copy what the launches read to the device, in the order of its stream."""
        self._staged = self._staging.on(self._device)
        self._status = torch.zeros(len(self._outs), dtype=torch.int32, device=self._device)

    def launch(self) -> None:
        """Start decoding what was uploaded; does not wait."""
        for decoder in self._decoders.values():
            decoder.launch(self._staged, self._status)

    def wait(self) -> None:
        """Wait until all is decoded. `Corrupt` names the chunks that no encoder makes, by their places."""
        raise_corrupt(self._status, "chunks")


def decode(
    containers: Sequence[Buffer | torch.Tensor],
    blocks: Sequence[Block],
    outs: Sequence[torch.Tensor],
    *,
    artefacts: Artefacts | None = None,
    verify: bool = True,
) -> None:
    """Decode a `Batch`, and wait until that is done."""
    batch = Batch(containers, blocks, outs, artefacts=artefacts, verify=verify)
    batch.upload()
    batch.launch()
    batch.wait()
