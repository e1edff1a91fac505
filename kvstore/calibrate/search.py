"""The steps at which a transform has the divergences that its levels promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import exp, log

TOLERANCE = 0.1  # of a divergence, between what was asked for and what a step was seen to give
TRIES = 6
_SLOPE = 2.0  # KL grows with the square of a small step


def steps_for(targets: Mapping[str, float], kl_of: Callable[[float], float], first: float) -> dict[str, float]:
    """The step of each level. `kl_of` tells what a step gives; `first` is a guess for the finest level.

    KL is close to a power of the step, so the next guess lies on the line through the two nearest points in
    logarithms. Points are shared by all levels, and the last step is read off the line without trying it.
    """
    seen: dict[float, float] = {}
    found = {}
    guess = log(first)
    for level, target in sorted(targets.items(), key=lambda each: each[1]):
        goal = log(target)
        if seen:
            guess = _on_line(seen, goal)
        for _ in range(TRIES):
            seen[guess] = log(max(kl_of(exp(guess)), 1e-12))
            if abs(seen[guess] - goal) <= TOLERANCE:
                break
            guess = _on_line(seen, goal)
        found[level] = exp(_on_line(seen, goal))
    return found


def _on_line(seen: Mapping[float, float], goal: float) -> float:
    """The logarithm of the step whose KL lies at `goal`, by the two points that are nearest to it."""
    near = sorted(seen.items(), key=lambda point: abs(point[1] - goal))[:2]
    slope = _SLOPE
    if len(near) == 2:
        (a, kl_a), (b, kl_b) = near
        # Noise of the measurement must not turn the line around.
        slope = min(4.0, max(0.7, (kl_b - kl_a) / (b - a)))
    at, kl = near[0]
    return at + (goal - kl) / slope
