"""Decoding on a GPU, in Triton. Imported only where asked for: `import kvstore` needs neither torch nor Triton."""

from kvstore.codecs.gpu.decoding import decode, supports

__all__ = ["decode", "supports"]
