"""Look-ups that say what is worth loading: where the cut is, why, under what lease, and what was learnt since."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

import kvstore
from kvstore import forecasts, learnt, probing, reader
from kvstore.appraisal import appraise
from kvstore.config import ServerConfig
from kvstore.cost import Prefill, Prompt
from kvstore.errors import InvalidArgument, SpecMismatch
from kvstore.server import serve
from kvstore.spec import KVSpec
from kvstore.tiers.base import Speed
from kvstore.v1 import kvstore_pb2 as pb
from kvstore.wire_plans import plan_from_message, prompt_from_message
from tests.store.conftest import LARGE, SHARDED, SLIDING, SMALL, Box, MiB, content, prompt

WAYS = ("embedded", "grpc", "bulk", "local")
# 8 KiB for 16 tokens of SMALL: 512 bytes a token.
TOKEN_BYTES = SMALL.part_bytes(SMALL.part(), 16) // 16


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def bold(monkeypatch: pytest.MonkeyPatch) -> None:
    """No margin to begin with, so that cuts fall where the figures say, and nothing is read beside."""
    monkeypatch.setattr(learnt, "FIRST_SPREAD", 0.0)
    for module in (forecasts, probing):
        monkeypatch.setattr(module, "PROBE_S", math.inf)
        monkeypatch.setattr(module, "FIRST_PROBE_S", math.inf)


@pytest.fixture
def embedded(box: Box) -> kvstore.Client:
    return box.open(nvme=16 * MiB)


@pytest.fixture
def client(box: Box, embedded: kvstore.Client, way: str) -> Iterator[kvstore.Client]:
    """The same store, the way that is asked for."""
    if way == "embedded":
        yield embedded
        return
    server = serve(box.store(embedded), kvstore.Config(server=ServerConfig(listen="127.0.0.1:0")))
    address = {"grpc": server.address, "bulk": server.bulk, "local": server.local}[way]
    with kvstore.connect(f"{way}:{address}" if way == "local" else f"{way}://{address}") as connected:
        yield connected
    server.stop(0.2)


def growing(tokens: int, per_token_s: float, at: int) -> Prompt:
    """A prefill by which a token at position `at` takes `per_token_s`, and others as their position says."""
    return Prompt(tokens, Prefill(1e-6, 1.0, at / per_token_s))


def leased(client: kvstore.Client) -> list[int]:
    """Positions of chunks under a lease."""
    return sorted(each.position for each in client.list() if each.leases)


def test_nothing_is_loaded_that_is_computed_more_quickly(box, embedded, client):
    """A disk of 1,000 tokens a second against an engine of 10,000."""
    chain = prompt(SMALL, 8)
    box.only_on_disk(embedded, SMALL, chain.refs)
    box.probe.told_speed = Speed(1000 * TOKEN_BYTES, 1e9, 0.0)
    with client.lookup(SMALL, chain, lease_s=30, prompt=Prompt(128, Prefill.of_rate(10_000.0))) as hit:
        assert (hit.tokens, hit.refs, hit.left_out, hit.cold) == (0, (), 128, ())
        assert hit.plan is not None
        assert (hit.plan.tokens, hit.plan.reason) == (0, 1)
        assert hit.plan.why.startswith("computing all of it is quicker")
        assert leased(embedded) == []
    counters = embedded.stats()["counters"]
    assert (counters["lookups_weighed"], counters["lookups_cut"], counters["left_out_slower"]) == (1, 1, 128)


def test_the_run_is_cut_where_its_end_is_slower_than_computing(box, embedded, client):
    """Four chunks in DRAM, four on a disk that is slower than the engine: the leading run alone is loaded and held."""
    chain = prompt(SMALL, 8)
    box.only_on_disk(embedded, SMALL, chain.refs[4:])
    box.fill(embedded, SMALL, chain.refs[:4])
    box.probe.told_speed = Speed(1000 * TOKEN_BYTES, 1e9, 0.0)
    with client.lookup(SMALL, chain, lease_s=30, prompt=Prompt(130, Prefill.of_rate(10_000.0))) as hit:
        assert (hit.tokens, hit.refs, hit.left_out, hit.cold) == (64, chain.refs[:4], 64, ())
        assert hit.plan is not None
        assert (hit.plan.start, hit.plan.end, hit.plan.reason) == (0, 64, 3)
        assert hit.plan.seconds < hit.plan.recompute_s == pytest.approx(0.013)
        assert leased(embedded) == [0, 16, 32, 48]
        box.check(client, SMALL, hit.refs)
        box.check(client, SMALL, chain.refs[4:])  # what was left out can still be read, as what nobody holds
    assert embedded.stats()["counters"]["left_out_cut"] == 64


def test_a_quick_disk_is_loaded_from_as_far_as_it_goes(box, embedded, client):
    chain = prompt(SMALL, 8)
    box.only_on_disk(embedded, SMALL, chain.refs)
    box.probe.told_speed = Speed(1e9, 1e9, 1e-4)
    with client.lookup(SMALL, chain, lease_s=30, prompt=Prompt(128, Prefill.of_rate(1000.0))) as hit:
        assert (hit.tokens, hit.refs, hit.left_out, hit.cold) == (128, chain.refs, 0, chain.refs)
        assert hit.plan is not None
        assert hit.plan.reason == 2


def test_one_step_of_the_scheduler_counts(box, embedded, client):
    """16 tokens are computed in 1 ms: not worth a step of 20."""
    chain = prompt(SMALL, 1)
    box.fill(embedded, SMALL, chain.refs)
    quick, slow = Prefill.of_rate(16_000.0), Prefill.of_rate(16_000.0, step_s=0.02)
    assert client.lookup(SMALL, chain, lease_s=30, prompt=Prompt(16, quick)).tokens == 16
    assert client.lookup(SMALL, chain, lease_s=30, prompt=Prompt(16, slow)).tokens == 0
    assert client.lookup(SMALL, chain, prompt=Prompt(16, slow)).tokens == 0  # without a lease as well


def test_decoding_counts(box, monkeypatch):
    """What is read quickly and decoded slowly, by the speed that the codec was measured to have here."""
    client, chain = box.open(nvme=64 * MiB, nvme_codec="lossless"), prompt(LARGE, 4)
    for ref in chain.refs:
        client.put(LARGE, ref, np.zeros(LARGE.part_shape(LARGE.part(), 64), np.uint16), ack="persisted")
    box.only_on_disk(client, LARGE, ())
    box.probe.told_speed = Speed(1e9, 1e9, 0.0)
    core, asked = box.store(client)._core, Prompt(256, Prefill.of_rate(25_600.0))  # 10 ms
    rows = core.index.chunks(0, 100)[0].tolist()
    stored = sum(core.index.placement(each).stored for row in rows for each in core.placements(row))
    for decode_s, tokens in ((0.005, 256), (0.02, 0)):
        monkeypatch.setattr(core.coder, "decoding_bytes_per_s", lambda form, seconds=decode_s: stored / seconds)
        hit = client.lookup(LARGE, chain, prompt=asked)
        assert hit.tokens == tokens
        assert hit.plan is not None
        if tokens:
            assert hit.plan.seconds == pytest.approx(decode_s, rel=0.15)


def test_an_engine_that_can_computes_from_the_front_while_the_back_is_loaded(box, embedded, client):
    chain = prompt(SMALL, 8)
    box.only_on_disk(embedded, SMALL, chain.refs)
    box.probe.told_speed = Speed(1000 * TOKEN_BYTES, 1e9, 0.0)
    asked = Prompt(128, Prefill.of_rate(1000.0), overlap=True)
    with client.lookup(SMALL, chain, lease_s=30, prompt=asked) as hit:
        assert hit.plan is not None
        assert (hit.plan.start, hit.plan.end, hit.plan.reason) == (64, 128, 4)
        assert (hit.tokens, hit.refs, hit.left_out) == (128, chain.refs[4:], 0)
        assert leased(embedded) == [64, 80, 96, 112]
    assert embedded.stats()["counters"]["left_out_met"] == 64


def test_without_a_prompt_nothing_changes(box, embedded, client):
    chain = prompt(SMALL, 4)
    box.only_on_disk(embedded, SMALL, chain.refs)
    box.probe.told_speed = Speed(1.0, 1.0, 100.0)
    with client.lookup(SMALL, chain, lease_s=30) as hit:
        assert (hit.tokens, hit.plan, hit.left_out) == (64, None, 0)
    assert "lookups_weighed" not in embedded.stats()["counters"]


def test_the_store_hears_how_fast_engines_are_though_nothing_has_to_be_asked(box, embedded, client, way):
    """On the server's host hits in DRAM are found and weighed without it, but for one look-up a minute."""
    chain = prompt(SMALL, 2)
    box.fill(embedded, SMALL, chain.refs)
    for _ in range(5):
        with client.lookup(SMALL, chain, lease_s=30, prompt=Prompt(64, Prefill.of_rate(1000.0))) as hit:
            assert hit.tokens == 32
    told = embedded.stats()
    assert told["gauges"]["prefills"] == 1
    assert told["counters"]["lookups_weighed"] == (1 if way == "local" else 5)


