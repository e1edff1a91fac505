"""Watching look-ups: each is told, in its namespace, and while they are watched the shared index tells nobody."""

from __future__ import annotations

import contextlib
from typing import Any

from kvstore.api import Found, Query
from kvstore.config import NamespaceConfig
from tests.store.conftest import SMALL, Box, prompt, shared_index
from tests.store.test_shared_index import session_of

TWO = (NamespaceConfig("default"), NamespaceConfig("other"))


def closing(watch: Any) -> contextlib.closing[Any]:
    return contextlib.closing(watch)


def test_every_look_up_is_told_and_nothing_else(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 3)
    with closing(client.watch(lookups=True)) as told, closing(client.watch()) as others:
        client.lookup(SMALL, chain.refs[:2])
        box.fill(client, SMALL, chain.refs)
        client.lookup(SMALL, chain, lease_s=1.0).release()
        seen = [told.next_within(5.0), told.next_within(5.0)]
        assert [(each.kind, each.spec, each.key, each.tier) for each in seen] == [("lookup", SMALL.digest, b"", "")] * 2
        assert [each.refs for each in seen] == [chain.packed[: 2 * 40], chain.packed]
        assert told.next_within(0.0) is None
        assert others.next_within(5.0).kind == "stored"


def test_other_namespaces_look_up_unseen(box: Box) -> None:
    client = box.open(namespaces=TWO)
    other, chain = box.store(client).session("other"), prompt(SMALL, 2)
    with closing(client.watch(lookups=True)) as told:
        other.lookup(Query(SMALL, chain.packed))
        assert told.next_within(0.0) is None
        with shared_index(other) as shared:
            assert shared.lookup(Query(SMALL, chain.packed)) is not None


def test_the_shared_index_is_withheld_and_comes_back(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 2)
    session, query = session_of(client), Query(SMALL, chain.packed)
    nothing = Found(0, range(0), [False] * 2)
    with shared_index(session) as before:
        assert before.lookup(query) == nothing
        with closing(session.watch(lookups=True)), shared_index(session) as during:
            assert before.lookup(query) is None
            assert during.lookup(query) is None
            with closing(session.watch(lookups=True)):
                pass
            assert before.lookup(query) is None  # there is one watcher left
        assert before.lookup(query) == nothing


def test_a_table_that_is_made_while_look_ups_are_watched_says_nothing(box: Box) -> None:
    session, chain = box.store(box.open(namespaces=TWO)).session("other"), prompt(SMALL, 2)
    query = Query(SMALL, chain.packed)
    watch: Any = session.watch(lookups=True)
    with shared_index(session) as shared:
        assert shared.lookup(query) is None
        watch.close()
        assert shared.lookup(query) is not None


def test_the_end_of_the_store_ends_the_watch(box: Box) -> None:
    client = box.open()
    watch: Any = client.watch(lookups=True)
    client.close()
    assert list(watch) == []
