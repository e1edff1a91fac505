"""Decoding on a GPU, in Triton. Imported only where asked for: `import kvstore` needs neither torch nor Triton.

The containers are those of the host, and so are the bits that come out. Without a GPU the kernels run in Triton's
interpreter (`TRITON_INTERPRET=1` before Triton is imported), on CPU tensors; that is how they are tested here, and they
have not run on hardware. docs/codecs.md says what bounds them: rANS is a chain of dependent loads, one warp per stream,
so a batch needs the streams of some dozens of chunks to fill a device; the rest is bound by memory.
"""

from kvstore.codecs.gpu.decoding import Batch, decode, supports
from kvstore.codecs.gpu.quantize import encode

__all__ = ["Batch", "decode", "encode", "supports"]
