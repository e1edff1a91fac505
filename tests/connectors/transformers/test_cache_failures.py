"""`KVStoreCache` when the store fails: the text is right, and one warning says so."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

import kvstore
from kvstore.connectors.transformers import KVStoreCache, SaveResult, load, spec_of
from kvstore.errors import Corrupt, DeadlineExceeded, PermissionDenied, Unavailable

TOKENS = random.Random(1).choices(range(3, 320), k=700)
IDS = torch.tensor([TOKENS])
GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.gemma(window=100)


@pytest.fixture(scope="module")
def expected(model):
    return text(model)


def text(model, **options):
    return model.generate(IDS, **GREEDY, **options)[0].tolist()


class Server:
    """`kvstore serve` over a folder, in a process of its own."""

    def __init__(self, folder):
        self._folder, self._listen = folder, "127.0.0.1:0"
        self.start()

    def start(self):
        command = [sys.executable, "-m", "kvstore", "serve", "--json", "--listen", self._listen, "--dram", "64MiB",
                   "--dram-extent", "64MiB", "--nvme", str(self._folder), "--nvme-capacity", "256MiB",
                   "--nvme-segment", "32MiB", "--nvme-reserve", "0"]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.address = self._listen = json.loads(self._process.stdout.readline())["address"]

    def end(self, number=signal.SIGTERM):
        self._process.send_signal(number)
        self._process.wait(20)
        self._process.stdout.close()

    def signal(self, number):
        self._process.send_signal(number)


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path / "nvme")
    yield made
    made.end(signal.SIGKILL)


class At(BaseStreamer):
    """Does something when the first token is known."""

    def __init__(self, action):
        self._action, self._calls = action, 0

    def put(self, value):
        self._calls += 1
        if self._calls == 2:  # the first call brings the prompt
            self._action()

    def end(self):
        pass


def test_a_server_and_its_restart(server, model, expected):
    with KVStoreCache(server.address, model, ack="persisted") as cache:
        assert text(model, past_key_values=cache) == expected
    with KVStoreCache(server.address, model) as cache:
        assert (text(model, past_key_values=cache), cache.hit_tokens) == (expected, 699)
    server.end(signal.SIGKILL)
    server.start()
    with KVStoreCache(server.address, model) as cache:
        assert (text(model, past_key_values=cache), cache.hit_tokens) == (expected, 699)


def test_a_server_killed_while_text_is_generated(server, model, expected):
    for _ in ("cold", "warm"):
        with kvstore.connect(server.address, timeout=10, retries=0) as client:
            cache = KVStoreCache(client, model)
            kill = At(lambda: server.end(signal.SIGKILL))
            assert text(model, past_key_values=cache, streamer=kill) == expected
            with pytest.warns(RuntimeWarning, match="could not save") as told:
                assert cache.save() == SaveResult()
            assert len(told) == 1
            cache.save()  # which fails too, and says so no more
        server.start()
        with KVStoreCache(server.address, model, ack="persisted") as cache:  # what the second turn of the loop finds
            text(model, past_key_values=cache)


def test_a_server_that_is_gone(server, model, expected):
    with kvstore.connect(server.address, timeout=10, retries=0) as client:
        client.describe()
        server.end(signal.SIGKILL)
        with pytest.warns(RuntimeWarning, match="could not look up") as told, KVStoreCache(client, model) as cache:
            assert text(model, past_key_values=cache) == expected
        assert len(told) == 1  # that saving failed too needs no second one
        with pytest.raises(Unavailable), KVStoreCache(client, model, strict=True) as cache:
            text(model, past_key_values=cache)
    server.start()


def test_a_server_that_does_not_answer(server, model, expected):
    with kvstore.connect(server.address, timeout=2, retries=0) as client:
        client.describe()
        server.signal(signal.SIGSTOP)
        with pytest.warns(RuntimeWarning, match="going on without") as told, KVStoreCache(client, model) as cache:
            assert text(model, past_key_values=cache) == expected
        assert len(told) == 1
        with pytest.raises((DeadlineExceeded, Unavailable)), KVStoreCache(client, model, strict=True) as cache:
            text(model, past_key_values=cache)
        server.signal(signal.SIGCONT)


def test_a_damaged_chunk(open_store, model, expected, tmp_path):
    spec, client = spec_of(model), open_store()
    with KVStoreCache(client, model, ack="persisted") as cache:
        text(model, past_key_values=cache)
    part = spec.part(1)
    inside = client.get(spec, client.chain(spec, TOKENS).refs[1], part=part).tobytes()[-64:]
    client.close()
    for file in (each for each in (tmp_path / "nvme").rglob("*") if each.is_file()):
        file.write_bytes(file.read_bytes().replace(inside, bytes(64)))
    client = open_store()
    with KVStoreCache(client, model) as cache:
        with pytest.warns(RuntimeWarning, match="could not read") as told:
            assert text(model, past_key_values=cache) == expected
        assert (len(told), cache.hit_tokens) == (1, 256)
    with KVStoreCache(client, model) as cache:  # what was lost has been computed and stored again
        assert (text(model, past_key_values=cache), cache.hit_tokens) == (expected, 699)


def test_a_damaged_chunk_is_raised_if_asked_for(open_store, model, monkeypatch):
    client = open_store()
    with KVStoreCache(client, model) as cache:
        text(model, past_key_values=cache)

    def view(self, spec, ref, *, part=None):
        raise Corrupt("damaged")

    monkeypatch.setattr(type(client), "view", view)
    with pytest.raises(Corrupt), KVStoreCache(client, model, strict=True) as cache:
        text(model, past_key_values=cache)


def test_a_wrong_token_is_told_and_not_taken_for_a_miss(model, monkeypatch, open_store):
    client = open_store()

    def lookup(*args, **options):
        raise PermissionDenied("the token is wrong")

    monkeypatch.setattr(client.backend, "lookup", lookup)
    with pytest.raises(PermissionDenied), KVStoreCache(client, model) as cache:
        text(model, past_key_values=cache)


def test_a_store_that_takes_no_more_is_asked_again(model, monkeypatch, open_store):
    client = open_store()
    whole = type(client).reserve

    def reserve(*args, **options):
        raise kvstore.Shed("busy")

    with KVStoreCache(client, model) as cache:
        text(model, past_key_values=cache)
        monkeypatch.setattr(type(client), "reserve", reserve)
        assert cache.save().shed == 1
        monkeypatch.setattr(type(client), "reserve", whole)
        result = cache.save()
        assert (result.shed, result.outside, bool(result.stored)) == (0, 0, True)
    assert load(client, spec_of(model), TOKENS, config=model.config).tokens == 699


def test_lossy_copies_are_not_loaded(model, tmp_path):
    """What is computed after a lossy prefix would be saved as if it were exact."""
    config = kvstore.Config(
        dram=kvstore.DramConfig(capacity=64 << 20, extent=64 << 20),
        namespaces=(kvstore.NamespaceConfig("default", codec="int8", lossy=True),),
    )
    with kvstore.open(config) as client:
        spec = spec_of(model)
        with KVStoreCache(client, model) as cache:
            text(model, past_key_values=cache)
        refs = client.chain(spec, TOKENS).refs[:2]
        assert client.contains(spec, refs, fidelity=kvstore.api.Fidelity.LOSSY) == [True, True]
        assert client.contains(spec, refs) == [False, False]
        with KVStoreCache(client, model) as cache:
            text(model, past_key_values=cache)
            assert cache.hit_tokens == 0
