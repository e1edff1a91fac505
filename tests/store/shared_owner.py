"""A process that stores one prompt and shares its index until it is killed; says the descriptor and its length."""

import signal

import kvstore
from kvstore.config import Config, DramConfig
from kvstore.session import Session
from tests.store.conftest import SMALL, MiB, content, prompt

client = kvstore.open(Config(dram=DramConfig(2 * MiB, 2 * MiB)))
for ref in prompt(SMALL, 4).refs:
    client.put(SMALL, ref, content(SMALL, ref, SMALL.part()))
assert isinstance(client.backend, Session)
print(*client.backend.open_shared_index(), flush=True)
while True:
    signal.pause()
