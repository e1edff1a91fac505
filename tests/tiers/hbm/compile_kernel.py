"""Run as a program: compiles the kernel for an NVIDIA GPU, which needs none, and prints what came out as JSON.

Triton must not be in interpreter mode, so this is a process of its own.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvstore.tiers.hbm.blocks_kernel import copy_blocks

STEPS = dict.fromkeys(("block_step", "head_step", "token_step", "plane_step"), "i32")
# Llama-3.1-8B in bf16, blocks of 16 tokens of vLLM's usual layout: units of 8 bytes.
CONSTANTS = {"unit_step": 1, "PLANES": 2, "TOKENS": 16, "HEADS": 8, "RUN": 32, "UNIT": 8, "ALIGN": 16, "TILE": 2048}


def compiled(scatter: bool, capability: int) -> dict[str, Any]:
    """What matters of the kernel's machine code for a compute capability (80: A100, 90: H100)."""
    constants = CONSTANTS | {"SCATTER": scatter}
    signature = {
        "layers": "*i64",
        "table": "*i64",
        "chunk": "*i64",
        "count": "i32",
        "first": "i32",
        "together": "i32",
        **STEPS,
    }
    names = copy_blocks.arg_names
    # As a launch would: tensors and steps that are multiples of 16 are known to be.
    divisible = {(names.index(name),): [["tt.divisibility", 16]] for name in ("layers", "table", "chunk", *STEPS)}
    source = ASTSource(
        fn=copy_blocks,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=divisible,
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    ptx = made.asm["ptx"]
    wide = r"global(\.\w+::\w+)*\.(v4\.b32|v2\.b64)"
    return {
        "cubin_bytes": len(made.asm["cubin"]),
        "wide_loads": len(re.findall(r"ld\." + wide, ptx)),
        "wide_stores": len(re.findall(r"st\." + wide, ptx)),
    }


if __name__ == "__main__":
    print(json.dumps([compiled(scatter, int(sys.argv[1])) for scatter in (False, True)]))