@pytest.mark.parametrize("spec", [SHARDED, SLIDING], ids=lambda spec: spec.model)
def test_several_parts_and_windows(box, spec):
    """The cut of a sliding window falls where all that the window needs is there."""
    client, chain = box.open(nvme=64 * MiB), prompt(spec, 8)
    box.only_on_disk(client, spec, chain.refs[4:])
    box.fill(client, spec, chain.refs[:4])
    box.probe.told_speed = Speed(1.0, 1e9, 0.0)
    with client.lookup(spec, chain, lease_s=30, prompt=Prompt(len(chain.ids), Prefill.of_rate(100.0))) as hit:
        assert (hit.tokens, hit.refs) == (4 * spec.chunk_tokens, chain.refs[:4])
        assert hit.left_out == 4 * spec.chunk_tokens
        box.check(client, spec, hit.refs)


def test_a_window_that_is_not_whole_at_the_cut_shortens_it(box):
    """Chunks 5 to 7 are too slow, and at the ends of 3 and 4 the window lacks what it needs of chunk 3."""
    client, chain = box.open(nvme=64 * MiB), prompt(SLIDING, 8)
    box.only_on_disk(client, SLIDING, chain.refs[5:])
    for ref in chain.refs[:5]:
        for part in SLIDING.parts():
            if part.group == 0 or ref.position != 3 * SLIDING.chunk_tokens:
                box.put(client, SLIDING, ref, part)
    assert client.lookup(SLIDING, chain).tokens == 128
    box.probe.told_speed = Speed(1.0, 1e9, 0.0)
    with client.lookup(SLIDING, chain, lease_s=30, prompt=Prompt(128, Prefill.of_rate(100.0))) as hit:
        assert (hit.tokens, hit.refs, hit.left_out) == (48, chain.refs[:3], 80)
        assert hit.plan is not None
        assert (hit.plan.end, hit.plan.reason) == (48, 3)


