"""The transform codec (form 9): see `kvstore.codecs.transform.codec` and docs/codecs.md."""

from kvstore.codecs.transform.codec import Transform
from kvstore.codecs.transform.plan import KIND, VARIANTS
from kvstore.codecs.transform.rotary import Rotary

__all__ = ["KIND", "VARIANTS", "Rotary", "Transform"]
