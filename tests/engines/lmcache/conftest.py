"""A real LMCache: these tests run in an environment of their own (`make test-lmcache`)."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..vllm.harness import Server

_found = importlib.util.find_spec("lmcache")
if _found is not None and _found.origin is not None:  # a folder of this name is not it
    os.environ.update(LMCACHE_TRACK_USAGE="false", LMCACHE_LOG_LEVEL="ERROR")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has much to say about hardware that is not here
        importlib.import_module("lmcache.v1.distributed.l2_adapters")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:  # LMCache's own uses of OpenTelemetry and torch
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "store")
    yield running
    running.stop()


@pytest.fixture
def plug() -> Iterator[Callable[..., Any]]:
    """Makes adapters by LMCache's own plugin loading, closed when the test ends: (address, adapter_params)."""
    from . import harness

    made: list[Any] = []

    def plugged(address: str = "", **params: Any) -> Any:
        made.append(harness.adapter(address, **params))
        return made[-1]

    yield plugged
    for each in made:
        each.close()
