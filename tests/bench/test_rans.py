import numpy as np
import pytest

from kvstore.bench import rans
from kvstore.errors import Corrupt, InvalidArgument


def keys_and_values(tokens: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    spread = np.exp(rng.normal(size=(3, 2, 1, 2, 20)))
    return (spread * rng.normal(size=(3, 2, tokens, 2, 20)) + rng.normal(size=spread.shape)).astype(np.float32)


def test_rows() -> None:
    copy, encode, decode = rans.run(keys_and_values(600), rounds=3, working_set=1 << 20)
    assert (copy["case"], encode["case"], decode["case"]) == ("memcpy", "rans", "rans")
    assert (encode["mode"], decode["mode"]) == ("encode", "decode+dequantize")
    assert encode["bytes"] == decode["bytes"] == 2 * 256 * 40 * 2
    assert 2.5 < encode["bits"] < 3.7
    assert encode["encode_ratio"] == pytest.approx(1 / encode["ratio"])
    assert decode["decode_ratio"] == pytest.approx(1 / decode["ratio"])
    assert encode["bar"] == "≥ 0.0333333"


def test_wrong_content_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rans.rans.Bank, "dequantize", lambda *_: None)
    with pytest.raises(Corrupt, match="other bytes"):
        rans.run(keys_and_values(256), rounds=1, working_set=1 << 18)


def test_too_short() -> None:
    with pytest.raises(InvalidArgument, match="255 tokens"):
        rans.run(keys_and_values(255))
