"""Arrays at the boundary: NumPy arrays and torch tensors as plain bytes, without a copy and without torch.

NumPy has no bfloat16 and no fp8: such parts are given as an unsigned integer array of the same width, as flat
`uint8`, or as a torch tensor.
"""

from __future__ import annotations

import sys
from functools import cache
from math import prod
from typing import Any

import numpy as np

from kvstore.errors import InvalidArgument, SpecMismatch
from kvstore.spec import KVSpec, Part

_NUMPY_NAMES: dict[str, tuple[str, ...]] = {
    "bfloat16": ("bfloat16", "uint16"),
    "float8_e4m3fn": ("float8_e4m3fn", "uint8"),
    "float8_e5m2": ("float8_e5m2", "uint8"),
}


def is_torch(value: object) -> bool:
    """Whether `value` is a torch tensor (torch is never imported to find out)."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def part_memory(array: Any, spec: KVSpec, part: Part, tokens: int, *, writable: bool = False) -> memoryview:
    """The bytes of an array that holds `part` of a chunk of `tokens` tokens, flat and without a copy.

    Takes a C-contiguous NumPy array or CPU torch tensor of the spec's shape and dtype, or flat bytes of the exact
    length. Raises `SpecMismatch` with both shapes where it does not fit, `InvalidArgument` where it is not
    contiguous, not on the CPU, empty or read-only.
    """
    nbytes = spec.part_bytes(part, tokens)
    if _is_flat(array):
        view: memoryview = array.data  # as it is: three arrays less to make
    elif is_torch(array):
        view = _tensor_memory(array, spec.dtype, spec.part_shape(part, tokens))
    else:
        view = _numpy_memory(array, spec.dtype, spec.part_shape(part, tokens))
    if view.nbytes != nbytes:
        shape = spec.part_shape(part, tokens)
        raise SpecMismatch(
            f"{view.nbytes} bytes do not fit: {part} of {tokens} tokens is {spec.dtype} {list(shape)}, "
            f"{nbytes} bytes (spec {spec.digest.hex()})"
        )
    if writable and view.readonly:
        raise InvalidArgument("the destination is read-only")
    return view


def layer_memory(array: Any, nbytes: int) -> memoryview:
    """A writable C-contiguous destination of exactly `nbytes` bytes, flat."""
    raw = _flat_tensor(array) if is_torch(array) else _flat_numpy(array)
    if raw.nbytes != nbytes:
        raise InvalidArgument(f"the destination has {raw.nbytes} bytes; the layers asked for have {nbytes}")
    if raw.readonly:
        raise InvalidArgument("the destination is read-only")
    return raw


def empty(spec: KVSpec, part: Part, tokens: int, layers: int | None = None) -> np.ndarray[Any, Any]:
    """A new NumPy array for a part (for `layers` of its layer groups); bfloat16 and fp8 as unsigned integers."""
    shape = spec.part_shape(part, tokens)
    if layers is not None:
        shape = (layers, *shape[1:]) if len(shape) > 1 else shape
    return np.empty(shape, numpy_dtype(spec.dtype))


@cache
def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The NumPy dtype that stands for a spec's dtype."""
    return np.dtype(_NUMPY_NAMES.get(dtype, (dtype,))[-1])


def _is_flat(array: Any) -> bool:
    """Whether an array is bytes in a row."""
    return (
        type(array) is np.ndarray
        and array.ndim == 1
        and array.dtype.char == "B"
        and bool(array.size)
        and array.flags.c_contiguous
    )


def _numpy_memory(array: Any, dtype: str, shape: tuple[int, ...]) -> memoryview:
    view = _flat_numpy(array)
    if isinstance(array, np.ndarray) and not _fits(array, dtype, shape):
        raise SpecMismatch(f"the array is {array.dtype} {list(array.shape)}; the spec says {dtype} {list(shape)}")
    return view


def _fits(array: np.ndarray[Any, Any], dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether an array has the spec's shape and dtype, or is flat bytes."""
    if array.ndim == 1 and array.dtype == np.uint8:
        return True
    # The name of a dtype takes longer than all else here.
    same = array.dtype == numpy_dtype(dtype) or (
        array.dtype.isnative and array.dtype.name in _NUMPY_NAMES.get(dtype, (dtype,))
    )
    return same and array.shape == shape


def _flat_numpy(array: Any) -> memoryview:
    try:
        view = _plain_view(array).data if isinstance(array, np.ndarray) else memoryview(array)
    except TypeError:
        raise InvalidArgument(
            f"expected a NumPy array, a torch tensor or a buffer, not {type(array).__name__}"
        ) from None
    if view.nbytes == 0:
        raise InvalidArgument("the array is empty")
    if not view.c_contiguous:
        raise InvalidArgument("the array is not C-contiguous; pass numpy.ascontiguousarray(array)")
    return view.cast("B") if view.ndim != 1 or view.format != "B" else view


def _plain_view(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same memory as uint8: extension dtypes (ml_dtypes) have no buffer format of their own."""
    if not array.flags.c_contiguous:
        raise InvalidArgument("the array is not C-contiguous; pass numpy.ascontiguousarray(array)")
    return array.reshape(-1).view(np.uint8)


def _tensor_memory(tensor: Any, dtype: str, shape: tuple[int, ...]) -> memoryview:
    name = str(tensor.dtype).removeprefix("torch.")
    flat = name == "uint8" and tensor.dim() == 1
    if not flat and (name != dtype or tuple(tensor.shape) != shape):
        raise SpecMismatch(f"the tensor is {name} {list(tensor.shape)}; the spec says {dtype} {list(shape)}")
    return _flat_tensor(tensor)


def _flat_tensor(tensor: Any) -> memoryview:
    if tensor.device.type != "cpu":
        raise InvalidArgument(f"the tensor is on {tensor.device}; this way in takes CPU tensors")
    if prod(tensor.shape) == 0:
        raise InvalidArgument("the tensor is empty")
    if not tensor.is_contiguous():
        raise InvalidArgument("the tensor is not contiguous; pass tensor.contiguous()")
    uint8 = sys.modules["torch"].uint8
    return memoryview(tensor.detach().view(-1).view(uint8).numpy())
