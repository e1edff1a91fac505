"""Names of forms in a configuration: `raw`, or a codec and its level, as in `lossless` or `kivi:4`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kvstore import codecs
from kvstore.codecs import Block, Codec, Form, all_codecs
from kvstore.codecs.shipped import shipped_artefacts
from kvstore.config import Config, NamespaceConfig
from kvstore.errors import ConfigError
from kvstore.nearest import nearest
from kvstore.spec import CANONICAL_AXES

RAW = "raw"
LOSSLESS = "lossless"


class Named(NamedTuple):
    """A codec and a level of it: a form whose artefact is still to be chosen."""

    codec: Codec
    level: int = 0

    def __str__(self) -> str:
        level = self.codec.levels[self.level]
        return f"{self.codec.name}:{level}" if level else self.codec.name


def parse_form(text: str, key: str) -> Named | None:
    """The form that a configuration names, None for `raw`; `ConfigError` for one that this build does not have."""
    if text == RAW:
        return None
    name, _, level = text.partition(":")
    known = all_codecs()
    if name not in known:
        raise ConfigError(f"{key} = {text!r}: there is no codec {name!r} here{nearest(name, [RAW, *known])}")
    codec = known[name]
    if not level:
        return Named(codec)
    if level not in codec.levels:
        levels = [each for each in codec.levels if each]
        hint = nearest(level, levels) if levels else "; it has no levels"
        raise ConfigError(f"{key} = {text!r}: {name} has no level {level!r}{hint}")
    return Named(codec, list(codec.levels).index(level))


def lossless() -> Named | None:
    """What stands in where a codec may not or cannot be used; None where this build does not have it."""
    found = all_codecs().get(LOSSLESS)
    return None if found is None else Named(found)


def form_text(name: str, level: int) -> str:
    """A codec's name with that of a level, where there are several."""
    codec = all_codecs().get(name)
    return name if codec is None or not 0 <= level < len(codec.levels) else str(Named(codec, level))


def check_opt_in(namespace: NamespaceConfig) -> None:
    """Raise `ConfigError` where a namespace wants its puts in a lossy form without having opted in to that."""
    form = None if namespace.codec is None else parse_form(namespace.codec, "namespace.codec")
    if form is not None and not form.codec.exact and not namespace.lossy:
        raise ConfigError(
            f"namespace.codec = {namespace.codec!r} is lossy and namespace {namespace.name!r} has not opted in to "
            "that: set lossy = true, or choose an exact codec"
        )


def artefact_files(config: Config) -> Sequence[Path]:
    """The artefacts that may encode: those configured, then, where a form needs any, those shipped."""
    named = (parse_form(text, key) for key, text in _configured(config))
    needed = any(form is not None and form.codec.artefact_kind for form in named)
    return [*config.codecs.artefacts, *(shipped_artefacts().values() if needed else ())]


def check_forms(config: Config) -> None:
    """Raise `ConfigError` for a form that this build does not have, or that a namespace has not opted in to."""
    for namespace in config.namespaces:
        check_opt_in(namespace)
    for key, text in _configured(config):
        form = parse_form(text, key)
        if form is not None and not form.codec.artefact_kind:
            _check_installed(form, key)


def _configured(config: Config) -> Iterator[tuple[str, str]]:
    """Every form that a configuration names, by its key."""
    yield "dram.codec", config.dram.codec
    for each in config.below:
        yield f"{each.table}.codec", each.codec
    for namespace in config.namespaces:
        yield "namespace.codec", namespace.codec or RAW


def _check_installed(form: Named, key: str) -> None:
    """Raise `ConfigError` for a codec that needs a package which is not here."""
    block = Block("bfloat16", (0,), 2, 1, 1, 64, CANONICAL_AXES)
    try:
        codecs.encode(bytes(block.nbytes), block, Form(form.codec, form.level))
    except ImportError as error:
        raise ConfigError(f"{key} = {str(form)!r} cannot be used here: {error}; install that package") from None
    except Exception:  # noqa: BLE001 - whatever else it makes of one token of zeros is not for here
        return
