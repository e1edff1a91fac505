"""The store that a command works on: a server, or a folder opened in this process."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import kvstore
from kvstore import settings
from kvstore.cli.settings import config_file, overrides
from kvstore.client import Client
from kvstore.errors import InvalidArgument
from kvstore.namespace import DEFAULT
from kvstore.tiers.nvme.members import holds_tier

# A command that opens a folder for a moment needs DRAM for what it moves, not for a cache.
COMMAND_DRAM = "256MiB"


def open_client(args: Namespace, *, make: bool = False) -> Client:
    """Connect or open as `--url`, `--config` and `--nvme` say. Close the client when done.

    With `make` a folder that is not there is made, and a store in it; without, it is taken for a slip of the pen.
    """
    flags = overrides(args)
    local = bool(args.config or "nvme.path" in flags)
    if args.url and local:
        raise InvalidArgument("--url names a server; --config and --nvme open a folder here; give one of them")
    url = args.url or ("" if local else os.environ.get("KVSTORE_URL", ""))
    namespace = args.namespace or os.environ.get("KVSTORE_NAMESPACE") or DEFAULT
    if url:
        return kvstore.connect(url, namespace=namespace, token=_token(args), ca=args.ca or os.environ.get("KVSTORE_CA"))
    file = config_file(args)
    if file is None and "dram.capacity" not in flags and "KVSTORE_DRAM_CAPACITY" not in os.environ:
        flags["dram.capacity"] = COMMAND_DRAM
    config = settings.load(file, overrides=flags)
    if config.nvme is None:
        raise InvalidArgument("which store? give --url HOST:PORT, --nvme FOLDER or --config FILE with an [nvme] path")
    if not make and not any(holds_tier(path) for path in (config.nvme.path, *config.nvme.paths)):
        why = "nothing of one is there" if config.nvme.path.is_dir() else "no such folder"
        raise InvalidArgument(f"there is no store in {config.nvme.path}: {why} (`kvstore put` makes one)")
    return kvstore.open(config, namespace=namespace)


def _token(args: Namespace) -> str:
    if args.token and args.token_file:
        raise InvalidArgument("--token and --token-file say the same; give one of them")
    if args.token or args.token_file:
        token, file = args.token, args.token_file
    else:
        token, file = os.environ.get("KVSTORE_TOKEN"), os.environ.get("KVSTORE_TOKEN_FILE")
    return token or (settings.read_tokens(Path(file))[0] if file else "")
