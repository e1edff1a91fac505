"""What is simulated: tiers with their capacities and speeds, policies, and how a trace is played."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from kvstore.config import ALL, Quantity
from kvstore.cost import TierSpeed
from kvstore.errors import ConfigError, InvalidArgument
from kvstore.nearest import nearest
from kvstore.policy import POLICIES
from kvstore.schema import Key
from kvstore.sim.models import DEFAULT, Model, model_of

BELADY, BOUND = "belady", "bound"  # beside the policies
TOUCHES = ("leaf", "put", "forward")
ENDED = ("never", "known", "always")
CAPACITIES = ("1%", "5%", "10%")
# What a tier does unless it is said; round figures of present hardware, not measured here. Latency in seconds, bytes/s.
SPEEDS = {
    "hbm": TierSpeed(10e-6, 1000e9),
    "dram": TierSpeed(50e-6, 25e9),
    "cxl": TierSpeed(50e-6, 20e9),
    "nvme": TierSpeed(150e-6, 6e9),
    "remote": TierSpeed(1e-3, 2.5e9),
}
_BYTES = Key("sim", "capacity", int, Quantity("bytes", positive=True), False, None)
_SHARE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)%")
_OPTIONS = ("gbps", "latency_us", "smaller", "decode_gbps")


@dataclass(frozen=True, slots=True)
class Capacity:
    """A number of bytes, or a share of what the trace's distinct tokens take."""

    text: str
    nbytes: int = 0
    share: float = 0.0

    def of(self, total: int) -> int:
        """In bytes, of a trace whose chunks take `total`."""
        return self.nbytes or int(self.share * total)


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier: `smaller` says by how much what lies there is encoded.

    `admit` and `write_bytes_per_day` (0: no bound) are those of the store's configuration.
    """

    name: str
    capacity: Capacity
    speed: TierSpeed
    smaller: float = 1.0
    admit: str = ALL
    write_bytes_per_day: int = 0


Tiers: TypeAlias = Sequence[Tier]


@dataclass(frozen=True)
class Setup:
    """One way to play a trace.

    `stacks` are the set-ups of tiers, each fastest first. The first `warm` of the requests does not count.
    `flops_per_s` and `step_s` are the engine's. With `overlap` it computes the front while the back is loaded. With
    `whole_blocks` a partial block takes as much room as a whole one. `shares` of the tenants, in their order. `ended`:
    of which prompts a client says, once they are stored, that nobody will go on with them: none, those of which it is
    true, all.
    """

    stacks: Sequence[Tiers]
    policies: Sequence[str] = POLICIES
    model: Model = field(default_factory=lambda: model_of(DEFAULT))
    flops_per_s: float = 400e12
    step_s: float = 0.01
    touch: str = "leaf"
    warm: float = 0.5
    overlap: bool = False
    whole_blocks: bool = False
    shares: Sequence[float] = ()
    ended: str = "never"

    def __post_init__(self) -> None:
        for name in self.policies:
            if name not in (*POLICIES, BELADY, BOUND):
                known = (*POLICIES, BELADY, BOUND)
                raise InvalidArgument(f"no policy {name!r}{nearest(name, known)}")
        if self.touch not in TOUCHES:
            raise InvalidArgument(f"no order of touches {self.touch!r}; there are {', '.join(TOUCHES)}")
        if self.ended not in ENDED:
            raise InvalidArgument(f"prompts are said to have ended {', '.join(ENDED)}, not {self.ended!r}")
        if not 0 <= self.warm < 1:
            raise InvalidArgument(f"the part of a trace that only warms is 0 or more and less than 1, not {self.warm}")
        if any(share <= 0 for share in self.shares):
            raise InvalidArgument(f"a tenant's share is above 0, not {min(self.shares)}")


def capacity_of(text: str) -> Capacity:
    """`5%`, or bytes such as `64GiB`."""
    share = _SHARE.fullmatch(text)
    if share:
        if not 0 < float(share[1]) <= 100:
            raise InvalidArgument(f"a share of the trace's bytes is more than 0% and at most 100%, not {text}")
        return Capacity(text, share=float(share[1]) / 100)
    try:
        nbytes = int(_BYTES.parse(text))
    except ConfigError:
        raise InvalidArgument(f"{text!r} is no capacity: a share like 5%, or bytes like 64GiB") from None
    return Capacity(text, nbytes)


def per_day_of(text: str) -> int:
    """Bytes a day, such as `2TB`."""
    try:
        return int(_BYTES.parse(text))
    except ConfigError:
        raise InvalidArgument(f"{text!r} are no bytes a day: say a size like 64GiB or 2TB") from None


def single_tiers(capacities: Sequence[str]) -> list[Tiers]:
    """A set-up of DRAM alone for each capacity."""
    return [(Tier("dram", capacity_of(text), SPEEDS["dram"]),) for text in capacities]


def tier_of(text: str) -> Tier:
    """`NAME=CAPACITY[,gbps=…][,latency_us=…][,smaller=…][,decode_gbps=…]`.

    A tier that has none of the names of `SPEEDS` must say its speed.
    """
    name, _, rest = text.partition("=")
    capacity, *options = rest.split(",")
    found = {}
    for option in options:
        key, _, value = option.partition("=")
        try:
            found[key] = float(value)
        except ValueError:
            found[key] = -1.0
        if key not in _OPTIONS or not 0 <= found[key] < float("inf"):
            raise InvalidArgument(f"--tier {text}: {option!r} is none of {', '.join(_OPTIONS)} with a number")
    if not name or (name not in SPEEDS and "gbps" not in found):
        raise InvalidArgument(f"--tier {text}: {name!r} is none of {', '.join(SPEEDS)}: say its speed with gbps=…")
    speed = _speed(SPEEDS.get(name, TierSpeed(0.0, 0.0)), found)
    if speed.bytes_per_s <= 0 or found.get("smaller", 1.0) < 1:
        raise InvalidArgument(f"--tier {text}: gbps is above 0, smaller is 1 or more")
    return Tier(name, capacity_of(capacity), speed, found.get("smaller", 1.0))


def with_filter(tiers: Tiers, admit: str, write_bytes_per_day: int) -> Tiers:
    """The tiers with a filter in front of all but the first, whose chunks come from engines.

    `InvalidArgument` where there is no other.
    """
    if len(tiers) < 2:
        raise InvalidArgument("a filter stands before tiers below the first: give two or more with --tier")
    return (tiers[0], *(replace(each, admit=admit, write_bytes_per_day=write_bytes_per_day) for each in tiers[1:]))


def _speed(speed: TierSpeed, options: dict[str, float]) -> TierSpeed:
    return TierSpeed(
        options["latency_us"] / 1e6 if "latency_us" in options else speed.latency_s,
        options["gbps"] * 1e9 if "gbps" in options else speed.bytes_per_s,
        options.get("decode_gbps", 0.0) * 1e9,
    )
