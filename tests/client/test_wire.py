"""Pieces framed by hand, conversions both ways, and generated code that is current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvstore
from kvstore import KVGroup, KVSpec, Part, pieces, wire, wire_listing
from kvstore.api import ChunkInfo, Event, PlacementInfo
from kvstore.channels.link import Address
from kvstore.v1 import kvstore_pb2 as pb

PROTO = Path(__file__).parents[2] / "proto"


def test_the_generated_code_is_current(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, "kvstore/v1/kvstore.proto"]
    subprocess.run(command, cwd=PROTO, check=True, timeout=60)
    for made in (tmp_path / "kvstore" / "v1").iterdir():
        assert made.read_text() == (PROTO / "kvstore" / "v1" / made.name).read_text(), f"run `make proto`: {made.name}"


@given(st.binary(min_size=1, max_size=70_000), st.integers(1, 20_000))
def test_pieces_are_what_protobuf_writes(data: bytes, size: int) -> None:
    messages = list(pieces.frames(memoryview(data), size))
    for kind in (pb.GetResponse, pb.PutRequest):
        parsed = [kind.FromString(each) for each in messages]
        assert b"".join(each.data for each in parsed) == data
        assert [each.SerializeToString() for each in parsed] == messages
    assert b"".join(pieces.unframe(each) or b"" for each in messages) == data


@pytest.mark.parametrize(
    "message",
    [
        b"", b"\x12", b"\x12\x05abc", b"\x12\x01ab", b"\x0a\x00", b"\x12" + b"\xff" * 11 + b"\x01",
        b"\x12\x01a\x12\x01b",
    ],
)  # fmt: skip
def test_any_other_message_is_left_to_protobuf(message: bytes) -> None:
    assert pieces.unframe(message) is None


def test_specs_travel_whole() -> None:
    spec = KVSpec(
        "model", "revision", "float8_e4m3fn", (KVGroup((0, 2), 8, 64, 4096), KVGroup((1,), latent_dim=576)),
        {"theta": 1e6, "factor": 0.1, "scaling": None, "type": "yarn", "short": [1.5, 2]}, 128, 2,
        ((0, 1), (1, 3)), ("layer", "kv", "head", "token", "dim"),
    )  # fmt: skip
    message = pb.Spec.FromString(wire.spec_to_message(spec).SerializeToString())
    assert wire.spec_from_message(message) == spec
    assert wire.spec_from_message(message).digest == spec.digest


def test_lists_and_events_travel_whole() -> None:
    part = Part(1, 2, (3, 4))
    place = PlacementInfo(part, "nvme", "lossless", 3, True, 1 << 40, 1 << 39)
    chunk = ChunkInfo(b"k" * 32, b"p" * 32, b"s" * 16, 512, 256, 7, 2, 1 << 41, 1 << 42, (place, place))
    assert wire_listing.chunk_from_message(wire_listing.chunk_to_message(chunk)) == chunk
    event = Event("moved", b"k" * 32, b"s" * 16, part, "dram", 1 << 41)
    assert wire_listing.event_from_message(wire_listing.event_to_message(event)) == event


@pytest.mark.parametrize(
    ("url", "target", "secure"),
    [
        ("127.0.0.1:7420", "127.0.0.1:7420", False),
        ("grpc://host:1", "host:1", False),
        ("grpcs://host:1/", "host:1", True),
        ("[::1]:7420", "[::1]:7420", False),
        ("unix:/run/kvstore.sock", "unix:/run/kvstore.sock", False),
    ],
)
def test_addresses(url: str, target: str, secure: bool) -> None:
    assert Address.parse(url) == Address(target, secure)


@pytest.mark.parametrize("url", ["", "host", "host:", ":7420", "http://host:1", "://host:1", "unix:", "host:port"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(kvstore.InvalidArgument, match="grpcs://HOST:PORT"):
        kvstore.connect(url)


def test_options_that_cannot_be() -> None:
    for options in ({"timeout": 0}, {"retries": -1}, {"cert": b"x"}, {"ca": "/nowhere"}, {"namespace": "-"}):
        with pytest.raises(kvstore.InvalidArgument):
            kvstore.connect("localhost:1", **options)