def test_a_prompt_that_begins_later_is_planned_from_there(box):
    client, chain = box.open(), prompt(SMALL, 8)
    box.fill(client, SMALL, chain.refs)
    hit = client.lookup(SMALL, chain.refs[3:], prompt=Prompt(128, Prefill.of_rate(1000.0)))
    assert hit.plan is not None
    assert (hit.plan.start, hit.plan.end) == (48, 128)
    assert hit.plan.recompute_s == pytest.approx(0.08)
    nothing = client.lookup(SMALL, chain.refs[3:], prompt=Prompt(128, Prefill.of_rate(1e12)))
    assert (nothing.tokens, nothing.left_out) == (48, 80)


def test_what_is_waited_for_stands_in_front(box):
    """A disk that is busy with another's loads is too slow for the next one."""
    client, chains = box.open(nvme=16 * MiB), [prompt(SMALL, 4, seed=seed) for seed in range(2)]
    for chain in chains:
        box.only_on_disk(client, SMALL, chain.refs)
    box.probe.told_speed = Speed(1e6, 1e9, 0.0)
    asked = Prompt(64, Prefill.of_rate(1000.0))  # 64 ms, of which loading takes 33
    entered, go_on = threading.Event(), threading.Event()

    def before(_: int) -> None:
        entered.set()
        go_on.wait(10)

    assert client.lookup(SMALL, chains[1], prompt=asked).tokens == 64
    box.probe.before_read = before
    outs = [np.empty(SMALL.part_shape(SMALL.part(), 16), np.uint16) for _ in range(4)]
    wants = [client.want(SMALL, ref, out) for ref, out in zip(chains[0].refs, outs, strict=True)]
    reading = threading.Thread(target=client.get_many, args=(SMALL, wants))
    reading.start()
    try:
        assert entered.wait(10)
        waiting = client.stats()["tiers"]["nvme"]["waiting_bytes"]
        assert waiting == 4 * SMALL.part_bytes(SMALL.part(), 16)
        hit = client.lookup(SMALL, chains[1], prompt=asked)
        assert (hit.tokens, hit.left_out) == (0, 64)
    finally:
        go_on.set()
        reading.join()
    assert client.stats()["tiers"]["nvme"]["waiting_bytes"] == 0
    assert client.lookup(SMALL, chains[1], prompt=asked).tokens == 64
    box.settled(client)


