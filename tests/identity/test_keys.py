"""Keys: the same in every process, host and language, and different wherever the KV would be."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import InvalidArgument
from kvstore.keys import Chain, ChunkRef, Extras, check_key, pack_keys, pack_refs, unpack_keys

LORA = hashlib.sha256(b"adapter").digest()
IMAGE, OTHER_IMAGE = hashlib.sha256(b"image").digest(), hashlib.sha256(b"other").digest()


def test_prefix_keys_never_change() -> None:
    chain = Chain.of(range(10), 4)
    assert [ref.key.hex() for ref in chain.refs] == [
        "84f1c6bdc6e9c25ecb1b0bea0fe22a1c593e884355d556372b4bf3b427380aa5",
        "076326f799a5340da38efbe49a6c8b6ebac085dab4ee3cd64008bebdd4d73fd1",
        "7b76cd11112aa82b88dfbe577ba7facc731a2ef5420cbc236ae27d0401d9ed76",
    ]
    assert chain.extras.root().hex() == "c112f5a76592ac54977b3b78becd72a0d99aea93d372840dca7ca02b7565a0c4"


def test_keys_with_extras_never_change() -> None:
    extras = Extras(LORA, "tenant é", ((2, 4, IMAGE), (7, 1, OTHER_IMAGE)))
    chain = Chain.of(range(10), 4, extras)
    assert [ref.key.hex() for ref in chain.refs] == [
        "611dbc902bc59e7b017333ad6ca831153f2980e49a1f41840f53a731d210d9c4",
        "42d11e1aafbc2606274c567ed02b5d5964cd74e7da3becd882311d6c296851f6",
        "37c857485fe1912dee577e11cc0f1e478bb693790348f88a2934a38a9a7f885b",
    ]
    assert [chain.content_key(ref).hex() for ref in chain.refs] == [
        "02e944160ea46e95eeea3638856ffff8abed22d57509c23efcae79764cc3cef5",
        "c9db445648b54a82919f1241e2df0bf1dea7eca03dabb92bdfbe51ea46b75be4",
        "038952bdbaf42f04f08fe7be96e6ceccaf2bd96f55f2431d03d001629985722e",
    ]


def test_a_key_is_what_the_documentation_says() -> None:
    def u32(*numbers: int) -> bytes:
        return struct.pack(f"<{len(numbers)}I", *numbers)

    extras = Extras(b"L" * 3, "salt", ((1, 5, b"img"),))
    root = hashlib.sha256(b"kvstore/root/1\0" + u32(3) + b"LLL" + u32(4) + b"salt").digest()
    # The image covers positions 1 to 5: it begins one token into the first chunk and three before the second.
    first_body = u32(1) + struct.pack("<qI", 1, 5) + u32(3) + b"img" + u32(4) + u32(9, 8, 7, 6)
    second_body = u32(1) + struct.pack("<qI", -3, 5) + u32(3) + b"img" + u32(4) + u32(5, 4, 3, 2)
    third_body = u32(0) + u32(1) + u32(2**32 - 1)
    first = hashlib.sha256(b"kvstore/prefix/1\0" + root + first_body).digest()
    second = hashlib.sha256(b"kvstore/prefix/1\0" + first + second_body).digest()
    third = hashlib.sha256(b"kvstore/prefix/1\0" + second + third_body).digest()

    chain = Chain.of([9, 8, 7, 6, 5, 4, 3, 2, 2**32 - 1], 4, extras)
    assert chain.refs == (
        ChunkRef(first, root, 0, 4),
        ChunkRef(second, first, 4, 4),
        ChunkRef(third, second, 8, 1),
    )
    assert chain.content_key(chain.refs[1]) == hashlib.sha256(b"kvstore/content/1\0" + second_body).digest()


@pytest.mark.parametrize(
    "other",
    [
        Extras(lora=LORA),
        Extras(salt="s"),
        Extras(multimodal=((0, 4, IMAGE),)),
        Extras(multimodal=((0, 4, OTHER_IMAGE),)),
        Extras(multimodal=((0, 3, IMAGE),)),
        Extras(multimodal=((1, 3, IMAGE),)),
        Extras(lora=b"s"),
    ],
    ids=str,
)
def test_extras_keep_equal_tokens_apart(other: Extras) -> None:
    plain = [Extras(), Extras(lora=LORA[:31]), Extras(multimodal=((0, 2, IMAGE),))]
    keys = {Chain.of(range(4), 4, extras).refs[0].key for extras in (*plain, other)}
    assert len(keys) == 4


def test_an_image_changes_the_prefix_keys_from_its_first_chunk_on() -> None:
    one = Chain.of(range(16), 4, Extras(multimodal=((6, 4, IMAGE),))).refs
    two = Chain.of(range(16), 4, Extras(multimodal=((6, 4, OTHER_IMAGE),))).refs
    assert [a.key == b.key for a, b in zip(one, two, strict=True)] == [True, False, False, False]


def test_an_image_changes_the_content_keys_of_the_chunks_it_reaches_into() -> None:
    one = Chain.of(range(16), 4, Extras(multimodal=((2, 10, IMAGE),)))
    two = Chain.of(range(16), 4, Extras(multimodal=((2, 10, OTHER_IMAGE),)))
    same = [one.content_key(a) == two.content_key(b) for a, b in zip(one.refs, two.refs, strict=True)]
    # The second chunk holds nothing but the middle of the image.
    assert same == [False, False, False, True]


def test_a_content_key_stands_for_tokens_at_any_position() -> None:
    one, two = Chain.of([1, 2, 3, 4, 7, 8], 2), Chain.of([9, 9, 7, 8], 2)
    assert one.content_key(one.refs[2]) == two.content_key(two.refs[1])
    assert one.refs[2].key != two.refs[1].key


def test_a_tail_is_keyed_by_its_own_tokens() -> None:
    whole, cut = Chain.of(range(8), 4), Chain.of(range(6), 4)
    assert whole.refs[0] == cut.refs[0]
    assert (cut.refs[1].tokens, cut.refs[1].end) == (2, 6)
    assert whole.tails(4, 2) == (cut.refs[1],)
    assert [tail.tokens for tail in Chain.of(range(10), 10).tails(0, 3)] == [9, 6, 3]


@pytest.mark.parametrize("position", [1, 8, 100])
def test_there_are_no_tails_where_no_chunk_begins(position: int) -> None:
    assert Chain.of(range(8), 4).tails(position, 2) == ()


@pytest.mark.parametrize("kind", ["list", "int64", "uint8", "int32 strided"])
def test_keys_do_not_depend_on_how_the_tokens_are_held(kind: str) -> None:
    tokens = list(range(100, 120))
    held = {
        "list": tokens,
        "int64": np.array(tokens, np.int64),
        "uint8": np.array(tokens, np.uint8),
        "int32 strided": np.repeat(np.array(tokens, np.int32), 2)[::2],
    }[kind]
    assert Chain.of(held, 8).refs == Chain.of(np.array(tokens, "<u4"), 8).refs


def test_a_chain_is_frozen() -> None:
    tokens = np.arange(8, dtype=np.uint32)
    chain = Chain.of(tokens, 4)
    tokens[0] = 99
    assert chain.refs == Chain.of(range(8), 4).refs
    assert not chain.ids.flags.writeable


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        ([-5, 3], "-5"),
        ([2**32], "4294967296"),
        ([1.5], "float64"),
        ([[1, 2]], r"\(1, 2\)"),
        ([[1], [1, 2]], "one axis"),
        (["a"], "<U1"),
        ([True, False], "bool"),
    ],
)
def test_what_is_no_list_of_tokens_is_refused_with_its_value(tokens: list[int], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        Chain.of(tokens, 4)


def test_a_chunk_of_no_tokens_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not 0"):
        Chain.of([1], 0)


def test_no_tokens_make_no_chunks() -> None:
    assert Chain.of([], 4).refs == ()


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), bytearray(32), "k" * 32, None])
def test_a_key_has_32_bytes(key: bytes) -> None:
    with pytest.raises(InvalidArgument, match="a key is 32 bytes"):
        check_key(key)


keys = st.binary(min_size=32, max_size=32)
u32s = st.integers(0, 2**32 - 1)


@given(st.lists(st.builds(ChunkRef, keys, keys, u32s, u32s), max_size=5))
def test_packed_refs_come_back(refs: list[ChunkRef]) -> None:
    packed = pack_refs(refs)
    assert len(packed) == 40 * len(refs)
    assert list(struct.iter_unpack("<32sII", packed)) == [(ref.key, ref.position, ref.tokens) for ref in refs]


@given(st.lists(keys, max_size=5))
def test_packed_keys_come_back(several: list[bytes]) -> None:
    assert unpack_keys(pack_keys(several)) == several


@pytest.mark.parametrize("nbytes", [1, 39, 41])
def test_packed_lists_that_are_cut_off_are_refused(nbytes: int) -> None:
    with pytest.raises(InvalidArgument, match=str(nbytes)):
        unpack_keys(bytes(nbytes))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40), st.integers(1, 9), st.data())
def test_a_prefix_shares_the_keys_of_its_whole_chunks(tokens: list[int], size: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(tokens)))
    shared = cut // size
    assert Chain.of(tokens[:cut], size).refs[:shared] == Chain.of(tokens, size).refs[:shared]
    changed = [*tokens[:-1], tokens[-1] ^ 1]
    assert Chain.of(changed, size).refs[-1].key != Chain.of(tokens, size).refs[-1].key
