"""A real SGLang, without its kernels: these tests run in an environment of their own (`make test-sglang`)."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..vllm.harness import Server

_found = importlib.util.find_spec("sglang")
if _found is not None and _found.origin is not None:  # a folder of this name is not it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has much to say about hardware that is not here
        importlib.import_module("sglang.srt.mem_cache.pool_host.mha")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "store")
    yield running
    running.stop()


@pytest.fixture
def attach() -> Iterator[Callable[..., Any]]:
    """Makes backends by SGLang's factory, closed when the test ends: (pool, address, options)."""
    from . import harness

    made: list[Any] = []

    def attached(pool: Any, address: str = "", **options: Any) -> Any:
        made.append(harness.backend(pool, address, **options))
        return made[-1]

    yield attached
    for each in made:
        each.close()
