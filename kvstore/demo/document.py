"""The document that is prefilled: a chapter of the Python manual, which every Python carries for `help()`."""

from __future__ import annotations

import platform
from typing import Any

from kvstore.errors import InvalidArgument

CHAPTER = "compound"


def title() -> str:
    """What the document is and where it is from."""
    return f"Python {platform.python_version()} reference manual, “Compound statements” (pydoc_data.topics)"


def token_ids(tokenizer: Any, count: int) -> list[int]:
    """The document's first `count` tokens."""
    from pydoc_data.topics import topics

    ids: list[int] = tokenizer(topics[CHAPTER]).input_ids
    if not 64 <= count <= len(ids):
        raise InvalidArgument(f"a prompt takes 64 to {len(ids)} tokens of this document, not {count}")
    return ids[:count]
