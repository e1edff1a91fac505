"""The NumPy types of the records that the chunk index takes and gives."""

import numpy as np

from kvstore import _native

# One placement with its part and chunk: what `Index.export` gives and `Index.bulk_insert` takes.
EXPORT_DTYPE = np.dtype(
    {
        "names": [
            "key",
            "parent",
            "scope",
            "position",
            "tokens",
            "group",
            "rank",
            "layer_start",
            "layer_end",
            "first_valid",
            "codec",
            "level",
            "exact",
            "tier",
            "logical",
            "loc",
            "stored",
            "last_use",
            "pin_until",
        ],
        "formats": [
            ("u1", 32),
            ("u1", 32),
            "<u4",
            "<u4",
            "<u4",
            "<u2",
            "<u2",
            "<u2",
            "<u2",
            "<u4",
            "<u2",
            "<u2",
            "u1",
            "u1",
            "<u8",
            "<u8",
            "<u8",
            "<i8",
            "<i8",
        ],
        "offsets": [0, 32, 64, 68, 72, 76, 78, 80, 82, 84, 88, 90, 92, 93, 96, 104, 112, 120, 128],
        "itemsize": 136,
    }
)
if EXPORT_DTYPE.itemsize != _native.EXPORT_ITEMSIZE:
    raise ImportError(
        f"kvstore.rows describes records of {EXPORT_DTYPE.itemsize} bytes, the native module has "
        f"{_native.EXPORT_ITEMSIZE}: rebuild the package"
    )

# A chunk that a look-up asks for.
REF_DTYPE = np.dtype([("key", "u1", 32), ("position", "<u4"), ("tokens", "<u4")])

# A part that a look-up asks for in every chunk.
PART_DTYPE = np.dtype([("group", "<u2"), ("rank", "<u2"), ("layer_start", "<u2"), ("layer_end", "<u2")])

# What `Index.bulk_insert` gives for a record that it skipped.
NO_ROW = 0xFFFFFFFF
