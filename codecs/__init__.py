"""Codecs: the forms in which a chunk can be stored."""

from kvstore.codecs.base import Codec, Raw, codec, form_name

__all__ = ["Codec", "Raw", "codec", "form_name"]
