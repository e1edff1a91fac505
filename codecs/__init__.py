"""Codecs: the forms in which a chunk can be stored."""

from kvstore.codecs.artefact import Artefact, ModelShape
from kvstore.codecs.base import (
    Codec,
    Encoded,
    Form,
    NotEncodable,
    all_codecs,
    codec_of,
    decode,
    encode,
    form_name,
    register,
)
from kvstore.codecs.block import Block
from kvstore.codecs.cachegen import CacheGen
from kvstore.codecs.compressed import Lz4, Zstd
from kvstore.codecs.hadamard import Int4
from kvstore.codecs.kivi import Kivi
from kvstore.codecs.lossless import Lossless
from kvstore.codecs.quantized import Fp8, Int8
from kvstore.codecs.transform import Transform

__all__ = [
    "Artefact", "Block", "Codec", "Encoded", "Form", "ModelShape", "NotEncodable", "all_codecs", "codec_of", "decode",
    "encode", "form_name", "register",
]  # fmt: skip

register(Lz4())
register(Zstd())
register(Lossless())
register(Fp8())
register(Int8())
register(Int4())
register(Kivi())
register(CacheGen())
register(Transform())
