"""Real engines in processes of their own, for benchmarks and tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvstore.bench.vllm_driver import MARK
from kvstore.bench.vllm_fork import Fork

START_S, ANSWER_S = 150, 240
TRIES = 50


class Engine:
    """A real vLLM in a process of its own."""

    def __init__(self, model: Path, transfer: dict[str, Any] | None, log: Path, env: dict[str, str], **options: Any):
        given = json.dumps({"engine": {"model": str(model), "dtype": "float32", **options}, "transfer": transfer})
        self.log = log
        self._process = self._start(given, log, env)
        try:
            self._read(START_S)
        except BaseException:
            self.close()
            raise

    def ask(
        self,
        *prompts: Sequence[int],
        salt: str = "",
        lora: str = "",
        max_tokens: int = 16,
        logprobs: Path | None = None,
        params: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Answers to prompts of token ids, all in one batch. `params` are the requests' `kv_transfer_params`.

        `logprobs` is an .npy file for the log-probabilities float32 `[new token, vocabulary]` of one prompt; that takes
        an engine in one process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`).
        """
        asked = [{"ids": list(each), "salt": salt, "lora": lora} for each in prompts]
        file = str(logprobs) if logprobs else None
        return self._send({"prompts": asked, "max_tokens": max_tokens, "logprobs": file, "params": params})

    def reset(self) -> None:
        """Empty its caches, as vLLM does when weights are replaced."""
        self._send({"reset": True})

    def metrics(self, name: str, **labels: str) -> float:
        """The sum of one of vLLM's Prometheus counters or gauges, of those with these labels."""
        told = self._send({"metrics": True})["metrics"]
        return float(sum(value for each, has, value in told if each == name and labels.items() <= has.items()))

    def ask_until_cached(self, prompt: Sequence[int], tokens: int = 1, **options: Any) -> dict[str, Any]:
        """Ask again until what was saved in the background is there; the first answer with so many cached tokens."""
        for _ in range(TRIES):
            asked = self.ask(prompt, **options)
            if asked["answers"][0]["cached"] >= tokens:
                return asked
        raise AssertionError(f"{asked['answers'][0]['cached']} tokens were found in the last of {TRIES} tries")

    def close(self) -> None:
        """End it in order."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _start(self, given: str, log: Path, env: dict[str, str]) -> subprocess.Popen[str] | Fork:
        """The driver's process."""
        with log.open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "kvstore.bench.vllm_driver", given],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **env},
            )

    def _send(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._read(ANSWER_S)

    def _read(self, limit_s: float) -> dict[str, Any]:
        """The next answer. An engine that gives none in time is ended, and its log shown."""
        timer = threading.Timer(limit_s, self._process.kill)
        timer.start()
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                with self.log.open("a") as log:
                    log.write(line)
                if line.startswith(MARK):
                    answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
                    return answer
        finally:
            timer.cancel()
        tail = self.log.read_text(errors="replace")[-6000:]
        raise AssertionError(f"the engine ended or did not answer within {limit_s} s:\n{tail}")


class ForkedEngine(Engine):
    """One that is forked from a process that has vLLM imported."""

    def _start(self, given: str, log: Path, env: dict[str, str]) -> Fork:
        return Fork(given, log, env)
