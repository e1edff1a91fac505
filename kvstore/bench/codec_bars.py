"""What codecs must reach (issue 4): per form, on one of the two sets of documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from kvstore.bench.measure import Row


@dataclass(frozen=True, slots=True)
class Bar:
    """A least size, a largest divergence, the longest times in copies of the raw bytes. None: no demand."""

    smaller: float | None = None
    kl: float | None = None
    encode: float | None = None
    decode: float | None = None

    def judge(self, row: Row) -> tuple[list[str], bool]:
        """What is demanded of a row as far as it was measured, and whether all of it is met."""
        said, met = [], True
        for name, value, sign, text in (
            ("times_smaller", self.smaller, 1, "≥ {:.4g} × smaller"),
            ("kl", self.kl, -1, "KL ≤ {:.2g}"),
            ("encode_ratio", self.encode, -1, "encode ≤ {:.3g} ×"),
            ("decode_ratio", self.decode, -1, "decode ≤ {:.3g} ×"),
        ):
            seen = row.get(name)
            # Sizes are a promise about real KV; rows without documents have the speed only.
            if value is None or seen is None or (name == "times_smaller" and not row.get("documents")):
                continue
            said.append(text.format(value))
            met = met and (seen - value) * sign >= 0
        return said, met


_HEAD, _LAYER = {"encode": 50.0, "decode": 20.0}, {"encode": 80.0, "decode": 30.0}
SMOLLM2: Mapping[tuple[str, str, str], Bar] = MappingProxyType({
    ("lossless", "", "in"): Bar(1.50),
    ("transform", "near/head", "in"): Bar(3.6, 0.0003, **_HEAD),
    ("transform", "near/layer", "in"): Bar(3.6, 0.0003, **_LAYER),
    ("transform", "matches-fp8/head", "in"): Bar(5.5, 0.0025, **_HEAD),
    ("transform", "matches-fp8/layer", "in"): Bar(6.2, 0.0025, **_LAYER),
    ("transform", "matches-int4/head", "in"): Bar(7.0, 0.0075, **_HEAD),
    ("transform", "matches-int4/layer", "in"): Bar(8.0, 0.0075, **_LAYER),
    ("transform", "small/joint", "in"): Bar(18.0, 0.015),
    ("transform", "small/joint", "out"): Bar(14.0, 0.03),
})  # fmt: skip
BEST: Mapping[str, tuple[str, Bar]] = MappingProxyType({
    "smollm2": ("cachegen", Bar(4.2, 0.03)),
    "gemma3": ("transform", Bar(6.0, 0.015)),
})  # fmt: skip
PEER, PEER_TIMES = "lmcache-cachegen", 50.0
OURS = ("transform", "matches-int4/head")  # the form that LMCache's is set against
OUT_KL, OUT_SIZE = 1.5, 1.2  # times those of the calibrated genres, per head and layer


def judge(rows: Sequence[Row], model: str) -> None:
    """Write into rows what they must reach, `bar` and `met`."""
    for row in rows:
        if row["case"] == PEER:
            _set_against(row, rows)
        bar = _bar_of(row, rows, model)
        if bar is not None:
            said, met = bar.judge(row)
            if said:
                row["bar"], row["met"] = ", ".join(said), met
                row["bar_bits"], row["bar_kl"] = bar.smaller and 16 / bar.smaller, bar.kl


def _set_against(peer: Row, rows: Sequence[Row]) -> None:
    """Whether our form is that much faster than LMCache's both ways, smaller, and closer to the exact cache."""
    ours = next((row for row in rows if (row["case"], row["mode"]) == OURS and row.get("genre") == "in"), None)
    if ours is None or ours.get("decode_ratio") is None:
        return
    peer["bar"] = f"{' '.join(OURS)} ≥ {PEER_TIMES:g} × faster both ways, smaller, lower KL"
    peer["met"] = (
        min(peer[way] / ours[way] for way in ("encode_ratio", "decode_ratio")) >= PEER_TIMES
        and ours["times_smaller"] > peer["times_smaller"]
        and ours["kl"] < peer["kl"]
    )


def _bar_of(row: Row, rows: Sequence[Row], model: str) -> Bar | None:
    genre = row.get("genre", "in")
    variant = row["mode"].rpartition("/")[2]
    if row["case"] == "transform" and genre == "out" and variant in ("head", "layer"):
        inside = next(
            (r for r in rows if (r["case"], r["mode"], r.get("genre")) == ("transform", row["mode"], "in")), None
        )
        return None if inside is None else Bar(inside["times_smaller"] / OUT_SIZE, inside["kl"] * OUT_KL)
    case, best = BEST[model]
    if row["case"] == case and genre == "in" and row is _smallest(rows, case, best.kl):
        return best
    if model != "smollm2":
        limits = (
            {"head": _HEAD, "layer": _LAYER}.get(variant, {}) if row["case"] == "transform" and genre == "in" else {}
        )
        return Bar(**limits) if limits else None
    return SMOLLM2.get((row["case"], row["mode"], genre))


def _smallest(rows: Sequence[Row], case: str, kl: float | None) -> Row | None:
    """The row of a codec that is smallest among those of a divergence of at most `kl`."""
    due = [row for row in rows if row["case"] == case and row.get("genre") == "in" and row["kl"] <= (kl or 0)]
    return max(due, key=lambda row: row["times_smaller"], default=None)
