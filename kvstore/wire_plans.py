"""Load or recompute as messages, both ways, with every number checked on its way in."""

from __future__ import annotations

from typing import Any

from kvstore.cost import REASONS, Plan, Prefill, Prompt
from kvstore.errors import SpecMismatch
from kvstore.v1 import kvstore_pb2 as pb


def prompt_to_message(prompt: Prompt) -> Any:
    """A `Prompt` message."""
    prefill = prompt.prefill
    return pb.Prompt(
        tokens=prompt.tokens,
        flops_per_token=prefill.flops_per_token,
        flops_per_token2=prefill.flops_per_token2,
        flops_per_s=prefill.flops_per_s,
        step_s=prefill.step_s,
        overlap=prompt.overlap,
        link_bytes_per_s=prompt.link_bytes_per_s,
    )


def prompt_from_message(message: Any) -> Prompt:
    """The inverse of `prompt_to_message`; `InvalidArgument` for figures that no engine has."""
    prefill = Prefill(message.flops_per_token, message.flops_per_token2, message.flops_per_s, message.step_s)
    return Prompt(message.tokens, prefill, message.overlap, message.link_bytes_per_s)


def plan_to_message(plan: Plan) -> Any:
    """A `Plan` message."""
    return pb.Plan(
        start=plan.start, end=plan.end, seconds=plan.seconds, recompute_s=plan.recompute_s, reason=plan.reason
    )


def plan_from_message(message: Any) -> Plan:
    """The inverse of `plan_to_message`. `SpecMismatch` where a server says what cannot be."""
    if message.start > message.end or message.reason >= len(REASONS):
        raise SpecMismatch(
            f"the server plans to load tokens {message.start} to {message.end}, for reason {message.reason}"
        )
    return Plan(message.start, message.end, message.seconds, message.recompute_s, message.reason)
