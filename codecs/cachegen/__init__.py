"""`cachegen`: CacheGen (Liu et al., SIGCOMM 2024) as the paper has it. docs/codecs.md has the bytes.

Tokens are coded in groups of ten. The first of a group, its anchor, is quantized finely on its own; the others are
coded as their difference to the anchor as it will be decoded, in bins that grow from the first third of the model's
layers to the last. Symbols are entropy-coded with tables per (layer, plane, channel) that are measured once per model
and shared by all chunks. One chunk has several levels, from fine bins to coarse, for whoever must fit it through a
wire.
"""

from kvstore.codecs.cachegen.codec import CacheGen
from kvstore.codecs.cachegen.profile import profile

__all__ = ["CacheGen", "profile"]
