"""`kvstore put`, `get`, `rm`, `pin`, `unpin` and `hint`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from kvstore import Fidelity, arrays
from kvstore.cli.output import print_json, size
from kvstore.cli.payload import Array, read_json, read_parts, write_parts
from kvstore.cli.target import open_client
from kvstore.client import Client
from kvstore.errors import InvalidArgument, NotFound
from kvstore.keys import KEY_BYTES, Chain, ChunkRef
from kvstore.schema import parse_seconds
from kvstore.spec import KVSpec, Part

LEASE_S = 30.0


def put(args: Namespace) -> int:
    """Store the file's chunks."""
    spec = _spec(args)
    part = _part(spec, args)
    if args.key and not args.token_count:
        raise InvalidArgument("--key needs --token-count: how many tokens the chunk has")
    refs = [ChunkRef(_key(args.key), bytes(KEY_BYTES), 0, args.token_count)] if args.key else _refs(spec, args)
    parts = read_parts(args.file, spec, part, refs)
    with open_client(args, make=True) as client:
        new = [client.put(spec, ref, array, part=part, ack=args.ack) for ref, array in zip(refs, parts, strict=True)]
    nbytes = sum(array.nbytes for array in parts)
    result = {
        "keys": [ref.key.hex() for ref in refs],
        "stored": sum(new),
        "present": len(new) - sum(new),
        "bytes": nbytes,
    }
    known = "" if all(new) else "; the others were there already"
    _report(args, result, f"stored {sum(new)} of {len(new)} chunks ({size(nbytes)}){known}")
    return 0


def get(args: Namespace) -> int:
    """Read chunks into a file; exit 3 if there are none."""
    spec = _spec(args)
    part = _part(spec, args)
    with open_client(args) as client:
        found, refs = _read(client, spec, part, args)
    nbytes = write_parts(args.output, spec, part, found)
    tokens = sum(ref.tokens for ref in refs)
    result = {"keys": [ref.key.hex() for ref in refs], "tokens": tokens, "bytes": nbytes, "file": args.output}
    _report(args, result, f"read {tokens} tokens in {len(refs)} chunks ({size(nbytes)}) into {args.output}")
    return 0


def remove(args: Namespace) -> int:
    """Delete chunks; exit 3 if none was there."""
    spec, keys = _spec_and_keys(args)
    with open_client(args) as client:
        count = client.delete(spec, keys)
    return _counted(args, "deleted", count, keys)


def pin(args: Namespace) -> int:
    """Pin chunks; exit 3 if none was there."""
    spec, keys = _spec_and_keys(args)
    seconds = parse_seconds(args.seconds)
    with open_client(args) as client:
        count = client.pin(spec, keys, seconds)
    return _counted(args, "pinned", count, keys)


def unpin(args: Namespace) -> int:
    """Unpin chunks; exit 3 if none was there."""
    spec, keys = _spec_and_keys(args)
    with open_client(args) as client:
        count = client.unpin(spec, keys)
    return _counted(args, "unpinned", count, keys)


def hint(args: Namespace) -> int:
    """Say that a prompt has ended, or is awaited; exit 3 if nothing of it was there."""
    spec = _spec(args)
    chain = _chain(spec, args)
    seconds = parse_seconds(args.back_in) if args.back_in else None
    with open_client(args) as client:
        count = client.ended(spec, chain) if seconds is None else client.awaited(spec, chain, seconds)
    return _counted(args, "hinted", count, [ref.key for ref in chain.refs])


def _read(client: Client, spec: KVSpec, part: Part, args: Namespace) -> tuple[list[Array], list[ChunkRef]]:
    fidelity = Fidelity.LOSSY if args.lossy else Fidelity.EXACT
    if args.key or args.chunk is not None:
        refs = [_listed(client, spec, _key(args.key))] if args.key else _refs(spec, args)
        return [client.get(spec, ref, part=part, fidelity=fidelity, verify=True) for ref in refs], refs
    with client.lookup(spec, _chain(spec, args), parts=(part,), fidelity=fidelity, lease_s=LEASE_S) as hit:
        refs = list(hit.refs)
        if not refs:
            raise NotFound(f"no prefix of {args.tokens} is stored under this spec ({spec.digest.hex()})")
        found = [arrays.empty(spec, part, ref.tokens) for ref in refs]
        wants = [client.want(spec, ref, out, part=part) for ref, out in zip(refs, found, strict=True)]
        for outcome in client.get_many(spec, wants, fidelity=fidelity, verify=True):
            if outcome is not None:
                raise outcome
        return found, refs


def _listed(client: Client, spec: KVSpec, key: bytes) -> ChunkRef:
    """A chunk's reference by its key alone: its position and length are in the store's list."""
    for chunk in client.list():
        if (chunk.key, chunk.spec) == (key, spec.digest):
            return ChunkRef(key, chunk.parent, chunk.position, chunk.tokens)
    raise NotFound(f"no chunk {key.hex()} is stored under this spec ({spec.digest.hex()})")


def _spec(args: Namespace) -> KVSpec:
    data = read_json(args.spec, "the spec")
    if not isinstance(data, dict):
        raise InvalidArgument(f"the spec {args.spec} is not a JSON object of KVSpec's fields")
    return KVSpec.from_dict(data)


def _part(spec: KVSpec, args: Namespace) -> Part:
    if args.group >= len(spec.groups) or args.stage >= len(spec.pipeline):
        raise InvalidArgument(
            f"this spec has {len(spec.groups)} KV groups and {len(spec.pipeline)} pipeline stages; "
            f"--group {args.group} --stage {args.stage} is none of them"
        )
    part = spec.part(args.group, args.rank, args.stage)
    spec.check_part(part)
    return part


def _chain(spec: KVSpec, args: Namespace) -> Chain:
    tokens = read_json(args.tokens, "the token list")
    if not isinstance(tokens, list) or not tokens:
        raise InvalidArgument(f"{args.tokens} is not a JSON list of token ids")
    return Chain.of(tokens, spec.chunk_tokens)


def _refs(spec: KVSpec, args: Namespace) -> list[ChunkRef]:
    refs = list(_chain(spec, args).refs)
    if args.chunk is None:
        return refs
    if args.chunk >= len(refs):
        raise InvalidArgument(f"the prompt has {len(refs)} chunks, numbered from 0; there is no chunk {args.chunk}")
    return [refs[args.chunk]]


def _spec_and_keys(args: Namespace) -> tuple[KVSpec, list[bytes]]:
    spec = _spec(args)
    if args.key:
        return spec, [_key(text) for text in args.key]
    return spec, [ref.key for ref in _refs(spec, args)]


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InvalidArgument(f"{text!r} is no key: {2 * KEY_BYTES} hexadecimal digits, as kvstore ls prints them")
    return key


def _counted(args: Namespace, what: str, count: int, keys: Sequence[bytes]) -> int:
    _report(args, {what: count, "asked": len(keys)}, f"{what} {count} of {len(keys)} chunks")
    return 0 if count else NotFound.exit_code


def _report(args: Namespace, result: dict[str, object], text: str) -> None:
    if args.json:
        print_json(result)
    else:
        print(text)
