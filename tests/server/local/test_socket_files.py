"""The files of local channels: those of killed servers go, all others stay."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvstore


def bound(path: Path, *, listens: bool, age_s: float) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(str(path))
    if listens:
        made.listen(1)
    os.utime(path, (time.time() - age_s,) * 2)
    return made


def test_what_killed_servers_left_behind_is_swept(
    start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path_factory.mktemp("run")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    folder = runtime / f"kvstore-{os.geteuid()}"
    folder.mkdir(mode=0o700)
    bound(folder / "killed.sock", listens=False, age_s=3600).close()
    kept = [
        bound(folder / "alive.sock", listens=True, age_s=3600),
        bound(folder / "starting.sock", listens=False, age_s=5),
    ]
    (folder / "note.sock").write_text("no socket")
    os.utime(folder / "note.sock", (0, 0))
    running = start()
    left = {path.name for path in folder.iterdir()}
    assert left == {"alive.sock", "starting.sock", "note.sock", Path(running.server.local).name}
    with kvstore.connect("local:" + running.server.local) as client:
        assert client.describe().namespace == "default"
    for each in kept:
        each.close()


def test_a_wrong_url_is_told_every_way() -> None:
    with pytest.raises(kvstore.InvalidArgument, match=r"HOST:PORT.*local:PATH.*bulk://HOST:PORT"):
        kvstore.connect("http://127.0.0.1:1")
