"""`kvstore bench worth`: that it runs, checks what it loads and says what it should, not how fast."""

from __future__ import annotations

import socket

import pytest

from kvstore.bench import worth
from kvstore.bench.slow_link import SlowLink
from kvstore.bench.worth import QUIET, Asked, learnt_after
from kvstore.bench.worth_scenes import SCENES, Phase, Scene
from kvstore.errors import Corrupt


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worth, "PROMPTS", 4)
    monkeypatch.setattr(worth, "MOST_CHUNKS", 4)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.phases[0].name.split(":")[0])
def test_it_runs_and_tells_of_every_phase(tmp_path, scene: Scene) -> None:
    advanced: list[None] = []
    rows = worth.run(rounds=8, path=tmp_path, scenes=[scene], advance=lambda: advanced.append(None))
    assert [row["case"] for row in rows] == [*(phase.name for phase in scene.phases), "all steady"]
    assert len(advanced) == worth.rounds_of(8, [scene])
    for row, phase in zip(rows, scene.phases, strict=False):
        assert row["rounds"] == round(8 * phase.share)
        assert row["slower"] <= row["loads"]
        assert row["missed"] <= row["left_out"]
        assert row["loads"] + row["left_out"] >= row["rounds"]
        assert row["p50_s"] > 0
    assert rows[-1]["rounds"] == sum(
        row["rounds"] for row, phase in zip(rows, scene.phases, strict=False) if phase.steady
    )
    assert rows[-1]["met"] in (True, False)


def test_what_comes_wrong_is_told(tmp_path, monkeypatch) -> None:
    def lying(self: object, key: bytes) -> object:
        return self._contents[: worth.CHUNK] if self._asked else self._contents[1 : 1 + worth.CHUNK]  # type: ignore[attr-defined]

    monkeypatch.setattr(worth._Contest, "_content", lying)
    with pytest.raises(Corrupt):
        worth.run(rounds=1, path=tmp_path, scenes=[SCENES[0]])


def test_a_request_has_lost_or_missed_something_or_neither() -> None:
    """Seconds: what it took, with all loaded, with all computed; tokens loaded and left out."""
    assert Asked(2.0, 2.0, 1.0, 100, 0).lost == 1.0
    assert Asked(0.5, 0.5, 1.0, 100, 0).lost == 0.0
    assert Asked(2.0, 1.0, 2.0, 0, 100).missed
    assert not Asked(1.1, 1.0, 1.1, 0, 100).missed  # not clearly
    assert not Asked(2.0, 1.0, 2.0, 100, 0).missed
    # Who loads nothing loses nothing, and misses all that pays.
    assert Asked(1.0001, 0.1, 1.0, 0, 100).lost == 0.0


def test_something_is_learnt_after_the_last_mistake_before_a_quiet_time() -> None:
    good, lost, missed = Asked(1.0, 1.0, 2.0, 1, 0), Asked(3.0, 3.0, 2.0, 1, 0), Asked(3.0, 1.0, 3.0, 0, 1)
    assert learnt_after([good] * 30) == 0
    assert learnt_after([lost, good, missed, *[good] * 30]) == 3
    assert learnt_after([good] * QUIET + [lost]) == 0
    assert learnt_after([good, lost] * 10) == 20


def test_a_link_passes_on_what_it_gets() -> None:

    with socket.create_server(("127.0.0.1", 0)) as server:
        link = SlowLink(f"127.0.0.1:{server.getsockname()[1]}", 1e9)
        host, _, port = link.address.rpartition(":")
        with socket.create_connection((host, int(port))) as near, server.accept()[0] as far:
            near.sendall(b"there")
            assert far.recv(5, socket.MSG_WAITALL) == b"there"
            sent = bytes(range(256)) * 4096
            far.sendall(sent[: 1 << 20])
            link.bytes_per_s = 1e8
            assert near.recv(1 << 20, socket.MSG_WAITALL) == sent
            link.close()
            assert near.recv(1) == b""


def test_phases_that_change_the_link_have_one() -> None:
    assert [phase.name for scene in SCENES for phase in scene.phases if not phase.steady] == [
        "nvme: new", "remote: slows", "remote: recovers", "server: slows", "server: recovers",
    ]  # fmt: skip
    assert Phase("any").link == 0
