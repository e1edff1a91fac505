"""A real vLLM: these tests run in an environment of their own (`make test-vllm`) and are skipped elsewhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import models
from .harness import Engine, Server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:  # a folder of this name is not it
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="no vLLM here: make test-vllm"))


StartEngine = Callable[..., Engine]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.gemma(tmp_path_factory.mktemp("models") / "gemma")


@pytest.fixture(scope="session")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.deepseek(tmp_path_factory.mktemp("models") / "deepseek")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartEngine]:
    """Starts engines that end with the test. In one process, unless `processes` is set."""
    engines: list[Engine] = []

    def started(model: Path, transfer: dict[str, Any] | None = None, **options: Any) -> Engine:
        engines.append(_engine(tmp_path / f"engine{len(engines)}.log", model, transfer, **options))
        return engines[-1]

    yield started
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Engine]]:
    """The engine without a store of a model: what it says is what all others have to say."""
    engines: dict[Path, Engine] = {}

    def of(model: Path) -> Engine:
        if model not in engines:
            engines[model] = _engine(tmp_path_factory.mktemp("alone") / "engine.log", model)
        return engines[model]

    yield of
    for engine in engines.values():
        engine.close()


def _engine(
    log: Path, model: Path, transfer: dict[str, Any] | None = None, *, processes: bool = False, **options: Any
) -> Engine:
    env = {} if processes else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    env.update(options.pop("env", {}))
    defaults: dict[str, Any] = {"skip_tokenizer_init": True, "block_size": 32, "max_model_len": 2048}
    if not processes:
        defaults["distributed_executor_backend"] = "uni"
    return Engine(model, transfer, log, env, **{**defaults, **options})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "store")
    yield running
    running.stop()
