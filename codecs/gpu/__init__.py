"""Decoding on a GPU, in Triton. Imported only where asked for: `import kvstore` needs neither torch nor Triton."""

from kvstore.codecs.gpu.decoding import decode, supports
from kvstore.codecs.gpu.quantize import encode

__all__ = ["decode", "encode", "supports"]