def test_a_tier_is_believed_to_be_as_slow_as_its_loads_were(box):
    """The disk says a gigabyte a second, and takes 50 ms for every read."""
    client, chain = box.open(nvme=64 * MiB), prompt(SMALL, 4)
    asked = Prompt(64, Prefill.of_rate(3200.0))  # 20 ms
    box.probe.told_speed, box.probe.read_delay_s = Speed(1e9, 1e9, 1e-3), 0.05
    cut = 0
    for _ in range(12):
        box.only_on_disk(client, SMALL, chain.refs)
        with client.lookup(SMALL, chain, lease_s=30, prompt=asked) as hit:
            cut += not hit.tokens
            box.check(client, SMALL, hit.refs)
    told = client.stats()
    assert cut > 0
    assert told["tiers"]["nvme"]["load_factor"] > 10
    assert told["counters"]["loads_judged"] == told["counters"]["loads_slower_than_recomputing"] == 12 - cut
    box.settled(client)


def test_a_load_that_was_worth_it_is_counted_as_such(box):
    client, chain = box.open(nvme=64 * MiB), prompt(SMALL, 4)
    box.only_on_disk(client, SMALL, chain.refs)
    with client.lookup(SMALL, chain, lease_s=30, prompt=Prompt(64, Prefill.of_rate(0.1))) as hit:
        box.check(client, SMALL, hit.refs)
    counters = client.stats()["counters"]
    assert counters["loads_judged"] == 1
    assert "loads_slower_than_recomputing" not in counters
    # One that is given up is not judged.
    other = prompt(SMALL, 4, seed=1)
    box.only_on_disk(client, SMALL, other.refs)
    client.lookup(SMALL, other, lease_s=30, prompt=Prompt(64, Prefill.of_rate(0.1))).release()
    box.check(client, SMALL, other.refs)
    assert client.stats()["counters"]["loads_judged"] == 1


def test_how_fast_engines_are_decides_what_is_kept(box):
    """An engine that says how quickly it computes does what `prefill_tokens_per_s` of the configuration does."""
    client, chain = box.open(dram=2 * MiB, extent=2 * MiB, nvme=64 * MiB), prompt(LARGE, 20)
    client.lookup(LARGE, chain, prompt=Prompt(1280, Prefill.of_rate(1e12)))
    assert client.stats()["gauges"]["prefills"] == 1
    box.fill(client, LARGE, chain.refs)
    assert client.stats()["counters"]["dropped_cheaper_to_recompute"] > 0
    assert box.probe.writes == 0
    another = box.another(client)
    another.lookup(LARGE, chain, prompt=Prompt(1280, Prefill.of_rate(1.0)))
    assert client.stats()["gauges"]["prefills"] == 2
    another.close()
    assert client.stats()["gauges"]["prefills"] == 1


@pytest.mark.parametrize(
    "figures",
    [{"flops_per_s": 0.0}, {"flops_per_s": float("nan")}, {"flops_per_token": float("inf")}, {"step_s": -1.0},
     {"tokens": 0}, {"link_bytes_per_s": float("nan")}, {"link_bytes_per_s": -1.0}],
)  # fmt: skip
def test_figures_that_no_engine_has_are_refused(figures):
    good = {"tokens": 1, "flops_per_token": 1.0, "flops_per_s": 1.0}
    prompt_from_message(pb.Prompt(**good))
    with pytest.raises(InvalidArgument):
        prompt_from_message(pb.Prompt(**{**good, **figures}))


@pytest.mark.parametrize("told", [{"start": 2, "end": 1}, {"reason": 5}])
def test_plans_that_cannot_be_are_refused(told):
    with pytest.raises(SpecMismatch):
        plan_from_message(pb.Plan(**told))


def test_a_prefill_in_position(box):
    """The tail of a long prompt is worth more than its head."""
    client = box.open(dram=64 * MiB, extent=64 * MiB, nvme=64 * MiB)
    spec = KVSpec.dense("small", layers=2, kv_heads=2, head_dim=32, chunk_tokens=16)
    chain = prompt(spec, 64)
    box.only_on_disk(client, spec, chain.refs)
    box.probe.told_speed = Speed(1000 * TOKEN_BYTES, 1e9, 0.0)
    # Loading takes 1 ms a token everywhere, computing 1 ms at token 512: in sum the run is as slow either way.
    slower, quicker = growing(1024, 0.9e-3, 512), growing(1024, 1.1e-3, 512)
    assert client.lookup(spec, chain, prompt=slower).tokens == 0
    assert client.lookup(spec, chain, prompt=quicker).tokens == 1024


