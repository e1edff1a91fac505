"""`KVStoreCache`: pass it for `past_key_values`; it loads the longest stored prefix and saves what is new."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import Any, Self

import kvstore
from kvstore.api import MAX_AWAITED_S, Ack
from kvstore.client import Client
from kvstore.connectors.transformers._forward import one_sequence
from kvstore.connectors.transformers._load import Loaded, check_config, load
from kvstore.connectors.transformers._save import SaveResult, save
from kvstore.connectors.transformers._spec import check_adapters, check_single, check_weights, spec_of
from kvstore.connectors.transformers._watched import WatchedCache
from kvstore.cost import Prefill
from kvstore.errors import DeadlineExceeded, InvalidArgument, KVStoreError, Shed, StorageError, Unavailable
from kvstore.keys import Extras
from kvstore.spec import KVSpec

# The store's trouble, not the caller's: the text does not depend on it.
FAILING = (StorageError, Unavailable, DeadlineExceeded, Shed)


class KVStoreCache(WatchedCache):
    """The KV of one sequence, over a store.

        with KVStoreCache(client, model) as cache:
            output = model.generate(input_ids, past_key_values=cache)

    The first forward loads the longest stored prefix, and computes the rest, one token at least; `save`, and the end
    of the `with` block, store what is new, generated tokens included. `client` is a `Client`, or the address of a
    server; that connection then ends with the cache. `spec` is by default `spec_of(model)`; another one must name this
    model's weights, or none. `extras` keep apart what ids alone do not. `hit_tokens` is what the last look-up gave.
    With `prefill`, how fast the model computes here, no more of a prefix is loaded than is quicker to load.

    A store that fails costs the hit and one warning; with `strict` it raises. Misuse raises `InvalidArgument`: more
    than one sequence, padding, anything besides token ids that KV depends on, another model's forward.
    """

    def __init__(
        self,
        client: Client | str,
        model: Any,
        *,
        spec: KVSpec | None = None,
        extras: Extras | None = None,
        ack: Ack | str = Ack.STORED,
        strict: bool = False,
        prefill: Prefill | None = None,
    ) -> None:
        super().__init__(model)
        self.spec = spec or spec_of(model)
        check_single(self.spec)
        check_config(self.spec, model.config)
        if spec is not None:
            self._check_model()
        self._extras, self._ack, self._strict, self._prefill = extras, Ack(ack), strict, prefill
        self._saved = 0
        self._warned = False
        self.hit_tokens = 0
        self._client, self._owned = (kvstore.connect(client), True) if isinstance(client, str) else (client, False)
        if not isinstance(self._client, Client):
            raise InvalidArgument(
                f"a KVStoreCache is over a client (kvstore.connect or kvstore.open) or an address, not {client!r}"
            )

    def load(self, input_ids: Any) -> int:
        """Hold the longest prefix of `input_ids` (`[1, tokens]`) to be had, at most all but its last token.

        The answer is its length, where a forward of the caller's own has to start:
        `model(input_ids[:, cache.load(input_ids) :], past_key_values=cache)`. What the cache holds already counts;
        where it went another way it is rolled back, and what is not saved of that is dropped. `generate` needs this
        only with `prefill_chunk_size`, which shows a cache no more than a piece of the prompt at a time, and for a
        prompt that does not go on where the last turn ended.
        """
        ids = one_sequence(input_ids)
        common = _common(self._ids, ids[:-1])
        if not common or common < len(self._ids):
            kept = common if self.reaches(common) else 0
            found = self._load(ids, len(ids) - 1)
            if found is not None and found.tokens > kept:
                self._hold(found, ids)
            elif kept:
                self.crop(kept - len(self._ids))
            else:
                self.reset()
        return len(self._ids)

    def save(self) -> SaveResult:
        """Store what is new since the last time, and drop what sliding windows do not need any more.

        Each prompt's tail is stored beside the whole's, so that the same prompt is found again.
        """
        result = SaveResult()
        if len(self._ids) == self._saved:
            return result
        self.check_whole()
        self._check_model()
        ends = [end for end in (*self._prompt_ends, len(self._ids)) if end > self._saved]
        try:
            for end in ends:
                result += self._save(end)
                if result.shed:
                    return result
                self._saved = max(self._saved, end - end % self.spec.chunk_tokens)
        except FAILING as error:
            self._fail("could not save", error)
            return result
        self._prompt_ends, self._saved = [], len(self._ids)
        for window in self.windows:
            window.trim()
        return result

    def ended(self) -> None:
        """Save what is new, and say that nobody will go on with it: under the policy `value` it is the first to go."""
        self._hint(0.0)

    def awaited(self, seconds: float) -> None:
        """Save what is new, and say that it will be gone on with in about so long: until then it is the last to go.

        `InvalidArgument` for a time that is not above 0 and up to a day.
        """
        if not 0 < seconds <= MAX_AWAITED_S:
            raise InvalidArgument(f"a cache is awaited for more than 0 and up to {MAX_AWAITED_S} s, not {seconds}")
        self._hint(seconds)

    def _hint(self, seconds: float) -> None:
        self.save()
        if not self._ids:
            return
        chain = self._client.chain(self.spec, self._ids, self._extras)
        try:
            if seconds:
                self._client.awaited(self.spec, chain, seconds)
            else:
                self._client.ended(self.spec, chain)
        except FAILING as error:
            self._fail("could not be told what will become of a prompt", error)

    def close(self) -> None:
        """Stop watching the model, and end the connection where it is the cache's own. Saves nothing."""
        self._hook.remove()
        if self._owned:
            self._client.close()

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` tokens."""
        super().crop(tokens_to_remove)
        self._saved = min(self._saved, len(self._ids))

    def reset(self) -> None:
        """Forget everything. The store does not."""
        super().reset()
        self._saved = 0

    def find(self, ids: list[int], most: int) -> None:
        """Load the longest stored prefix of `ids`, of `most` tokens at most."""
        found = self._load(ids, most)
        if found is not None and found.tokens:
            self._hold(found, ids)

    def __deepcopy__(self, memo: dict[int, Any]) -> KVStoreCache:
        """Another cache over the same store and model that goes on from here."""
        self.check_whole()
        other = KVStoreCache(
            self._client, self.model, spec=self.spec, extras=self._extras, ack=self._ack, strict=self._strict,
            prefill=self._prefill,
        )  # fmt: skip
        memo[id(self)] = other
        if self._ids:
            other.take_over(self, self._ids)
        other._saved, other._prompt_ends = self._saved, list(self._prompt_ends)
        return other

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.save()
        finally:
            self.close()

    def _load(self, ids: list[int], most: int) -> Loaded | None:
        """The longest stored prefix of `ids`; None if the store fails."""
        self.hit_tokens = 0
        try:
            found = load(
                self._client,
                self.spec,
                ids,
                config=self.model.config,
                device=self.device,
                max_tokens=most,
                extras=self._extras,
                prefill=self._prefill,
            )
        except FAILING as error:
            self._fail("could not look up a prompt", error)
            return None
        if found.failures:
            self._fail("could not read all that a look-up found", found.failures[0])
        self.hit_tokens = found.tokens
        return found

    def _check_model(self) -> None:
        check_adapters(self.model)
        check_weights(self.spec, self.model)

    def _hold(self, found: Loaded, ids: list[int]) -> None:
        self.take_over(found.cache, ids[: found.tokens])
        self._saved = found.tokens

    def _save(self, end: int) -> SaveResult:
        """Store what is new of the first `end` tokens."""
        return save(
            self._client, self.spec, self, self._ids[:end], ack=self._ack, start=self._saved, extras=self._extras
        )

    def _fail(self, what: str, error: KVStoreError) -> None:
        """Raise, or warn once; the text is right either way."""
        if self._strict:
            raise error
        if not self._warned:
            self._warned = True
            warnings.warn(f"kvstore {what}, going on without: {error}", RuntimeWarning, stacklevel=3)


def _common(left: list[int], right: list[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
