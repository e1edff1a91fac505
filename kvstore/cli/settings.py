"""`kvstore config`, and the configuration as a command's flags say it."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from kvstore import settings
from kvstore.cli.output import print_json
from kvstore.cli.parser import SETTING
from kvstore.config import Config


def overrides(args: Namespace) -> dict[str, str]:
    """Dotted keys and what the flags said of them."""
    given = {name.removeprefix(SETTING): value for name, value in vars(args).items() if name.startswith(SETTING)}
    return {dotted: value for dotted, value in given.items() if value is not None}


def config_file(args: Namespace) -> str | None:
    """`--config`, else KVSTORE_CONFIG, else `kvstore.toml` in the working folder where there is one."""
    named: str | None = args.config or os.environ.get("KVSTORE_CONFIG")
    return named or ("kvstore.toml" if Path("kvstore.toml").is_file() else None)


def configuration(args: Namespace) -> Config:
    """The configuration in force for a command with `--config` and flags."""
    return settings.load(config_file(args), overrides=overrides(args))


def show(args: Namespace) -> int:
    """`kvstore config`."""
    config = configuration(args)
    if args.json:
        print_json(settings.to_dict(config))
    else:
        print(settings.render(config), end="")
    return 0
