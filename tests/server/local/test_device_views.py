"""Device memory of a real server, by its CPU twin, opened by clients in other processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.bench.processes import Server, server
from kvstore.errors import InvalidArgument, NotFound, Unavailable
from kvstore.places import NOWHERE, pack_items, unpack_places
from kvstore.v1 import kvstore_pb2 as pb
from tests.server.local.device_prompt import SPEC, content, prompt

torch = pytest.importorskip("torch")

from kvstore.tiers.hbm import Importer  # noqa: E402 - needs torch

MiB = 1 << 20
ROOT = Path(__file__).parents[3]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")
FLAGS = ("--hbm-capacity", "4MiB", "--hbm-devices", "cpu", "--hbm-slab", "2MiB")
SLAB_CHUNKS = 7  # of 260 KiB each


def eventually(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with server(32 * MiB, *FLAGS) as made:
        yield made


@pytest.fixture
def client(running: Server) -> Iterator[kvstore.Client]:
    """A client of the one server, which holds nothing when the next test begins."""
    with running.connect("local") as made:
        yield made
        made.delete(SPEC, [info.key for info in made.list()])
        eventually(lambda: not list(made.list()) and leases(made) == 0)


def fill(client: kvstore.Client, refs: Any) -> None:
    for ref in refs:
        client.put(SPEC, ref, content(ref))


def is_there(client: kvstore.Client, refs: Any, device: str = "cpu") -> bool:
    with client.device_views(SPEC, refs, device=device) as views:
        return views.found == len(refs)


def leases(client: kvstore.Client) -> int:
    return int(client.stats()["gauges"]["leases"])


def bring(client: kvstore.Client, refs: Any, device: str = "cpu") -> None:
    fill(client, refs)
    eventually(lambda: is_there(client, refs, device))
    eventually(lambda: leases(client) == 0)  # releases are one way


def test_a_client_sees_in_place_what_the_server_keeps(client: kvstore.Client) -> None:
    refs = prompt(10)
    bring(client, refs)
    with client.device_views(SPEC, refs, device="cpu") as views:
        assert views.found == 10
        for ref, tensor in zip(refs, views.tensors, strict=True):
            assert bytes(tensor.numpy()) == content(ref).tobytes()
        with client.device_views(SPEC, refs[:2], device="cpu") as again:
            assert [each.data_ptr() for each in again.tensors] == [each.data_ptr() for each in views.tensors[:2]]
        views.tensors[3][77] ^= 1  # this very memory is what the server reads
        assert [info.key for info, _, problem in client.verify() if problem] == [refs[3].key]
        assert not views.over
    assert views.over
    assert np.array_equal(client.get(SPEC, refs[3]), content(refs[3]))
    told = client.stats()["tiers"]["hbm"]
    assert (told["kind"], told["device"], told["capacity"]) == ("hbm", "cpu", 4 * MiB)


def test_the_best_channel_has_it_and_a_network_says_that_it_has_not(running: Server, client: kvstore.Client) -> None:
    bring(client, prompt(2))
    with kvstore.connect(running.ready["address"]) as best:
        assert best.describe().extra["hbm"] == "cpu"
        assert is_there(best, prompt(2))
    for channel in ("bulk", "grpc"):
        with running.connect(channel) as other, pytest.raises(InvalidArgument, match="on this host"):
            other.device_views(SPEC, prompt(2), device="cpu")


def test_for_asyncio(running: Server, client: kvstore.Client) -> None:
    bring(client, prompt(2))

    async def main() -> None:
        async with kvstore.connect_async(running.url("local")) as other:
            with await other.device_views(SPEC, prompt(2), device="cpu", lease_s=5) as views:
                assert [bytes(each.numpy()) for each in views.tensors] == [content(ref).tobytes() for ref in prompt(2)]

    asyncio.run(main())


def test_a_server_without_one_says_so() -> None:
    with server(16 * MiB) as plain, plain.connect("local") as client:
        with pytest.raises(NotFound, match=r"no hbm tier.*\[hbm\] devices"):
            client.device_views(SPEC, prompt(1), device="cpu")
        assert "hbm" not in client.describe().extra


def holder(running: Server, chunks: int, device: str = "cpu") -> subprocess.Popen[str]:
    program = Path(__file__).with_name("device_holder.py")
    command = [sys.executable, str(program), running.url("local"), str(chunks), device]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."})


def test_what_a_killed_client_held_may_go(running: Server, client: kvstore.Client) -> None:
    refs = prompt(3 * SLAB_CHUNKS)
    held, others = refs[:SLAB_CHUNKS], refs[SLAB_CHUNKS:]
    bring(client, held)
    other = holder(running, len(held))
    try:
        assert other.stdout is not None
        assert int(other.stdout.readline()) == sum(int(content(ref).view(np.uint8).sum()) for ref in held)
        assert leases(client) == 1
        fill(client, others)
        for _ in range(6):  # asked for again and again it does not come in the place of what is held
            is_there(client, others)
            eventually(lambda: client.stats()["gauges"]["promotions"] == 0)
        assert is_there(client, held)
    finally:
        other.kill()
        other.wait(20)
        if other.stdout is not None:
            other.stdout.close()
    eventually(lambda: leases(client) == 0)
    eventually(lambda: is_there(client, others))
    assert not is_there(client, held)
    with client.device_views(SPEC, others, device="cpu") as views:
        for ref, tensor in zip(others, views.tensors, strict=True):
            assert bytes(tensor.numpy()) == content(ref).tobytes()


def test_a_lease_with_a_time_limit_ends_here_and_there(client: kvstore.Client) -> None:
    refs = prompt(2)
    bring(client, refs)
    views = client.device_views(SPEC, refs, device="cpu", lease_s=0.3)
    eventually(lambda: views.over)
    eventually(lambda: leases(client) == 0)
    views.close()
    with pytest.raises(InvalidArgument, match="a lease lasts"):
        client.device_views(SPEC, refs, device="cpu", lease_s=1e6)


def test_after_the_server_is_gone_the_views_are_over_and_still_memory() -> None:
    refs = prompt(2)
    with server(32 * MiB, *FLAGS) as doomed, kvstore.connect(doomed.url("local"), timeout=5, retries=0) as client:
        bring(client, refs)
        views = client.device_views(SPEC, refs, device="cpu")
        assert not views.over
        os.kill(doomed.pid, 9)
        eventually(lambda: views.over)  # nobody has asked the server for anything
        with pytest.raises(Unavailable):
            client.stats()
        client.close()
        assert views.over
        assert bytes(views.tensors[1].numpy()) == content(refs[1]).tobytes()
        views.close()


def test_what_cannot_be_opened_here_is_told_and_nothing_is_left_held(
    client: kvstore.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = prompt(2)
    bring(client, refs)

    def refuse(self: Any, *args: Any) -> None:
        raise Unavailable("this process sees no such GPU")

    with running_client_of(client) as fresh, monkeypatch.context() as patch:
        patch.setattr(Importer, "open_slab", refuse)
        with pytest.raises(Unavailable, match="no such GPU"):
            fresh.device_views(SPEC, refs, device="cpu")
        eventually(lambda: leases(client) == 0)
        assert np.array_equal(fresh.get(SPEC, refs[0]), content(refs[0]))


def running_client_of(client: kvstore.Client) -> kvstore.Client:
    """A second client of the same server."""
    return kvstore.connect("local:" + client.describe().extra["local"])


def question(**fields: Any) -> Any:
    items = pack_items([(ref, SPEC.part()) for ref in prompt(2)])
    return pb.DevicePlacesRequest(
        **{"spec": SPEC.digest, "items": items, "device": "cpu", "lease": b"L" * 16, **fields}
    )


def test_a_slab_that_is_given_out_cannot_be_cut_off(running: Server, client: kvstore.Client, frames: Any) -> None:
    bring(client, prompt(2))
    raw = frames.Raw(running.ready["local"])
    with closing(raw.stream):
        answer = pb.DevicePlacesResponse.FromString(raw.ask(pb.METHOD_DEVICE_PLACES, question(lease_ms=1000)))
        (slab,) = answer.slabs
        assert (slab.bytes, slab.descriptor) == (2 * MiB, True)
        descriptor = raw.stream.take_descriptor()
        try:
            for size in (0, 4 * MiB):
                with pytest.raises(PermissionError):
                    os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)
    assert is_there(client, prompt(2))


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"device": "GPU-1"}, NotFound, "it has cpu"),
        ({"lease": b"short"}, InvalidArgument, "16 bytes"),
        ({"lease_ms": 4_000_000_000}, InvalidArgument, "a lease lasts"),
        ({"items": b"x" * 47}, InvalidArgument, "48 bytes each"),
        ({"items": pack_items([(prompt(1)[0], kvstore.Part(9, 9, (0, 4)))])}, InvalidArgument, "no part of this spec"),
        ({"spec": b"?" * 16}, kvstore.SpecMismatch, "has not seen the spec"),
    ],
)
def test_a_question_that_is_wrong_is_refused_and_holds_nothing(
    running: Server, client: kvstore.Client, frames: Any, fields: Any, kind: Any, words: str
) -> None:
    bring(client, prompt(2))
    raw = frames.Raw(running.ready["local"])
    with closing(raw.stream):
        with pytest.raises(kind, match=words):
            raw.ask(pb.METHOD_DEVICE_PLACES, question(**fields))
        assert leases(client) == 0
        raw.ask(pb.METHOD_DEVICE_PLACES, question())  # the connection goes on
        assert leases(client) == 1
    eventually(lambda: leases(client) == 0)


def test_another_tenant_sees_neither_chunks_nor_slabs(tmp_path: Path, frames: Any) -> None:
    tenants = "".join(f'[[namespace]]\nname = "{name}"\n' for name in "ab")
    (tmp_path / "kvstore.toml").write_text(f'[hbm]\ncapacity = "4MiB"\ndevices = ["cpu"]\nslab = "2MiB"\n{tenants}')
    with server(32 * MiB, "--config", str(tmp_path / "kvstore.toml")) as running:
        mine, theirs = (kvstore.connect(running.url("local"), namespace=name) for name in "ab")
        with mine, theirs:
            bring(mine, prompt(2))
            theirs.put(SPEC, prompt(3)[2], content(prompt(3)[2]))
            raw = frames.Raw(running.ready["local"], "b")
            with closing(raw.stream):
                answer = pb.DevicePlacesResponse.FromString(raw.ask(pb.METHOD_DEVICE_PLACES, question()))
            assert [place[0] for place in unpack_places(answer.places)] == [NOWHERE, NOWHERE]
            assert not answer.slabs


def test_more_files_than_a_message_carries_are_refused() -> None:
    refs = prompt(18)
    flags = ("--hbm-capacity", str(18 * 512 * 1024), "--hbm-devices", "cpu", "--hbm-slab", "512KiB")
    with server(32 * MiB, *flags) as running, running.connect("local") as client:
        fill(client, refs)
        eventually(lambda: all(is_there(client, [ref]) for ref in refs))
        with pytest.raises(InvalidArgument, match="18 files; ask for less"):
            client.device_views(SPEC, refs, device="cpu")
        eventually(lambda: leases(client) == 0)
        assert is_there(client, refs[:16])


def test_what_is_wrong_ends_the_server_at_its_start_with_2() -> None:
    command = [sys.executable, "-m", "kvstore", "serve", "--listen", "127.0.0.1:0", "--dram", "16MiB"]
    for flags, words in (
        (["--hbm-capacity", "1MiB", "--hbm-devices", "gpu0"], "must be cuda:N or cpu"),
        (["--hbm-devices", "cpu"], "[hbm] is set up without a capacity"),
        (["--hbm-capacity", "1MiB", "--hbm-devices", "cpu,cpu"], "is there twice"),
    ):
        ended = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=100, check=False)
        assert (ended.returncode, words in ended.stderr) == (2, True), ended.stderr


@CUDA
def test_on_a_gpu_clients_see_in_place_what_the_server_keeps() -> None:
    refs, flags = prompt(20), ("--hbm-capacity", "64MiB", "--hbm-devices", "cuda:0", "--hbm-slab", "32MiB")
    with server(32 * MiB, *flags) as running, running.connect("local") as client:
        bring(client, refs, "cuda:0")
        with client.device_views(SPEC, refs) as views:  # the current device
            for ref, tensor in zip(refs, views.tensors, strict=True):
                assert str(tensor.device) == "cuda:0"
                assert bytes(tensor.cpu().numpy()) == content(ref).tobytes()
            with client.device_views(SPEC, refs[:2], device="cuda:0") as again:
                assert [each.data_ptr() for each in again.tensors] == [each.data_ptr() for each in views.tensors[:2]]
            views.tensors[3][77] ^= 1
            torch.cuda.synchronize()
            assert [info.key for info, _, problem in client.verify() if problem] == [refs[3].key]
        assert np.array_equal(client.get(SPEC, refs[3]), content(refs[3]))
        eventually(lambda: client.stats()["tiers"]["hbm"]["registered_bytes"] >= 32 * MiB)
        other = holder(running, 3, "cuda:0")
        try:
            assert other.stdout is not None
            assert int(other.stdout.readline()) == sum(int(content(ref).view(np.uint8).sum()) for ref in refs[:3])
            assert leases(client) == 1
        finally:
            other.kill()
            other.wait(20)
            if other.stdout is not None:
                other.stdout.close()
        eventually(lambda: leases(client) == 0)
        with client.device_views(SPEC, refs[:3]) as views:
            assert [bytes(each.cpu().numpy()) for each in views.tensors] == [content(ref).tobytes() for ref in refs[:3]]
        with pytest.raises(NotFound, match="it has "):
            client.device_views(SPEC, refs, device="cpu")