def test_what_dram_holds_costs_what_its_own_form_does(box):
    """Not what the form of the last tier does, which there need not be."""
    alone = box.open()
    box.fill(alone, SMALL, prompt(SMALL, 2).refs)
    alone.lookup(SMALL, prompt(SMALL, 2), prompt=Prompt(32, Prefill.of_rate(1e4)))
    appraise(box.store(alone)._core)
    alone.close()
    client, chain = box.open(nvme=64 * MiB, nvme_codec="lossless"), prompt(LARGE, 2)
    for ref in chain.refs:
        client.put(LARGE, ref, np.zeros(LARGE.part_shape(LARGE.part(), 64), np.uint16), ack="persisted")
    core = box.store(client)._core
    (scope,) = (each for each in core.catalog.scopes if each.spec == LARGE)
    assert core.coder.cost_in(scope, 0) == (1.0, 0.0)
    share, decode_s = core.coder.cost_in(scope, 1)
    assert share < 0.9
    assert decode_s > 0


def test_policies_are_told_how_fast_engines_are(box, monkeypatch):
    client, chain = box.open(nvme=16 * MiB, prefill_tokens_per_s=10.0), prompt(SMALL, 2)
    core, told = box.store(client)._core, list[dict[str, float]]()

    class Listening:
        def __len__(self) -> int:
            return 0

        def set_capacity(self, nbytes: int) -> None:
            del nbytes

        def set_costs(self, **costs: float) -> None:
            told.append(costs)

    def figures() -> set[tuple[float, float, float]]:
        """What all of them are told now; the mover may do so at the same time."""
        told.clear()
        with monkeypatch.context() as patch:
            patch.setattr(core.usage, "in_tier", lambda tier: {core.catalog.namespace("default").digest: Listening()})
            appraise(core)
        return {(each["flops_per_token"], each["flops_per_token2"], each["prefill_flops_per_s"]) for each in told}

    assert figures() == {(1.0, 0.0, 10.0)}  # as it is configured
    client.lookup(SMALL, chain, prompt=Prompt(32, Prefill(2.0, 1.0, 1e4)))
    client.lookup(LARGE, prompt(LARGE, 1), prompt=Prompt(64, Prefill(2.0, 1.0, 1e6)))
    assert figures() == {(2.0, 1.0, 1e6)}  # the fastest engine of the namespace


def test_what_was_just_planned_stands_in_front(box):
    """Two prompts that come at once: neither has begun to load when the other is weighed."""
    client, chains = box.open(nvme=16 * MiB), [prompt(SMALL, 4, seed=seed) for seed in range(2)]
    for chain in chains:
        box.only_on_disk(client, SMALL, chain.refs)
    box.probe.told_speed = Speed(1e6, 1e9, 0.0)
    asked = Prompt(64, Prefill.of_rate(1000.0))  # 64 ms, of which loading takes 33
    with client.lookup(SMALL, chains[0], lease_s=30, prompt=asked) as first:
        assert first.tokens == 64
        assert client.lookup(SMALL, chains[1], lease_s=30, prompt=asked).tokens == 0
    assert client.lookup(SMALL, chains[1], lease_s=30, prompt=asked).tokens == 64


def test_a_disk_that_was_slow_is_tried_again_beside(box, monkeypatch):
    """Look-ups leave out what it has, and so would not hear that it is fast again."""
    client, chain = box.open(nvme=64 * MiB), prompt(SMALL, 4)
    asked = Prompt(64, Prefill.of_rate(3200.0))  # 20 ms
    box.probe.told_speed, box.probe.read_delay_s = Speed(1e9, 1e9, 1e-3), 0.05
    forecasts_of = box.store(client)._core.forecasts
    while forecasts_of.factor(1) < 10:
        box.only_on_disk(client, SMALL, chain.refs)
        with client.lookup(SMALL, chain, lease_s=30, prompt=asked) as hit:
            box.check(client, SMALL, hit.refs)
    box.probe.read_delay_s = 0.0
    box.only_on_disk(client, SMALL, chain.refs)
    assert client.lookup(SMALL, chain, lease_s=30, prompt=asked).left_out == 64  # and nothing is due
    assert "probes" not in client.stats()["counters"]
    monkeypatch.setattr(forecasts, "PROBE_S", 0.0)
    forecasts_of._probe_at[1] = 0.0
    assert client.lookup(SMALL, chain, prompt=asked).tokens == 0  # who takes no lease is not going to load
    assert "probes" not in client.stats()["counters"]
    with client.lookup(SMALL, chain, lease_s=30, prompt=asked) as hit:
        assert hit.tokens == 0
    eventually(lambda: client.stats()["counters"].get("probes") == 1)
    assert client.lookup(SMALL, chain, lease_s=30).cold == ()  # it is in DRAM now
    box.settled(client)


