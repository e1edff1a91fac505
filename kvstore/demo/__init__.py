"""The demonstration: a real model, a real document, a restart. See `kvstore.demo.main.run`."""

from __future__ import annotations

from kvstore.demo.main import run

__all__ = ["run"]
