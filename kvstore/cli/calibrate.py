"""`kvstore calibrate MODEL`: learn a codec's artefact from a model and texts."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvstore.cli.output import print_json, print_table, progress, size
from kvstore.codecs.artefact import Artefact
from kvstore.errors import InvalidArgument, StorageError


def calibrate(args: Namespace) -> int:
    """Write an artefact; print what it is, costs and was seen to give."""
    out = Path(args.out) if args.out else None
    if out is not None:
        _check_free(out)
    from kvstore.calibrate import make, texts
    from kvstore.calibrate.capture import capture
    from kvstore.calibrate.models import subject

    paths = [Path(each) for each in args.text]
    for path in paths:  # before the model is loaded, which takes a while
        texts.text_of(path)
    with _stage("loading the model", None):
        loaded = subject(args.model)
    out = out or Path(f"{loaded.name}-{args.variant}.safetensors")
    _check_free(out)
    read = texts.read(loaded, paths, args.variant)
    needs = make.needs(loaded, args.variant, read.tokens)
    needs.check()
    if needs.tokens < needs.good:
        print(f"kvstore: {needs.tokens:,} tokens of text; {needs.good:,} would be good", file=sys.stderr)
    with _stage("running the model", len(read.calibration) + len(read.validation)) as advance:
        captured = []
        for name, ids in (*read.calibration, *read.validation):
            captured.append(capture(loaded, name, ids))
            advance()
    learnt, held = captured[: len(read.calibration)], captured[len(read.calibration) :]
    made = make.make(loaded, learnt, held, args.variant, facts=texts.told(read), stage=_stage)
    _write(out, made)
    _show(args, out, made, needs.tokens, needs.good, make.flops_per_token(made))
    return 0


def _check_free(out: Path) -> None:
    if out.exists():
        raise InvalidArgument(f"{out} exists: move it away, or name another file with --out")
    if not out.absolute().parent.is_dir():
        raise InvalidArgument(f"{out} cannot be written: there is no folder {out.absolute().parent}")


def _write(out: Path, made: Artefact) -> None:
    try:
        with out.open("xb") as file:
            file.write(made.data)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}") from error


@contextmanager
def _stage(title: str, total: float | None) -> Iterator[Callable[[], None]]:
    with progress(title, total) as advance:
        yield advance


def _show(args: Namespace, out: Path, made: Artefact, tokens: int, good: int, flops: int) -> None:
    told: dict[str, Any] = {
        "artefact": str(out), "digest": made.digest.hex(), "kind": made.kind, "model": made.model.name,
        "variant": args.variant, "levels": made.facts["levels"], "bytes": len(made.data), "tokens": tokens,
        "tokens_good": good, "decode_flops_per_token": flops, "validated": made.facts["validated"],
    }  # fmt: skip
    if args.json:
        print_json(told)
        return
    rows = [(each["step"], each["bits"], 16 / each["bits"], each["kl"], each["top1"]) for each in told["validated"]]
    print_table(("step", "bits", "times smaller", "KL", "top-1"), rows, title="what steps were seen to give")
    print(f"{out}: {size(len(made.data))}, digest {made.digest.hex()}, levels {', '.join(told['levels'])}")
    print(f"{tokens:,} tokens of text ({good:,} are good); decoding takes {flops:,} FLOPs a token")
