"""The configuration's keys and what each may hold, read off the dataclasses of `kvstore.config`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from kvstore.config import (
    CodecName,
    CodecsConfig,
    Config,
    CxlConfig,
    DramConfig,
    EvictionPolicy,
    HbmConfig,
    NamespaceConfig,
    NvmeConfig,
    OneOf,
    PeersConfig,
    Quantity,
    RemoteConfig,
    ServerConfig,
)
from kvstore.errors import ConfigError, InvalidArgument

# The table of the file that each dataclass is written in; a store's own scalar fields are `[store]`.
TABLES: Mapping[str, type[Any]] = {
    "store": Config,
    "dram": DramConfig,
    "hbm": HbmConfig,
    "cxl": CxlConfig,
    "nvme": NvmeConfig,
    "peers": PeersConfig,
    "remote": RemoteConfig,
    "codecs": CodecsConfig,
    "server": ServerConfig,
    "namespace": NamespaceConfig,
}
_SIZES: Mapping[str, float] = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
          "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}  # fmt: skip
_TIMES: Mapping[str, float] = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_UNITS = {"bytes": _SIZES, "seconds": _TIMES, "": {"": 1.0}}
_NUMBER = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*\Z")
_A_TIME = 'a time like 60, "500ms", "60s", "5m" or "1h"'
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Key:
    """One key: its table, name, plain type (`item` of a list's items), unit and default; `secret` is never shown."""

    table: str
    name: str
    kind: type[Any]
    quantity: Quantity | None
    required: bool
    default: Any
    item: type[Any] = str
    form: bool = False
    secret: bool = False
    policy: bool = False
    words: tuple[str, ...] = ()

    @property
    def dotted(self) -> str:
        """`table.name`, as in error messages."""
        return f"{self.table}.{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable that overrides it."""
        return f"KVSTORE_{self.table}_{self.name}".upper()

    @property
    def flag(self) -> str:
        """The command-line flag that overrides it."""
        return "--" + f"{self.table}-{self.name}".replace("_", "-")

    @property
    def accepts(self) -> str:
        """What a value may be, in words."""
        unit = self.quantity.unit if self.quantity else ""
        if unit == "bytes":
            return 'a size like 1073741824, "512MiB" or "4GiB"'
        if unit == "seconds":
            return _A_TIME
        if self.form:
            return 'raw, or a codec and its level like "lossless" or "kivi:4"'
        if self.policy:
            return 'the name of an eviction policy, like "value"'
        if self.words:
            return " or ".join(f'"{word}"' for word in self.words)
        items = "numbers" if self.item is int else "strings"
        named = {bool: "true or false", int: "a whole number", float: "a number", tuple: f"a list of {items}"}
        return named.get(self.kind, "a string")

    def parse(self, value: Any) -> Any:
        """The value as the dataclass wants it; `ConfigError` says what was given and what is accepted."""
        parsed: Any
        if self.kind is bool:
            parsed = _boolean(value)
        elif self.kind in (int, float):
            parsed = self._number(value)
        elif self.kind is tuple:
            parsed = self._items(value)
        else:
            parsed = self.kind(value) if isinstance(value, str) and value else None
            if self.words and parsed not in self.words:
                parsed = None
        if parsed is None:
            raise ConfigError(f"{self.dotted} = {_shown(value)} is not {self.accepts}")
        if self.form:
            from kvstore.forms import parse_form

            parse_form(parsed, self.dotted)
        if self.policy:
            from kvstore.policy import check_policy

            check_policy(parsed, self.dotted)
        return parsed

    def _items(self, value: Any) -> tuple[Any, ...] | None:
        """A list's items; a variable or a flag has them in one string."""
        if isinstance(value, str) and not self.secret:
            value = value.split(os.pathsep) if self.item is Path else [each.strip() for each in value.split(",")]
            if self.item is int:
                value = [int(each) if each.isdecimal() else None for each in value]
        kind = int if self.item is int else str
        fine = isinstance(value, list) and all(type(each) is kind and each not in ("", None) for each in value)
        return tuple(map(self.item, value)) if fine else None

    def _number(self, value: Any) -> int | float | None:
        quantity = self.quantity or Quantity()
        amount = _amount(value, _UNITS[quantity.unit])
        if amount is None or (self.kind is int and amount != int(amount)):
            return None
        if amount < quantity.least or (quantity.positive and amount <= quantity.least):
            bound = f"more than {quantity.least:g}" if quantity.positive else f"at least {quantity.least:g}"
            raise ConfigError(f"{self.dotted} = {_shown(value)} is too small: {bound}")
        return self.kind(amount)  # type: ignore[no-any-return]


@cache
def keys(table: str) -> Mapping[str, Key]:
    """The keys of one table by name."""
    owner = TABLES[table]
    hints = get_type_hints(owner, include_extras=True)
    found: dict[str, Key] = {}
    for each in fields(owner):
        if owner is Config and each.name in (*TABLES, "namespaces"):
            continue
        kind, item, mark = _plain(hints[each.name])
        required = each.default is MISSING and each.default_factory is MISSING
        default = None if each.default is MISSING else each.default
        quantity, form = mark if isinstance(mark, Quantity) else None, isinstance(mark, CodecName)
        secret, policy = not each.repr, isinstance(mark, EvictionPolicy)
        words = mark.words if isinstance(mark, OneOf) else ()
        found[each.name] = Key(table, each.name, kind, quantity, required, default, item, form, secret, policy, words)
    return found


def scalar_keys() -> list[Key]:
    """Every key that a variable or a flag can set: all but those of `[[namespace]]`."""
    return [key for table in TABLES if table != "namespace" for key in keys(table).values()]


def parse_seconds(text: str) -> float:
    """A time such as `"10m"` in seconds."""
    amount = _amount(text, _TIMES)
    if amount is None:
        raise InvalidArgument(f"{_shown(text)} is not {_A_TIME}")
    return float(amount)


def _plain(hint: Any) -> tuple[type[Any], type[Any], Any]:
    """The class behind an annotation, that of its items if it is a list, and what the annotation is marked with."""
    mark = None
    if get_origin(hint) is Annotated:
        hint, mark = get_args(hint)[:2]
    if get_origin(hint) is UnionType:
        (hint,) = (each for each in get_args(hint) if each is not NoneType)
    if get_origin(hint) is tuple:
        return tuple, get_args(hint)[0], mark
    return hint, str, mark


def _amount(value: Any, units: Mapping[str, float]) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if not isinstance(value, str):
        return value if isfinite(value) else None
    match = _NUMBER.match(value)
    if match is None or match[2].lower() not in units:
        return None
    digits = match[1].replace("_", "")
    return (float(digits) if "." in digits else int(digits)) * units[match[2].lower()]


def _boolean(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else ""
    return True if word in _TRUE else False if word in _FALSE else None


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str | Path) else repr(value)
