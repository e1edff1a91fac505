"""`make demo-vllm`: what the store does for vLLM's OpenAI server when that is restarted.

A long prompt is asked cold and again (vLLM's own prefix cache), then of a restarted server (whose own cache is empty),
then after the store's server was restarted too. Time to first token is the client's, over HTTP.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvstore.bench.vllm_driver import CPU_ENV
from kvstore.demo import document
from kvstore.demo.chart import draw
from kvstore.demo.models import SMOLLM2, convert

NAMES = {
    "cold": "cold",
    "own": "asked again: vLLM's own prefix cache",
    "dram": "vLLM restarted: from kvstore's DRAM",
    "nvme": "kvstore restarted too: from NVMe",
}
START_S, ANSWER_S = 180.0, 120.0


def main() -> int:
    """Run it; 0 if every answer was the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--generate", type=int, default=32)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = convert(SMOLLM2)
    ids = _token_ids(model, args.tokens)
    with tempfile.TemporaryDirectory(prefix="kvstore-demo-vllm-") as scratch:
        rows = _run(Path(scratch), model, ids, args.generate)
    for row in rows:
        row["ratio"] = rows[0]["ttft_s"] / row["ttft_s"]
        row["identical"] = row["text"] == rows[0]["text"]
    subtitle = f"vLLM's OpenAI server, {SMOLLM2.name}, {args.tokens} tokens"
    draw(rows, NAMES, subtitle, args.out / "vllm.png")
    (args.out / "vllm.json").write_text(json.dumps({"bench": "demo-vllm", "rows": rows}, indent=1))
    _show(rows, subtitle, args.out)
    return 0 if all(row["identical"] for row in rows) else 1


def _run(scratch: Path, model: Path, ids: list[int], generate: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    store = scratch / "store"
    with _store(store, "127.0.0.1:0") as address:
        with _engine(model, address, scratch / "first.log") as port:
            rows.append(_ask(port, ids, generate, "cold"))
            rows.append(_ask(port, ids, generate, "own"))
        with _engine(model, address, scratch / "second.log") as port:
            rows.append(_ask(port, ids, generate, "dram"))
    with _store(store, address), _engine(model, address, scratch / "third.log") as port:
        rows.append(_ask(port, ids, generate, "nvme"))
    return rows


@contextmanager
def _store(folder: Path, listen: str) -> Iterator[str]:
    """`kvstore serve`; its address."""
    command = [sys.executable, "-m", "kvstore", "serve", "--json", "--listen", listen, "--nvme", str(folder)]
    process = subprocess.Popen([*command, "--nvme-capacity", "4GiB"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with process.stdout:
            yield str(json.loads(process.stdout.readline())["address"])
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def _engine(model: Path, address: str, log: Path) -> Iterator[int]:
    """vLLM's OpenAI server with the connector; its port, warmed up."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    transfer = {
        "kv_connector": "KVStoreConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"server": address},
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port),
               "--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "8192",
               "--max-num-batched-tokens", "8192", "--served-model-name", "model", "--enable-prompt-tokens-details",
               "--kv-transfer-config", json.dumps(transfer)]  # fmt: skip
    env = {**CPU_ENV, **os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    print(f"starting vLLM ({log.stem}) …", flush=True)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=env, start_new_session=True)
        try:
            _await_ready(process, port, log)
            _ask(port, list(range(1000, 1256)), 4, "warm-up")
            yield port
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.5)
    raise RuntimeError(f"vLLM did not start:\n{log.read_text(errors='replace')[-4000:]}")


def _ask(port: int, ids: list[int], generate: int, case: str) -> dict[str, Any]:
    """One completion, streamed: when its first token came, its text, how many tokens of the prompt were cached."""
    body = {"model": "model", "prompt": ids, "max_tokens": generate, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, "ignore_eos": True}  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    began = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    text, first, cached = "", 0.0, 0
    for line in response:
        data = line.decode().removeprefix("data: ").strip()
        if not data or data == "[DONE]":
            continue
        event = json.loads(data)
        for choice in event.get("choices", ()):
            first = first or time.perf_counter() - began
            text += choice["text"]
        usage = event.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or cached
    connection.close()
    return {"case": case, "ttft_s": first, "hit_tokens": cached, "text": text}


def _token_ids(model: Path, count: int) -> list[int]:
    from transformers import AutoTokenizer

    return document.token_ids(AutoTokenizer.from_pretrained(model), count)


def _show(rows: list[dict[str, Any]], title: str, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("first token after")
    for heading in ("TTFT", "× faster", "hit tokens", "same text"):
        table.add_column(heading, justify="right")
    for row in rows:
        same = "yes" if row["identical"] else "NO"
        table.add_row(NAMES[row["case"]], f"{row['ttft_s']:.3f} s", f"{row['ratio']:.1f}", str(row["hit_tokens"]), same)
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"All go on with: {rows[0]['text']!r}", markup=False)
    console.print(f"Chart and figures: {out / 'vllm.png'}, {out / 'vllm.json'}")


if __name__ == "__main__":
    sys.exit(main())
