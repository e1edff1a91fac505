"""Run as a program: compiles every kernel for NVIDIA GPUs, which needs none, and prints what came out as JSON.

Triton must not be in interpreter mode, so this is a process of its own.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvstore.codecs.gpu import cachegen, dequantize, escapes, inverse, lossless, quantize, rans

Kernel = tuple[Any, dict[str, str], dict[str, Any], int]

_DECODED = {"staged": "*u8", "sections": "*i64", "status": "*i32"}


def quantizer(codec: int, bits: int, dim: int, dtype: int) -> dict[str, Any]:
    """The constants of a quantizer's kernels."""
    width = max(16, triton.next_power_of_2(dim))
    shape = {"HEADS": 3, "DIM": dim, "WIDTH": width, "TILE": max(2, dequantize.TILE_ELEMENTS // width)}
    return {
        "CODEC": codec,
        "BITS": bits,
        "SIZE": dim & -dim,
        "DTYPE": dtype,
        **shape,
        "UNIT": True,
        "ALIGN": 16,
        "BODY": 16,
        "ROWS": 16,
    }


QUANTIZERS = [quantizer(*each) for each in ((4, 4, 64, 0), (5, 4, 64, 0), (6, 4, 80, 1), (7, 4, 128, 2), (7, 2, 64, 0))]

_ENCODED = {"bodies": "*u8", "sections": "*i64", "status": "*i32"}
_ROWS = [
    {**each, "BY_CHANNEL": by_channel, "TILE": max(32 if by_channel else 2, quantize.TILE_ELEMENTS // each["WIDTH"])}
    for each in QUANTIZERS[1:]
    for by_channel in ((False, True) if each["CODEC"] == 7 else (False,))
]
_FP8 = {"HEADS": 3, "DIM": 64, "DTYPE": 0, "TILE": 32, "WIDTH": 32, "UNIT": False, "ALIGN": 2, "BODY": 1, "ROWS": 1}
_TILE = {"UNIT": True, "ALIGN": 16, "EVEN": 16, "RUN": 64, "TOKENS": escapes.TOKENS, "BLOCK": escapes.COLUMNS}
_SHAPE = {"PLANES": 2, "HEADS": 3, "DIM": 64}

KERNELS: dict[str, list[Kernel]] = {
    "inverse": [
        (
            inverse.inverse,
            {"q": "*i16", "staged": "*fp32", "slices": "*i64"},
            {**_SHAPE, "DTYPE": dtype, "TOKENS": 128, "PAIRS": 32, "DEPTH": 32, "RUN": run, "UNIT": True, "ALIGN": 16},
            4,
        )
        for dtype, run in ((0, 32), (2, 1))
    ],
    "lossless": [
        (
            lossless.join,
            {
                "symbols": "*u8",
                "staged": "*u8",
                "frames": "*i64",
                "counts": "*i32",
                "ends": "*i64",
                "status": "*i32",
            },
            {**_SHAPE, "DTYPE": 1, **_TILE},
            4,
        ),
        (
            escapes.count_escapes,
            {"symbols": "*u8", "matrices": "*i64", "counts": "*i32"},
            {"ESCAPE": 31, "TOKENS": escapes.TOKENS, "BLOCK": escapes.COLUMNS},
            4,
        ),
        (lossless.copy_bytes, {"staged": "*u8", "bodies": "*i64"}, {"BLOCK": lossless.COPIED}, 4),
    ],
    "cachegen": [
        (
            cachegen.values,
            {
                "symbols": "*u8",
                "staged": "*u8",
                "floats": "*fp32",
                "frames": "*i64",
                "counts": "*i32",
                "ends": "*i64",
                "status": "*i32",
            },
            {"HEADS": 3, "DIM": 64, "DTYPE": 0, **_TILE},
            4,
        )
    ],
    "low bits": [
        (inverse.add_low_bits, {"q": "*i16", "staged": "*u8", "frames": "*i64"}, {"TOKENS": 64, "COLUMNS": 32}, 4),
        (inverse.patch, {"q": "*i16", "places": "*i64", "values": "*i16", "count": "i32"}, {"BLOCK": 512}, 4),
        (inverse.copy_sinks, {"staged": "*u8", "frames": "*i64"}, {**_SHAPE, "WIDE": False, "BLOCK": 1024}, 4),
        (inverse.copy_sinks, {"staged": "*u8", "frames": "*i64"}, {**_SHAPE, "WIDE": True, "BLOCK": 1024}, 4),
    ],
    "quantize": [
        *((quantize.encode_rows, _ENCODED, constants, 4) for constants in _ROWS),
        (quantize.encode_channels, _ENCODED, _FP8, 4),
    ],
    "dequantize": [(dequantize._decode, _DECODED, constants, 4) for constants in QUANTIZERS],
    "rans": [
        (
            rans._rans_decode,
            {
                "words": "*u16",
                "staged": "*u8",
                "symbols": "*u8",
                "entries": "*u32",
                "jobs": "*i64",
                "out": out,
                "status": "*i32",
            },
            {"LEVELS": levels},
            1,
        )
        for levels, out in ((False, "*u8"), (True, "*i16"))
    ],
}


def compiled(kernel: Kernel, capability: int) -> dict[str, Any]:
    """What matters of a kernel's machine code for a compute capability (80: A100, 90: H100)."""
    function, signature, constants, warps = kernel
    source = ASTSource(
        fn=function,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs={(function.arg_names.index(name),): value for name, value in constants.items()},
    )
    options = {"num_warps": warps, "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = made.asm["ptx"]
    return {
        "fused": sum(word in ptx for word in ("fma.rn.f32", "mad.f32", "fma.rn.bf16", "fma.rn.f16")),
        "inexact": sum(word in ptx for word in ("div.full.f32", "div.approx", "rcp.approx", ".ftz")),
        "loose": ptx.count("\tmul.f32") + ptx.count("\tadd.f32") + ptx.count("\tsub.f32"),
        "cubin_bytes": len(made.asm["cubin"]),
        "shared_bytes": made.metadata.shared,
    }


if __name__ == "__main__":
    capability = int(sys.argv[1])
    report = {name: [compiled(each, capability) for each in kernels] for name, kernels in KERNELS.items()}
    print(json.dumps(report))