def test_a_client_that_reads_nothing_reads_a_little_beside(box, embedded, client, monkeypatch):
    """Of what its look-ups left out: to see whether it comes faster now."""
    chain = prompt(SMALL, 4)
    box.fill(embedded, SMALL, chain.refs)
    told: list[tuple[int, ...]] = []
    get = client.backend.get

    def read(spec, wants, **more):
        outcomes = get(spec, wants, **more)
        told.append(tuple(want.ref.position for want in wants))
        assert list(outcomes) == [None] * len(wants)
        for want in wants:
            assert bytes(want.out) == content(spec, want.ref, want.part).tobytes()
        return outcomes

    monkeypatch.setattr(client.backend, "get", read)
    quick = Prompt(64, Prefill.of_rate(1e12))
    assert client.lookup(SMALL, chain, lease_s=30, prompt=quick).left_out == 64
    assert told == []
    monkeypatch.setattr(probing, "PROBE_S", 0.0)
    client._probing._due = 0.0
    monkeypatch.setattr(probing, "PROBE_BYTES", 2 * SMALL.part_bytes(SMALL.part(), 16))
    client.lookup(SMALL, chain, lease_s=30, prompt=quick)
    eventually(lambda: told == [(48, 32)])
    eventually(lambda: not client._probing._running)
    client._probing._due = 0.0
    client.lookup(SMALL, chain, lease_s=30, prompt=Prompt(64, Prefill.of_rate(1e12), link_bytes_per_s=1.0))
    assert told == [(48, 32)]  # who says how fast the link is does not ask for that


def test_a_closed_client_probes_no_more_and_leaves_no_thread(box, monkeypatch):
    client = box.open(nvme=16 * MiB)
    chain = prompt(SMALL, 4)
    box.fill(client, SMALL, chain.refs)
    monkeypatch.setattr(probing, "PROBE_S", 0.0)
    client._probing._due = 0.0
    begun, backend = threading.Event(), client.backend
    read, closed = backend.get, threading.Event()

    def slowly(*args, **options):
        begun.set()
        assert closed.wait(20)
        return read(*args, **options)

    close = backend.close
    monkeypatch.setattr(backend, "get", slowly)
    monkeypatch.setattr(backend, "close", lambda: (close(), closed.set()))
    client.lookup(SMALL, chain, lease_s=30, prompt=Prompt(64, Prefill.of_rate(1e12)))
    assert begun.wait(20)
    client.close()
    assert "kvstore-probe" not in [thread.name for thread in threading.enumerate()]


def test_copies_out_of_dram_are_believed_to_be_as_slow_as_they_were(box, monkeypatch):
    """Eight gigabytes a second, until something has been copied."""
    client = box.open(dram=64 * MiB, extent=64 * MiB)
    chain = prompt(LARGE, 8)
    box.fill(client, LARGE, chain.refs)
    token_bytes = LARGE.part_bytes(LARGE.part(), 64) // 64
    engine = Prompt(512, Prefill.of_rate(4e9 / token_bytes))
    assert client.lookup(LARGE, chain, lease_s=30, prompt=engine).tokens == 512
    outs = [np.empty(LARGE.part_shape(LARGE.part(), 64), np.uint16) for _ in chain.refs]
    copied = reader._native.copy
    monkeypatch.setattr(reader._native, "copy", lambda out, data: time.sleep(0.005) or copied(out, data))
    for _ in range(3):
        client.get_many(LARGE, [client.want(LARGE, ref, out) for ref, out in zip(chain.refs, outs, strict=True)])
    assert client.stats()["tiers"]["dram"]["load_factor"] > 10
    assert client.lookup(LARGE, chain, lease_s=30, prompt=engine).tokens == 0


def eventually(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in 10 s"
        time.sleep(0.005)
