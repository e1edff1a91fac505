"""Which folders belong together: `drive.json` in each of them, once there is more than one.

It has the identity of the set, the number of this drive and where each member was seen last, so that a drive that
is missing is told from a folder that is new, whatever order the paths are given in. A folder without the file is
drive 0: that is what a tier of one drive is.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvstore.errors import ConfigError, StorageError
from kvstore.tiers.nvme.durable import as_storage_error, replace_file
from kvstore.tiers.nvme.location import MAX_DRIVES

VERSION = 1
FILE = "drive.json"


@dataclass(frozen=True)
class Member:
    """What one folder says of itself and of the others."""

    identity: str
    number: int
    paths: Mapping[int, str]


@dataclass
class Roll:
    """Which drive each path is; `known` has every member ever seen, `missing` says why some cannot be used."""

    identity: str = ""
    numbers: dict[Path, int] = field(default_factory=dict)
    known: dict[int, Path] = field(default_factory=dict)
    missing: dict[Path, str] = field(default_factory=dict)


def read_member(folder: Path) -> Member | None:
    """What a folder says; None if it says nothing. `StorageError` if that cannot be told."""
    path = folder / FILE
    try:
        content = json.loads(path.read_bytes())
        if content["version"] > VERSION:
            raise StorageError(f"{path} is of version {content['version']}; use a newer kvstore")
        member = Member(content["set"], content["number"], {int(n): at for n, at in content["members"].items()})
        if not 0 <= member.number < MAX_DRIVES:
            raise ValueError(f"there is no drive {member.number}")
        return member
    except (FileNotFoundError, NotADirectoryError):
        return None
    except StorageError:
        raise
    except OSError as error:
        raise as_storage_error(error, f"cannot read {path}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} cannot be read ({error}); restore it, or take its folder out of `paths`") from error


def holds_tier(folder: Path) -> bool:
    """Whether a tier was ever opened in a folder."""
    return (folder / "segments").is_dir()


def check_member(folder: Path, identity: str, number: int) -> None:
    """Raise `StorageError` unless a folder holds this drive of this set (no identity: of a tier of one drive)."""
    member = read_member(folder)
    found = (member.identity, member.number) if member is not None else ("", 0)
    if found != (identity, number) or not holds_tier(folder):
        raise StorageError(f"{folder} does not hold drive {number} of this tier (any more): mount it")


def call_roll(paths: Sequence[Path]) -> Roll:
    """Give every path its number without touching any folder. `ConfigError` for folders that do not go together."""
    members, roll = dict[Path, Member](), Roll()
    for path in paths:
        try:
            if (member := read_member(path)) is not None:
                members[path] = member
        except StorageError as error:
            if len(paths) == 1:
                raise
            roll.missing[path] = str(error)
    sets = {member.identity for member in members.values()}
    if len(sets) > 1:
        raise ConfigError(f"{', '.join(map(str, members))} belong to {len(sets)} different tiers; give each its own")
    roll.identity = sets.pop() if sets else secrets.token_hex(8)
    roll.known = {number: Path(at) for member in members.values() for number, at in member.paths.items()}
    for path, member in members.items():
        _enter(roll, path, member.number)
    unmarked = [path for path in paths if path not in members]
    for path in sorted(unmarked, key=lambda path: not (path / "segments").is_dir()):  # those with records first
        _enter_unmarked(roll, path)
    return roll


def _enter_unmarked(roll: Roll, path: Path) -> None:
    """A folder without a file of its own: a member that is not there, an older tier of one drive, or a new one."""
    was = next((number for number, at in roll.known.items() if at == path), None)
    if was is not None:
        roll.missing.setdefault(
            path, f"{path} does not hold drive {was} of this tier: mount it, or if it was replaced by an empty one, "
            "use a folder of another name on it",
        )  # fmt: skip
        return
    if path in roll.missing:
        return
    taken = {*roll.known, *roll.numbers.values()}
    if (path / "segments").is_dir():
        if 0 in taken:
            raise ConfigError(f"{path} holds a tier of its own; only one such folder can be the first of several")
        _enter(roll, path, 0)
        return
    free = [number for number in range(MAX_DRIVES) if number not in taken]
    if not free:
        raise ConfigError(f"a tier has {MAX_DRIVES} drives at most; {path} would be one more")
    _enter(roll, path, free[0])


def _enter(roll: Roll, path: Path, number: int) -> None:
    if number in roll.numbers.values():
        raise ConfigError(f"{path} is drive {number} of this tier, and so is another folder: leave one of them out")
    roll.numbers[path] = number


def write_members(roll: Roll, present: Mapping[Path, int]) -> None:
    """Let every folder that is present know the set. `StorageError`."""
    everybody = {**{n: str(at) for n, at in roll.known.items()}, **{n: str(at) for at, n in roll.numbers.items()}}
    for path, number in present.items():
        before = read_member(path)
        if before is not None and before.paths == everybody:
            continue
        content = {"version": VERSION, "set": roll.identity, "number": number, "members": everybody}
        try:
            replace_file(path / FILE, [json.dumps(content, indent=1).encode()])
        except OSError as error:
            raise as_storage_error(error, f"cannot write {path / FILE}") from error
