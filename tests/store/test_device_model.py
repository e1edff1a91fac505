"""The state machine of the store with device memory beside DRAM, on its CPU twin: what is leased there stays."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, consumes, rule

from kvstore.config import HbmConfig
from kvstore.device_views import DeviceViews
from kvstore.keys import ChunkRef
from kvstore.spec import KVSpec, Part
from tests.store.conftest import MiB
from tests.store.test_model import CHAINS, SETTINGS, StoreMachine, Where

pytest.importorskip("torch")

Held = list[tuple[Where, Any]]


class DeviceMachine(StoreMachine):
    """Readers on the device come and go; there is room for some of what they ask for."""

    on_device = Bundle("on_device")
    hbm = HbmConfig(MiB // 8, ("cpu",), MiB // 8)

    @rule(target=on_device, chain=st.sampled_from(CHAINS), which=st.integers(0, 3))
    def device_views(self, chain: tuple[KVSpec, Any], which: int) -> tuple[DeviceViews, Held]:
        """A prompt, as far as it lies on the device, held for a while."""
        spec, parts = chain[0], tuple(chain[0].parts())
        part, refs = parts[which % len(parts)], chain[1].refs
        views = self.client.device_views(spec, refs, part=part, device="cpu")
        found = [((spec, ref, part), tensor) for ref, tensor in zip(refs, views.tensors, strict=True)]
        for (_, ref, _), tensor in found:
            assert tensor is None or self.may_be_there(ref, part)
        return views, [each for each in found if each[1] is not None]

    @rule(chain=st.sampled_from(CHAINS))
    def warm(self, chain: tuple[KVSpec, Any]) -> None:
        """A prompt is used on the device again and again, and comes there as far as there is room."""
        spec, refs = chain[0], chain[1].refs
        self.put_prompt(chain, "stored")
        for part in (*spec.parts(), *spec.parts()):
            self.client.device_views(spec, refs, part=part, device="cpu").close()
            while self.promoter().waiting:
                time.sleep(0.001)

    def promoter(self) -> Any:
        return self.client.backend._store.devices.promoter  # type: ignore[attr-defined]

    def may_be_there(self, ref: ChunkRef, part: Part) -> bool:
        """Whether a part was put and not deleted, or somebody may hold it still."""
        return (ref.key, part) in self.maybe or self.may_be_back(ref)

    @rule(held=on_device)
    def read_on_device(self, held: tuple[DeviceViews, Held]) -> None:
        """What is leased is what was stored, whatever happened since."""
        views, found = held
        if not views.over:
            for where, tensor in found:
                assert tensor.numpy().tobytes() == self.content(*where).tobytes()

    @rule(held=consumes(on_device))
    def close_device_views(self, held: tuple[DeviceViews, Held]) -> None:
        """End the lease, of a store that may have been closed meanwhile."""
        held[0].close()


TestDevices = DeviceMachine.TestCase
TestDevices.settings = SETTINGS
