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
from kvstore.codecs.transform import Transform

__all__ = [
    "Artefact", "Block", "Codec", "Encoded", "Form", "ModelShape", "NotEncodable", "all_codecs", "codec_of", "decode",
    "encode", "form_name", "register",
]  # fmt: skip

register(Transform())
