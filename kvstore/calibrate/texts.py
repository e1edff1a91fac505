"""From texts to the windows of tokens that a model is run over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvstore.calibrate.documents import CALIBRATED, documents
from kvstore.calibrate.models import Subject
from kvstore.errors import InvalidArgument, StorageError

WINDOW = 2048 + 256  # tokens: a context, and what is predicted from it
LEAST_WINDOW = 64
VALIDATED = 3  # windows, at most, that steps are found on
JOINT_DOCUMENTS, DOCUMENTS = 18, 12  # of the packaged ones: what 20 tokens a dimension take


@dataclass(frozen=True)
class Texts:
    """Windows of token ids with their names, to learn from and to find steps on, and where they come from."""

    calibration: Sequence[tuple[str, list[int]]]
    validation: Sequence[tuple[str, list[int]]]
    sources: Sequence[str]

    @property
    def tokens(self) -> int:
        """That are learnt from."""
        return sum(len(ids) for _, ids in self.calibration)


def window_of(subject: Subject) -> int:
    """Tokens of a window: no more than the model was made for."""
    return min(WINDOW, int(getattr(subject.model.config, "max_position_embeddings", WINDOW)))


def packaged(subject: Subject, variant: str) -> Texts:
    """The first window of each document of prose, code and manuals from installed packages."""
    count = JOINT_DOCUMENTS if variant == "joint" else DOCUMENTS
    learnt, held = documents("calibrate", CALIBRATED)[:count], documents("validate", CALIBRATED)
    size = window_of(subject)
    parts = [[(each.name, subject.tokens(each.text(), size)) for each in some] for some in (learnt, held)]
    return Texts(parts[0], parts[1], [f"{each.genre} {each.name} ({each.source})" for each in learnt])


def text_of(path: Path) -> str:
    """What a file says. `StorageError` where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error


def from_files(subject: Subject, paths: Sequence[Path]) -> Texts:
    """All of the files, cut into windows; a few windows that are spread over them are kept to find steps on."""
    size = window_of(subject)
    windows: list[tuple[str, list[int]]] = []
    for path in paths:
        ids: list[int] = subject.tokenizer(text_of(path)).input_ids
        for number, start in enumerate(range(0, len(ids), size)):
            if len(ids) - start >= LEAST_WINDOW:
                windows.append((f"{path.name}-{number}", ids[start : start + size]))
    held = range(len(windows) // 4, len(windows), max(2, len(windows) // VALIDATED))[:VALIDATED]
    if len(windows) < 2:
        total = sum(len(ids) for _, ids in windows)
        raise InvalidArgument(
            f"{total:,} tokens of text are too little: it takes two windows of {LEAST_WINDOW} to {size:,} tokens"
        )
    validation = [windows[number] for number in held]
    calibration = [each for number, each in enumerate(windows) if number not in held]
    return Texts(calibration, validation, [path.name for path in paths])


def read(subject: Subject, paths: Sequence[Path], variant: str) -> Texts:
    """The files' windows, or without files those of the packaged documents."""
    return from_files(subject, paths) if paths else packaged(subject, variant)


def told(texts: Texts) -> dict[str, Any]:
    """What an artefact says about its texts."""
    return {"texts": list(texts.sources), "validated_on": [name for name, _ in texts.validation]}
