from collections.abc import Iterator

import pytest

from kvstore import _native


def supported_levels() -> list[str]:
    """What this processor has; a level that it lacks is another machine's to test."""
    before = _native.simd_level()
    levels = []
    for name in ("portable", "avx2", "avx512"):
        try:
            _native.set_simd_level(name)
        except ValueError:
            continue
        levels.append(name)
    _native.set_simd_level(before)
    return levels


@pytest.fixture(params=supported_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.simd_level()
    _native.set_simd_level(request.param)
    yield request.param
    _native.set_simd_level(before)
