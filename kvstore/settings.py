"""Reads the configuration: `kvstore.toml`, overridden by `KVSTORE_…` variables, overridden by flags.

Every mistake is a `ConfigError` that names the file and line, the variable or the flag, the value, and what
would have been right.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvstore.config import (
    CodecsConfig,
    Config,
    CxlConfig,
    DramConfig,
    HbmConfig,
    NamespaceConfig,
    NvmeConfig,
    PeersConfig,
    RemoteConfig,
    ServerConfig,
)
from kvstore.errors import ConfigError, InvalidArgument
from kvstore.forms import check_opt_in
from kvstore.namespace import check_name
from kvstore.nearest import nearest
from kvstore.peering import check_peers
from kvstore.schema import TABLES, Key, keys, scalar_keys

PREFIX = "KVSTORE_"
# Variables of the command line, not of the configuration.
CLIENT_VARIABLES = (
    "KVSTORE_CONFIG", "KVSTORE_URL", "KVSTORE_TOKEN", "KVSTORE_TOKEN_FILE", "KVSTORE_CA", "KVSTORE_NAMESPACE",
    "KVSTORE_CACHE",
)  # fmt: skip
MASK = "********"
# What a tier cannot do without: its table, the key, what that is, the flag.
_NEEDED = (
    ("hbm", "capacity", "a capacity", "--hbm-capacity"),
    ("nvme", "path", "a folder", "--nvme"),
    ("remote", "url", "a place", "--remote"),
)
TomlPath = tuple[str | int, ...]


@dataclass(frozen=True)
class _File:
    """The text of a configuration file, for saying where in it something is wrong."""

    name: str
    text: str
    folder: Path

    def error(self, path: TomlPath, message: object) -> ConfigError:
        """An error that names the line of `path`."""
        return ConfigError(f"{self.name}:{self._line(path)}: {message}")

    def _line(self, path: TomlPath) -> int:
        """The line on which the statement begins that brings `path` in.

        A prefix of whole statements parses, so the first prefix that parses and holds the path ends with that
        statement, and the one before ends where it begins. That is right for every way TOML has to write a key.
        """
        lines, start = self.text.splitlines(keepends=True), 0
        for count in range(1, len(lines) + 1):
            try:
                data = tomllib.loads("".join(lines[:count]))
            except tomllib.TOMLDecodeError:
                continue
            if _reaches(data, path):
                return start + 1
            start = count
        return max(1, len(lines))


def load(
    path: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Config:
    """The configuration in force.

    `path` names a `kvstore.toml` (none: defaults), `env` holds the variables (none: the process's own),
    `overrides` maps dotted keys such as `dram.capacity` to what a flag said. Paths inside the file are relative
    to its folder, all others to the working folder. Raises `ConfigError`.
    """
    values: dict[str, dict[str, Any]] = {}  # only the tables that something named
    namespaces: list[NamespaceConfig] = []
    if path is not None:
        file = _read(Path(path))
        namespaces = _from_file(file, values)
    _from_variables(os.environ if env is None else env, values)
    for dotted, text in (overrides or {}).items():
        key = _scalar(dotted)
        values.setdefault(key.table, {})[key.name] = _parse(key, text, key.flag)
    for table, name, what, flag in _NEEDED:
        if table in values and not values[table].get(name):
            variable = f"{PREFIX}{table}_{name}".upper()
            raise ConfigError(f"[{table}] is set up without {what}; set its {name}, {variable} or {flag}")
    server = ServerConfig(**values.get("server", {}))
    if (server.tls_cert is None) != (server.tls_key is None):
        raise ConfigError("server.tls_cert and server.tls_key belong together; only one of them is set")
    return Config(
        dram=DramConfig(**values.get("dram", {})),
        hbm=HbmConfig(**values["hbm"]) if "hbm" in values else None,
        cxl=CxlConfig(**values["cxl"]) if "cxl" in values else None,
        nvme=NvmeConfig(**values["nvme"]) if "nvme" in values else None,
        peers=_peers(values["peers"]) if "peers" in values else None,
        remote=RemoteConfig(**values["remote"]) if "remote" in values else None,
        namespaces=tuple(namespaces) or Config.namespaces,
        server=server,
        codecs=CodecsConfig(**values.get("codecs", {})),
        **values.get("store", {}),
    )


def render(config: Config) -> str:
    """The configuration as TOML that `load` takes back, tokens masked, every key written out."""
    parts: list[tuple[str, str, Any]] = [("[store]", "store", config), ("[dram]", "dram", config.dram)]
    tables = (config.hbm, config.cxl, config.nvme, config.peers, config.remote)
    parts += [(f"[{each.table}]", each.table, each) for each in tables if each is not None]
    parts += [("[codecs]", "codecs", config.codecs), ("[server]", "server", config.server)]
    parts += [("[[namespace]]", "namespace", each) for each in config.namespaces]
    blocks = [
        f"{header}\n" + "".join(_line(key, value) for key in keys(table).values()) for header, table, value in parts
    ]
    return "\n".join(blocks)


def to_dict(config: Config) -> dict[str, Any]:
    """The same as plain data, for `--json`."""
    data = tomllib.loads(render(config))
    return {**{table: data.get(table) for table in TABLES if table != "namespace"}, "namespace": data["namespace"]}


def _peers(values: dict[str, Any]) -> PeersConfig:
    """The table of peers, its tokens read. `ConfigError` for what cannot work."""
    peers = PeersConfig(**values)
    if peers.token_file is not None:
        if peers.token is not None:
            raise ConfigError("peers.token and peers.token_file are two places for one token; set one of them")
        tokens = read_tokens(peers.token_file)
        if len(tokens) > 1:
            raise ConfigError(f"peers.token_file: {peers.token_file} holds {len(tokens)} tokens; servers show one")
        peers = replace(peers, token=tokens[0])
    check_peers(peers)
    return peers


def size_text(nbytes: int) -> str:
    """A size in the largest binary unit that divides it: `2GiB`."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes and nbytes % factor == 0:
            return f"{nbytes // factor}{unit}"
    return str(nbytes)


def read_tokens(path: Path) -> tuple[str, ...]:
    """The tokens in a file, one per line; empty lines and `#` comments are skipped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the tokens file {path} cannot be read: {_reason(error)}") from None
    tokens = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not tokens:
        raise ConfigError(f"the tokens file {path} holds no token; write one per line")
    return tokens


def _read(path: Path) -> _File:
    try:
        return _File(str(path), path.read_text(encoding="utf-8"), path.parent)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} cannot be read: {_reason(error)}") from None


def _from_file(file: _File, values: dict[str, dict[str, Any]]) -> list[NamespaceConfig]:
    try:
        data = tomllib.loads(file.text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file.name}: not TOML: {error}") from None
    for table, content in data.items():
        if table not in TABLES:
            raise file.error((table,), f"unknown table or key {table!r}{nearest(table, list(TABLES))}")
        if table != "namespace":
            values[table] = _table(file, (table,), table, content)
    tenants = data.get("namespace", [])
    if not isinstance(tenants, list):
        raise file.error(("namespace",), "namespaces are written as [[namespace]], with two brackets")
    return _namespaces(file, tenants)


def _table(file: _File, path: TomlPath, table: str, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise file.error(path, f"{table!r} is a table: write [{table}] and its keys below")
    known, found = keys(table), {}
    for name, value in content.items():
        at = (*path, name)
        if name not in known:
            raise file.error(at, f"unknown key {name!r} in [{table}]{nearest(name, list(known))}")
        try:
            parsed = known[name].parse(value)
        except ConfigError as error:
            raise file.error(at, error) from None
        found[name] = _from_folder(file.folder, parsed)
    for name, key in known.items():
        if key.required and name not in found and table == "namespace":
            raise file.error(path, f"[[namespace]] needs a {name}")
    return found


def _from_folder(folder: Path, value: Any) -> Any:
    """A value whose paths are relative to a folder."""
    if isinstance(value, tuple):
        return tuple(_from_folder(folder, each) for each in value)
    return folder / value if isinstance(value, Path) else value


def _namespaces(file: _File, tenants: list[Any]) -> list[NamespaceConfig]:
    found: list[NamespaceConfig] = []
    for number, content in enumerate(tenants):
        path: TomlPath = ("namespace", number)
        tenant = NamespaceConfig(**_table(file, path, "namespace", content))
        try:
            check_name(tenant.name)
            if tenant.name in [each.name for each in found]:
                raise ConfigError(f"namespace {tenant.name!r} is there twice")
            if tenant.tokens_file is not None:
                tenant = replace(tenant, tokens=(*tenant.tokens, *read_tokens(tenant.tokens_file)))
        except InvalidArgument as error:
            raise file.error((*path, "tokens_file" if "tokens file" in str(error) else "name"), error) from None
        try:
            check_opt_in(tenant)
        except ConfigError as error:
            raise file.error((*path, "codec"), error) from None
        found.append(tenant)
    return found


def _from_variables(env: Mapping[str, str], values: dict[str, dict[str, Any]]) -> None:
    known = {key.variable: key for key in scalar_keys()}
    for name, text in sorted(env.items()):
        if not name.startswith(PREFIX) or name in CLIENT_VARIABLES:
            continue
        if name not in known:
            raise ConfigError(f"unknown variable {name}{nearest(name, [*known, *CLIENT_VARIABLES])}")
        key = known[name]
        values.setdefault(key.table, {})[key.name] = _parse(key, text, name)


def _scalar(dotted: str) -> Key:
    known = {key.dotted: key for key in scalar_keys()}
    if dotted not in known:
        raise ConfigError(f"unknown key {dotted!r}{nearest(dotted, list(known))}")
    return known[dotted]


def _parse(key: Key, text: str, source: str) -> Any:
    try:
        return key.parse(text)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _line(key: Key, owner: Any) -> str:
    value = getattr(owner, key.name)
    if value is None:
        return f"# {key.name} is not set\n"
    if key.kind is tuple:
        plain = [MASK if key.secret else each if key.item is int else str(each) for each in value]
        text = json.dumps(plain, ensure_ascii=False)
    elif key.kind is bool:
        text = "true" if value else "false"
    elif key.quantity is not None and key.quantity.unit == "bytes":
        text = json.dumps(size_text(value))
    elif key.kind in (int, float):
        text = repr(value)
    else:
        text = json.dumps(MASK if key.secret else str(value), ensure_ascii=False)
    return f"{key.name} = {text}\n"


def _reaches(data: Any, path: TomlPath) -> bool:
    for step in path:
        if isinstance(step, int):
            if not isinstance(data, list) or step >= len(data):
                return False
        elif not isinstance(data, dict) or step not in data:
            return False
        data = data[step]
    return True


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"
