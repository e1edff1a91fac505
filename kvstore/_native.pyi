"""What kvstore does in C++: checksums, copies, the arena's allocator, the chunk index.

Buffers are C-contiguous and of any type (bytes, memoryview, NumPy array): TypeError for an object without
one, ValueError for one that is not contiguous or, as a destination, not writable. Functions over buffers
release the GIL for more than 64 KiB; methods of the classes hold it, so that each is atomic.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, TypedDict, final

import numpy as np
import typing_extensions
from numpy.typing import NDArray

# An ndarray is a Buffer to the type checker from Python 3.12 on.
Buffer: TypeAlias = typing_extensions.Buffer | NDArray[Any]

EXPORT_ITEMSIZE: int
"""Bytes of one record of `Index.export`; `kvstore.rows.EXPORT_DTYPE` has the fields."""

def append_record(
    fd: int,
    offset: int,
    generation: int,
    location: int,
    header: Buffer,
    payload: Buffer,
    stored: int,
    journal_fd: int,
    journal_offset: int,
    sequence: int,
    op: int,
    direct: bool,
) -> int:
    """Write a record into its segment, sealed for where it lies, and then its entry into the journal, without the GIL.

    0; -1 and nothing done if `direct` and the payload does not begin on a block boundary; or the system's error number
    where the record was written and the entry could not be. OSError if the record could not be written.
    """

def xxh3_128(buffer: Buffer) -> bytes:
    """XXH3-128 with seed 0: 16 bytes, canonical (big-endian). For integrity, not against attackers."""

def xxh3_64(buffer: Buffer) -> int:
    """XXH3-64 with seed 0."""

def xxh3_128_many(buffer: Buffer, offsets: Buffer, lengths: Buffer) -> NDArray[np.uint8]:
    """XXH3-128 of ranges of one buffer: uint8 [n, 16] for uint64 [n] offsets and lengths.

    Ranges may overlap and come in any order. ValueError for one that ends outside the buffer.
    """

def copy(dst: Buffer, src: Buffer) -> None:
    """Copy `src` to `dst`, past the cache from 256 KiB. ValueError if they overlap or differ in length."""

def copy_hash(dst: Buffer, src: Buffer) -> bytes:
    """`copy(dst, src)` and `xxh3_128(src)` in one pass; fastest when `dst` is aligned to 64 bytes."""

def copy_hash_many(dst: Buffer, src: Buffer, offsets: Buffer, lengths: Buffer) -> NDArray[np.uint8]:
    """Copy all of `src` to `dst` and hash ranges of it in the same pass: uint8 [n, 16].

    Ranges (uint64 [n] each) ascend and do not overlap; bytes between them are copied and not hashed.
    ValueError otherwise, or if the buffers overlap or differ in length.
    """

def split_bytes(dst: Buffer, src: Buffer, width: int) -> None:
    """Turn each element of 2 or 4 bytes left by one bit and write its bytes to byte planes, the highest first.

    ValueError for another width, lengths that differ or are no whole number of elements, or an overlap.
    """

def join_bytes(dst: Buffer, src: Buffer, width: int) -> None:
    """The inverse of `split_bytes`: from byte planes to elements."""

def quantize(
    method: str,
    dtype: str,
    shape: tuple[int, int, int, int, int],
    steps: tuple[int, int, int, int, int],
    raw: Buffer,
    body: Buffer,
) -> bool:
    """Quantize a frame: `int8`, `fp8`, `int4`, `kivi:4` or `kivi:2`, as the codecs of these names define.

    `shape` and `steps` (in elements) are [layer, plane, token, head, dim]. False, and nothing said by `body`, if a
    value is not finite or 2^100 and more. ValueError if anything does not fit together.
    """

def dequantize(
    method: str,
    dtype: str,
    shape: tuple[int, int, int, int, int],
    steps: tuple[int, int, int, int, int],
    body: Buffer,
    out: Buffer,
) -> bool:
    """The inverse. False, and nothing said by `out`, for parameters that no encoder writes."""

def lossless_encode(
    dtype: str, shape: tuple[int, int, int, int, int], steps: tuple[int, int, int, int, int], raw: Buffer
) -> bytes:
    """The body of a frame of the codec `lossless`; shape and steps as for `quantize`."""

def lossless_decode(
    dtype: str, shape: tuple[int, int, int, int, int], steps: tuple[int, int, int, int, int], body: Buffer, out: Buffer
) -> bool:
    """The inverse. False, and nothing said by `out`, for a body that no encoder makes."""

def lossless_freqs() -> bytes:
    """The built-in tables' frequencies, uint16 [16, 32]."""

def lossless_costs() -> bytes:
    """What their symbols cost in 1/256 bit, uint16 [16, 32]."""

def write_header(header: Buffer, fixed: Buffer, offsets: Buffer, lengths: Buffer, digests: Buffer) -> None:
    """Write a record's header in place: the fixed part, n layer groups, zeros, and its checksum (`kvstore.record`).

    `offsets` and `lengths` are uint64 [n], `digests` 16 bytes each. ValueError if they do not fit.
    """

def write_record(
    record: Buffer, header_bytes: int, fixed: Buffer, data: Buffer, offsets: Buffer, lengths: Buffer
) -> None:
    """Write a whole record in one pass: copy the payload behind its header, hash the layer groups, then the header.

    What the payload leaves of `record` is zeros. Ranges (uint64 [n] each) ascend and do not overlap. ValueError if
    anything does not fit.
    """

def read_record(out: Buffer, record: Buffer, header_bytes: int, spec: bytes, owner: bytes, item: bytes) -> bool:
    """Copy a whole raw part out of its record, whose header and checksums are checked on the way.

    False where it is not the part of `item` (packed) of a spec and a namespace (digests; no owner: any), not of the
    length of `out`, or damaged: `out` may hold anything then. The record may change meanwhile.
    """

def wrong_ref(refs: Buffer, chunk_tokens: int, end: int) -> int:
    """The first of packed look-up records without 1 to `chunk_tokens` tokens that end by `end`; -1 if there is none.

    ValueError for what is no multiple of 40 bytes.
    """

def address_of(buffer: Buffer) -> int:
    """Where the buffer's memory begins."""

FRAME_SENT: int
"""Outcomes of the calls below; this one is 0: all was sent, or read."""
FRAME_PARTIAL: int
"""No whole frame is there yet."""
FRAME_ENDED: int
"""The other side ended the stream between two frames."""
FRAME_LATE: int
"""The deadline has passed, or one wait was longer than `patience`."""
FRAME_CUT_OFF: int
"""The stream ended inside a frame."""
FRAME_NONE: int
"""What came is no frame."""
FRAME_DAMAGED: int
"""The message does not match its checksum."""
FRAME_TOO_LARGE: int
"""The head announces a message of more than `longest` bytes, or more than `MAX_PAYLOAD` bytes of payload."""
FRAME_TOO_MANY_DESCRIPTORS: int
"""More than `MAX_DESCRIPTORS` came that nobody took."""
FRAME_OVERSHOOT_S: float
"""By how much a wait may outlast its deadline."""
MAX_PAYLOAD: int
MAX_DESCRIPTORS: int

@final
class FileCrew:
    """Threads that work on a file system that may hang; whoever waits for them leaves after `seconds`.

    At most `threads` are at work, and `spare` more in the place of those that hang. Paths are bytes. Every method
    returns None when the time is up; what it began goes on, touches no memory of the caller's any more and puts no
    file in place that was not whole by then. `OSError` from the system.
    """

    def __init__(self, threads: int, spare: int) -> None: ...
    @property
    def hung(self) -> int:
        """Threads in calls that were left and have not returned."""
    def read(self, path: bytes, offset: int, out: Buffer, seconds: float) -> int | None:
        """Fill `out` from a file: the bytes that were read, fewer where it ends."""
    def write(self, beside: bytes, path: bytes, pieces: Iterable[Buffer], synced: bool, seconds: float) -> bool | None:
        """Write a file under the name `beside` and link it to `path`, making folders on the way.

        False, and nothing changed, where `path` exists. `synced`: file and folder survive power loss.
        """
    def heads(self, paths: Iterable[bytes], nbytes: int, seconds: float) -> list[bytes | None] | None:
        """The first bytes of each file, several at once; None for one that is not there."""
    def unlink(self, paths: Iterable[bytes], seconds: float) -> int | None:
        """Delete files, several at once: how many there were."""
    def entries(self, folder: bytes, seconds: float) -> list[tuple[bytes, int]] | None:
        """Names and sizes of the regular files in a folder, and its folders with -1."""
    def close(self) -> None:
        """End the threads that do not hang. A call that is under way is finished first."""

@final
class Frame:
    """What came: `payload` bytes follow it on the stream and must be read before the next frame."""

    method: int
    flags: int
    message: bytes
    payload: int
    def __init__(self, method: int, flags: int, message: bytes, payload: int) -> None: ...

def encode_frame(method: int, message: Buffer, flags: int, payload: int) -> bytes:
    """Head and message of a frame that `payload` bytes follow."""

def peer_has_ended(fd: int) -> bool:
    """Whether the other side of a socket has closed the connection by now."""

@final
class FrameBuffer:
    """Bytes that were received in any pieces, and the frames in them."""

    def __init__(self) -> None: ...
    def next(self, longest: int) -> Frame | int:
        """The next frame, its message of `longest` bytes at most; or what is in its way."""

    def feed(self, data: Buffer) -> None:
        """Add what came, `room` bytes at most, after `next` has said FRAME_PARTIAL; ValueError for more."""

    def take(self, out: Buffer) -> int:
        """Move payload that came behind a frame to the front of `out`: how many bytes."""

    @property
    def held(self) -> int:
        """Bytes that came and are in no frame yet."""

    @property
    def room(self) -> int: ...
    @property
    def announced(self) -> tuple[int, int]:
        """Bytes of message and of payload that the last head spoke of."""

@final
class FrameSocket:
    """Frames over a plain stream socket, whose owner keeps it open until `forget`.

    Waits without the GIL, until `deadline` on the clock of `time.monotonic` (None: `patience` seconds for each wait).
    OSError where the socket fails, RuntimeError where two threads use it at once.
    """

    def __init__(self, fd: int, takes_descriptors: bool) -> None: ...
    def send(
        self,
        method: int,
        message: Buffer,
        flags: int,
        payload: Iterable[Buffer],
        descriptors: Iterable[int],
        deadline: float | None,
        patience: float,
    ) -> int:
        """Send one frame and its payload, descriptors along with it."""

    def send_raw(
        self, pieces: Iterable[Buffer], descriptors: Iterable[int], deadline: float | None, patience: float
    ) -> int:
        """Send bytes as they are."""

    def receive(self, deadline: float | None, patience: float, idle: bool, longest: int) -> Frame | int:
        """The next frame. With `idle` its first byte may take longer than `patience`."""

    def serve(self, puts: StagedPuts | None, gets: PartSource | None, patience: float, longest: int) -> Frame | int:
        """`receive` with `idle` and without a deadline; what `puts` and `gets` can answer is answered meanwhile."""

    def exchange(
        self, method: int, message: Buffer, ahead: Buffer, deadline: float | None, patience: float, longest: int
    ) -> Frame | int:
        """Send `ahead` and a frame without payload, and receive the next frame."""

    def fill(
        self, method: int, message: Buffer, out: Buffer, deadline: float | None, patience: float, longest: int
    ) -> Frame | int:
        """`exchange` for an answer whose payload fills `out`: 0 where it has just as much of it, which was read."""

    def fetch(
        self,
        method: int,
        message: Buffer,
        part: RawPart,
        item: bytes,
        out: Buffer,
        deadline: float | None,
        patience: float,
        longest: int,
    ) -> list[int] | Frame | int:
        """`exchange` for a get of `part` of `item` (packed): read and hash its payload if that is what is announced.

        Gives the layer groups that came damaged. ValueError where `out` has not the part's length.
        """

    def read(self, out: Buffer, deadline: float | None, patience: float) -> int:
        """Read payload, exactly as much as fits."""

    def take_descriptor(self) -> int:
        """The next descriptor that came, which is the caller's now; -1 if there is none."""

    def drop_descriptors(self) -> None:
        """Close those that nobody has taken."""

    def forget(self) -> None:
        """The socket is closed: calls fail with EBADF."""

    @property
    def sent(self) -> bool:
        """Whether the last `exchange` has sent all it had to."""

    @property
    def held(self) -> int:
        """Bytes that came and are in no frame yet."""

    @property
    def announced(self) -> tuple[int, int]:
        """Bytes of message and of payload that the last head spoke of."""

def simd_level() -> Literal["avx512", "avx2", "portable"]:
    """The instruction set in use, by default the best that the processor has."""

def set_simd_level(name: str) -> None:
    """Use another instruction set, for tests. ValueError for one that the processor lacks."""

class PagedLayers:
    """Layers of an engine's paged KV cache, copied to and from a chunk's part `[layer][plane][token][head][dim]`.

    `layers` are uint8 `[block, bytes of a block]`, each block one piece. How the bytes of a block lie is said in
    regions of equal size, each of one plane, and in units of `unit_bytes`: unit u of region r belongs
    `bases[r] + tables[kinds[r]][u]` bytes after the row of the block's first token in plane `planes[r]`. ValueError
    where that does not fit a block.
    """

    def __init__(
        self,
        layers: list[NDArray[np.uint8]],
        *,
        block_tokens: int,
        row_bytes: int,
        planes_per_layer: int,
        unit_bytes: int,
        planes: Sequence[int],
        bases: Sequence[int],
        kinds: Sequence[int],
        tables: Sequence[Sequence[int]],
    ) -> None: ...
    def read(self, table: Sequence[int], first: int, part: Buffer) -> None:
        """Copy the blocks of `table` into a part, from its block `first` on; zeros for a block of -1.

        IndexError for a block that there is not, ValueError for a part that is not whole tokens or ends before the
        last block does.
        """

    def write(self, table: Sequence[int], first: int, part: Buffer) -> None:
        """The inverse of `read`; every block must be one."""

def populate(buffer: Buffer) -> None:
    """Bring each page of a writable mapping into being, keeping what it holds. OSError if memory ends."""

def populate_read(buffer: Buffer) -> None:
    """Enter the pages of a mapped file into this process's page table ahead of use."""

def map_file(fd: int, nbytes: int, writable: bool = False) -> NDArray[np.uint8]:
    """A file's first `nbytes` bytes, shared: uint8 [nbytes], read-only unless `writable`.

    It needs no descriptor, and is unmapped when neither the array nor a view of it is left. OSError if the file
    cannot be mapped.
    """

def map_aligned(fd: int, nbytes: int, alignment: int = 4096, sync: bool = False) -> tuple[NDArray[np.uint8], bool]:
    """A file's first `nbytes` bytes, shared and writable, or memory of this process alone (-1): uint8 [nbytes].

    It begins at a multiple of `alignment`, a power of two; no page is brought into being. `sync` asks for MAP_SYNC;
    the second value tells whether the file has it. Unmapped as `map_file` is. OSError if it cannot be mapped.
    """

def bind_to_node(buffer: Buffer, node: int, strict: bool = True) -> None:
    """Have pages of a mapping come into being on a NUMA node, or near it unless `strict`. OSError if refused."""

def node_of(buffer: Buffer) -> int:
    """The NUMA node of the first page of writable memory, which is brought into being."""

def advise_huge(buffer: Buffer) -> None:
    """Ask for huge pages where pages of a mapping come into being. OSError from a kernel without them."""

def collapse_huge(buffer: Buffer) -> None:
    """Make huge pages of a piece of a mapping now, whatever the system's settings. OSError where that fails."""

def lock_memory(buffer: Buffer) -> None:
    """Keep a mapping in memory, and bring it there. OSError if the process may not lock so much."""

def persist(buffer: Buffer) -> None:
    """Write a piece of a mapping back from the processor's caches, before anything that is stored from then on."""

RECORD_SLOT_BYTES: int
"""Bytes of a slot of a persistent `StripedMemory`."""
MAX_STRIPED_DEVICES: int
STRIPED_NO_ROOM: int
"""Instead of a location: no room on the devices."""
STRIPED_NO_SLOT: int
"""As many records as there can be."""
STRIPED_CLOSED: int
"""After `close`."""
STRIPED_MISSING: int
"""Outcomes of a read; 0 is done. This one: no such record."""
STRIPED_BEYOND: int
"""The record ends before what is asked for."""
STRIPED_SHUT: int
"""After `close`."""

class _Restored(TypedDict):
    valid: NDArray[np.uint32]
    unused: list[tuple[int, int, int]]
    torn: int
    damaged: int
    overlapping: int

@final
class StripedMemory:
    """Records striped over the memory of several devices (`kvstore.tiers.cxl`).

    A record lies in turns of `unit` bytes, times each device's units, on the `devices`; there are `records` at most.
    Copies of 1 MiB and more are made by this thread and `helpers` more, while
    that is a fifth faster. `slots`, RECORD_SLOT_BYTES for each record,
    make them persistent; `flush` writes all back from the processor's caches. All memory counts as taken until
    `release`. Ranges are (device, offset, bytes), traffic is (bytes, nanoseconds, records): the first two of transfers
    of 64 KiB and more. ValueError for what does not fit together.
    """

    def __init__(
        self,
        devices: list[Any],
        records: int,
        unit: int,
        helpers: int,
        slots: Buffer | None = None,
        flush: bool = False,
    ) -> None: ...
    def restore(self) -> _Restored:
        """Take over what the slots hold: numbers of valid ones, unused ranges, and how many records were dropped."""

    def release(self, device: int, offset: int, nbytes: int) -> None:
        """Let records lie there from now on."""

    def set_units(self, units: Sequence[int]) -> None:
        """How many units in a row lie on each device, of records that are written from now on."""

    def always_help(self) -> None:
        """Use helpers for every copy of 1 MiB and more, and not only while that is measurably faster."""

    @property
    def helped(self) -> bool:
        """Whether the next large copy is made with helpers."""

    def write(self, header: bytes, payload: Buffer, stored: int) -> int:
        """The location of a new record (a header of whole blocks, `stored` bytes, zeros), or STRIPED_NO_…"""

    def read(self, location: int, offset: int, out: Buffer) -> int:
        """Fill `out` from a record; 0, or STRIPED_…"""

    def read_many(self, requests: Sequence[tuple[int, int, Buffer]]) -> list[int]:
        """`read` for each (location, offset, out), in one go."""

    def remove(self, location: int) -> bool:
        """Forget a record; False if it is not there."""

    def where(self, location: int, offset: int, nbytes: int) -> list[tuple[int, int, int]]:
        """The ranges that a range of a record lies on, in order; none if it is not there."""

    def scan(self, out: Buffer, devices: Sequence[int]) -> int:
        """Fill `out` from the beginnings of some devices, a unit of each in turn: in so many nanoseconds."""

    def close(self) -> None:
        """Refuse everything from now on, wait for what is under way, and let the memory go."""

    @property
    def used(self) -> int: ...
    @property
    def records(self) -> int: ...
    @property
    def reads(self) -> tuple[int, int, int]: ...
    @property
    def writes(self) -> tuple[int, int, int]: ...
    @property
    def samples(self) -> list[tuple[int, int, int]]:
        """Traffic of each device, both directions: one transfer in 64."""

@final
class Xxh3_128:
    """XXH3-128 of bytes that arrive in pieces."""

    def __init__(self) -> None: ...
    def update(self, buffer: Buffer) -> None:
        """Add the next bytes. Not to be called from two threads at once."""

    def digest(self) -> bytes:
        """The hash of all bytes so far, as `xxh3_128` gives it."""

@final
class TransformPlan:
    """How frames of the transform codec are coded (`kvstore.codecs.transform.plan.Plan`), laid out for native loops.

    `freqs` uint16 [n, 256]; per column `tables` and `shift` uint8, `rounding` float32. `sections` are (first column,
    matrix int8 [channels, live], scale float32 [channels], mean float32 [channels], forward float32 [live, channels]);
    `rotary` per layer (pairs, first channel, whether they are neighbours). ValueError where these do not fit.

    A block's elements have `strides` for layer, plane, token, head, dim, in elements; `tables` are per layer the
    cosines and sines float32 [tokens - sinks, pairs], for `encode` those of the inverse rotation.
    """

    def __init__(
        self,
        freqs: Buffer,
        tables: Buffer,
        shift: Buffer,
        rounding: Buffer,
        sections: list[tuple[int, Buffer, Buffer, Buffer, Buffer]],
        rotary: list[tuple[int, int, bool]],
        planes: int,
        heads: int,
        dim: int,
    ) -> None: ...
    def decode(
        self,
        body: Buffer,
        out: Buffer,
        dtype: str,
        tokens: int,
        sinks: int,
        strides: tuple[int, int, int, int, int],
        tables: list[tuple[Buffer, Buffer]],
    ) -> bool:
        """False for a body that no encoder makes; what `out` then holds says nothing."""

    def encode(
        self,
        data: Buffer,
        dtype: str,
        tokens: int,
        sinks: int,
        strides: tuple[int, int, int, int, int],
        tables: list[tuple[Buffer, Buffer]],
    ) -> bytes:
        """ValueError for NaN or infinity, and for values too far from the mean."""

@final
class RansBank:
    """Tables of the entropy coder, prepared for both directions; `kvstore.codecs.rans` says what they mean.

    `freqs` is uint16 [n, 256]; ValueError unless n is 1 to 256 and each table sums to 4096. The number of tokens is
    that of `symbols` or `out` for the columns that `tables` (uint8 [columns]) has; ValueError where they do not fit or
    a column's table is not in the bank. Decoding gives False for a stream that no encoder makes.
    """

    def __init__(self, freqs: Buffer) -> None: ...
    @property
    def tables(self) -> int:
        """How many."""

    def encode(self, symbols: Buffer, tables: Buffer) -> bytes:
        """The stream of uint8 [tokens, columns]. ValueError for a symbol without a frequency in its table."""

    def decode(self, data: Buffer, tables: Buffer, out: Buffer) -> bool:
        """Symbols into `out`, uint8 [tokens, columns]."""

    def decode_levels(self, data: Buffer, tables: Buffer, out: Buffer) -> bool:
        """`symbol - 128` into `out`, int16 [tokens, columns]."""

    def dequantize(self, data: Buffer, tables: Buffer, scale: Buffer, mean: Buffer, out: Buffer, dtype: str) -> bool:
        """`scale * (symbol - 128) + mean` (float32 [columns] each) into `out`, `bfloat16`, `float16` or `float32`."""

@final
class CacheGenBank:
    """The entropy coder's tables of the codec cachegen, and its frames; `kvstore.codecs.cachegen` says what they mean.

    `freqs` is uint16 [n, 256]; ValueError unless n is 1 to 256 and each table sums to 4096. A view is a `dtype`
    (`bfloat16`, `float16`, `float32`), and `shape` and `strides` [plane, token, head, dim] in elements. `floats` is
    float32 [9, columns], `tables` uint8 [2, columns]. ValueError for what does not fit together.
    """

    def __init__(self, freqs: Buffer) -> None: ...
    def encode(
        self,
        raw: Buffer,
        dtype: str,
        shape: tuple[int, int, int, int],
        strides: tuple[int, int, int, int],
        group: int,
        first: int,
        floats: Buffer,
        tables: Buffer,
    ) -> bytes | None:
        """The body; None where there is NaN, infinity or a magnitude of 2^100 and more."""

    def decode(
        self,
        body: Buffer,
        out: Buffer,
        dtype: str,
        shape: tuple[int, int, int, int],
        strides: tuple[int, int, int, int],
        group: int,
        floats: Buffer,
        tables: Buffer,
    ) -> bool:
        """Decode into `out`; False for a body that no encoder makes."""

@final
class Allocator:
    """Best-fit allocator over the offsets of one extent; it keeps the holes only, outside the extent."""

    def __init__(self, capacity: int, granularity: int = 4096) -> None:
        """`capacity` in bytes is rounded down to the granularity, sizes are rounded up to it."""

    def alloc(self, nbytes: int) -> int:
        """The offset of `nbytes` bytes, or -1 when no hole is large enough. ValueError for 0 bytes."""

    def free(self, offset: int, nbytes: int) -> None:
        """Give back what `alloc(nbytes)` gave. ValueError when misaligned, out of range, or free already."""

    @property
    def capacity(self) -> int: ...
    @property
    def granularity(self) -> int: ...
    @property
    def used(self) -> int: ...
    @property
    def free_bytes(self) -> int: ...
    @property
    def largest_hole(self) -> int: ...
    @property
    def holes(self) -> int:
        """How many holes there are."""

@final
class Chunk:
    """A chunk's row as it was when it was read."""

    @property
    def key(self) -> bytes: ...
    @property
    def parent(self) -> bytes: ...
    @property
    def scope(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def leases(self) -> int: ...
    @property
    def hits(self) -> int: ...
    @property
    def pin_until(self) -> int: ...
    @property
    def last_use(self) -> int: ...
    @property
    def flags(self) -> int: ...

@final
class Part:
    """A part's row as it was when it was read."""

    @property
    def chunk(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def layer_start(self) -> int: ...
    @property
    def layer_end(self) -> int: ...
    @property
    def first_valid(self) -> int: ...
    @property
    def logical(self) -> int: ...

@final
class Placement:
    """A placement's row as it was when it was read."""

    @property
    def part(self) -> int: ...
    @property
    def tier(self) -> int: ...
    @property
    def exact(self) -> bool: ...
    @property
    def codec(self) -> int: ...
    @property
    def level(self) -> int: ...
    @property
    def loc(self) -> int: ...
    @property
    def stored(self) -> int: ...
    @property
    def readers(self) -> int: ...

@final
class Index:
    """Chunks, their parts and where these lie, in rows of fixed size (260 bytes a chunk in two tiers).

    Row numbers are reused after a removal. Every method raises IndexError for a row that is not there (-1
    included) and ValueError for a key that has not 32 bytes. Arrays of rows are int64 or uint32. Times are
    milliseconds since 1970.
    """

    def __init__(self, max_chunks: int, secret: int, max_parts: int = 0, max_placements: int = 0) -> None:
        """Tables for so many rows (0: 2 parts and 4 placements a chunk); pages are taken when first used.

        `secret` is a random number below 2**64 that keeps clients from making keys collide in the hash table.
        """

    def find(self, scope: int, key: bytes) -> int:
        """The chunk's row, or -1."""

    def find_many(self, scope: int, keys: Buffer) -> NDArray[np.int64]:
        """The rows of n keys packed one after another, -1 for those missing."""

    def insert_chunk(self, scope: int, key: bytes, parent: bytes, position: int, tokens: int, now_ms: int) -> int:
        """The row of the chunk, added if it is new. ValueError if known with another position or length.

        OverflowError when the index is full, as in `add_part` and `add_placement`.
        """

    def add_part(
        self,
        chunk: int,
        group: int,
        rank: int,
        layer_start: int,
        layer_end: int,
        first_valid: int,
        logical: int,
    ) -> int:
        """The part's row, added if it is new; a known part is left as it is."""

    def insert(
        self,
        scope: int,
        key: bytes,
        parent: bytes,
        position: int,
        tokens: int,
        now_ms: int,
        group: int,
        rank: int,
        layer_start: int,
        layer_end: int,
        first_valid: int,
        logical: int,
        tier: int,
        codec: int,
        level: int,
        exact: bool,
        loc: int,
        stored: int,
    ) -> tuple[int, int, int]:
        """`insert_chunk`, `add_part` and `add_placement` in one: the chunk, the part's first_valid, the placement.

        The placement is -1, and nothing was added, where the part has one in that tier already or is known with
        another first_valid. When the index is full nothing is left of it.
        """

    def find_part(self, chunk: int, group: int, rank: int, layer_start: int, layer_end: int) -> int:
        """The part's row, or -1."""

    def add_placement(self, part: int, tier: int, codec: int, level: int, exact: bool, loc: int, stored: int) -> int:
        """A new placement's row. ValueError if the part has one in that tier."""

    def find_placement(self, part: int, tier: int) -> int:
        """The row of the part's placement in a tier, or -1."""

    def best_placement(self, part: int, exact_only: bool, tier_order: bytes) -> int:
        """The placement in the first of these tiers that has an acceptable one, or -1."""

    def remove_placement(self, placement: int) -> int:
        """Remove a placement: 1 if its part, 3 if its part and chunk went with it, else 0.

        A part goes with its last placement, a chunk with its last part unless it is leased: then `unlease`
        removes it. ValueError while the placement has readers.
        """

    def prune(self, chunk: int) -> bool:
        """Remove the parts that have no placement, then the chunk if it has no part and no lease.

        For undoing an `insert_chunk` or `add_part` that came to nothing. True if the chunk was removed.
        """

    def chunk(self, row: int) -> Chunk: ...
    def part(self, row: int) -> Part: ...
    def placement(self, row: int) -> Placement: ...
    def chunk_parts(self, chunk: int) -> list[int]: ...
    def part_placements(self, part: int) -> list[int]: ...
    def set_loc(self, placement: int, loc: int, stored: int) -> None: ...
    def add_reader(self, placement: int) -> None: ...
    def drop_reader(self, placement: int) -> None:
        """ValueError if the placement has no reader."""

    def set_flags(self, chunk: int, flags: int) -> None:
        """Flags are gone with the chunk. `HIDDEN` keeps it out of the shared table; the rest is the caller's."""

    def pin(self, chunk: int, until_ms: int) -> None:
        """Hold off eviction until then; 0 unpins."""

    def lease(self, rows: Buffer) -> None:
        """Add a lease to each chunk; a row that comes twice gets two. All or nothing."""

    def unlease(self, rows: Buffer) -> list[int]:
        """Take a lease from each chunk; the rows of empty chunks that were removed with their last one.

        ValueError, and nothing changed, for a chunk that has fewer leases than are taken.
        """

    def touch(self, rows: Buffer, now_ms: int) -> None:
        """Set the chunks' last use and count a hit for each."""

    def lookup(
        self, scope: int, refs: Buffer, parts: Buffer, exact_only: bool, now_ms: int
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint32]]:
        """Which of n chunks are there, and which of p parts each has.

        Gives rows [n], present [p, n] and first_valid [p, n].

        `refs` are packed records of 40 bytes (`kvstore.rows.REF_DTYPE`), `parts` of 8 (`PART_DTYPE`). A chunk
        known with another position or length counts as missing (-1). `present` is 1 where the part has a
        placement, an exact one if `exact_only`; `first_valid` is 0 where there is no such part. Chunks found
        get `now_ms` as their last use unless it is 0; hits are counted by `touch` alone.
        """

    def find_items(
        self,
        scope: int,
        items: Buffer,
        parts: Buffer,
        headers: Buffer,
        exact_only: bool,
        tier_order: bytes,
        skip: Buffer,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], bytes, int]:
        """The chunk, the best placement and the place of each of n items, and how many lie in the first tier.

        `items` are packed records of 48 bytes, a chunk of 40 as for `lookup` and a part of 8. `parts` are the
        parts there may be and `headers` (uint32) the length of the header before each one's payload. Chunk [n] and
        placement [n] are -1 where no tier of `tier_order` has an acceptable placement: of this chunk, of one of
        these parts, exact if `exact_only`, and none of the rows in `skip`. The places are n records of
        `kvstore.places.PLACE_DTYPE`, `NOWHERE` for what is not in the first tier.
        """

    def places(self, rows: Buffer, parts: Buffer, headers: Buffer, exact_only: bool, tier: int, skip: Buffer) -> bytes:
        """Where each of p parts of n chunks lies in a tier: n times p records of `kvstore.places.PLACE_DTYPE`."""

    def stored(
        self, rows: Buffer, parts: Buffer, headers: Buffer, needed_from: Buffer, exact_only: bool, tier_order: bytes,
        skip: Buffer,
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint64], NDArray[np.uint8], NDArray[np.uint16]]:  # fmt: skip
        """What is read to have each of n chunks: tokens, stored bytes, tier and form.

        Of each part the copy in the fastest tier that has one counts, in `tier_order`; the tier and form told are those
        of the slowest among them. A part is not read of chunks that end at or before its token of `needed_from` (u32).
        """

    def add_readers(self, placements: Buffer) -> None:
        """Add a reader to each placement. All or nothing."""

    def drop_readers(self, placements: Buffer) -> None:
        """Take a reader from each placement. ValueError, and nothing changed, if one has fewer than are taken."""

    def touch_unleased(self, rows: Buffer, now_ms: int) -> NDArray[np.uint32]:
        """`touch` those chunks that nobody has leased: their rows, in order."""

    def publish_to(self, scope: int, table: SharedTable, spec: bytes, parts: int) -> None:
        """Keep in a table, from now on, the chunks of a scope that have so many parts in exact copies.

        Those with the flag `HIDDEN` are left out. `spec` is the spec's digest, `parts` the number of its parts.
        ValueError if the scope is published already.
        """

    def publish_rows(self, start_row: int, limit: int) -> int:
        """Enter what was there before: at most `limit` live chunks, and the row to go on from (-1 at the end)."""

    def export(self, tier: int) -> NDArray[np.uint8]:
        """Every placement of a tier with its part and chunk: records to `view(kvstore.rows.EXPORT_DTYPE)`."""

    def bulk_insert(self, records: Buffer, tier: int) -> NDArray[np.uint32]:
        """Add exported records as placements of `tier` (their own tier is ignored): the placements' rows.

        0xFFFFFFFF for a record that was skipped: its part has a placement in the tier already, or its chunk
        is known with another position or length. OverflowError, and nothing changed, if they do not all fit.
        """

    def counts(self) -> tuple[int, int, int]:
        """Live chunks, parts and placements."""

    def chunks(self, start_row: int, limit: int) -> tuple[NDArray[np.uint32], int]:
        """At most `limit` live chunk rows from `start_row` on, and the row to go on from (-1 at the end)."""

    def idle_chunks(
        self, start_row: int, count: int, limit: int, before_ms: Sequence[int]
    ) -> tuple[NDArray[np.uint32], int]:
        """Chunks used last before the time that `before_ms` has for their scope (0: never), of `count` rows.

        At most `limit` from `start_row` on, and the row to go on from (-1 at the end).
        """

    def resident_bytes(self) -> int:
        """Bytes of the tables in use: rows up to the highest ever used, and the hash table."""

    def chunk_evictable(self, row: int, now_ms: int) -> bool:
        """True without leases, an active pin, or a placement with readers."""

HIDDEN: int
"""The flag of a chunk that readers of a shared table do not see."""

@final
class SharedTable:
    """The whole chunks of one namespace in a sealed memfd that its clients map; see `SharedTableReader`.

    For chunks of one part whose placement in tier 0 is exact and raw it says where that lies, too.

    Readers ask elsewhere until `open`, after `close`, and when the last `beat` is 2 seconds old.
    """

    def __init__(self, entries: int) -> None:
        """Room for so many chunks, 32 to 64 bytes each, taken at once. OSError if memory ends."""

    def open(self) -> None:
        """From now on the table says all."""

    def withhold(self) -> None:
        """Until it is opened again readers ask for everything."""

    def close(self) -> None:
        """From now on the table says nothing."""

    def beat(self) -> None:
        """Note that the server is alive."""

    def set_extents(self, epoch: int) -> None:
        """Tell readers to ask about extents, by a number that is not the one before."""

    def fileno(self) -> int:
        """The memfd, open as long as this object is."""

    @property
    def nbytes(self) -> int:
        """Length of the memfd."""

    def used_by(self, index: Index, marks: Buffer) -> tuple[NDArray[np.uint32], int, int]:
        """What a client's marks say: rows of the chunks, in order; tokens of those found, and how many were read.

        Numbers that stand for no chunk are passed over. `index` is the one that is published to this table.
        """

    @property
    def overflowed(self) -> int:
        """Chunks that found no free slot. While there are any, readers ask elsewhere about what they miss."""

@final
class SharedTableReader:
    """A shared table in another process (or this one). The descriptor may be closed once this is made."""

    def __init__(self, fd: int, nbytes: int) -> None:
        """ValueError for a descriptor that is no shared table of this length, OSError if it cannot be mapped."""

    def lookup(self, spec: bytes, refs: bytes) -> tuple[int, range | list[int], list[bool]] | None:
        """How far a prompt reaches: (token, indexes of the refs used, one flag per ref), as `kvstore.walk` says it.

        None where only the server can say: it is gone or about to begin, a ref is missing while the table is
        overflowed, `refs` is no multiple of 40 bytes, or this reader is closed. ValueError for a digest that has
        not 16 bytes.
        """

    @property
    def extents(self) -> int:
        """What the server last gave to `set_extents`; 0 before, and once this is closed."""

    def close(self) -> None:
        """Unmap the table, when calls in other threads have returned."""

HAZARD_TABLE_BYTES: int
"""Length of every hazard table."""

MAX_HAZARDS: int
"""How many hazards a table has room for."""

MAX_MARKS: int
"""How many marks it has room for."""

@final
class HazardTable:
    """A client's notes of what it reads in the arena, in a memfd that it shares with the server.

    Any thread may call. Nothing is taken once the connection `anchor` has an end, or something to be read.
    """

    def __init__(self, anchor: int) -> None:
        """Make and seal one. `anchor` is a descriptor that stays open until `end`. OSError if memory ends."""

    def fileno(self) -> int:
        """The memfd, open until `close_descriptor`; -1 after that."""

    def close_descriptor(self) -> None:
        """Close the memfd, which stays mapped."""

    def take(
        self,
        index: SharedTableReader,
        spec: bytes,
        refs: bytes,
        until: int,
        header: int,
        token_bytes: int,
        all: bool = False,
    ) -> tuple[int, range | list[int], list[bool], bytes, bytes] | None:
        """`SharedTableReader.lookup`, and hazards on all that the prompt uses: their numbers (u32), their places.

        Places are packed as `kvstore.places` says, for records with a `header` of so many bytes and `token_bytes`
        of payload for each token. `until` is in milliseconds of CLOCK_MONOTONIC. None, and nothing held, where only
        the server can say or hold it all; with `all` also where anything is missing.
        """

    def take_each(
        self, index: SharedTableReader, spec: bytes, refs: bytes, until: int, header: int, token_bytes: int
    ) -> tuple[bytes, bytes] | None:
        """Hazards on those of some chunks that can be read: their numbers, and one place for every chunk.

        A place is `NOWHERE` where only the server can read. None, and nothing held, if it is so for all.
        """

    def release(self, numbers: bytes) -> None:
        """Let hazards go; numbers that are not held are passed over."""

    def end(self) -> None:
        """Take and release nothing any more."""

    @property
    def is_honoured(self) -> bool:
        """Whether the server has honoured every hazard until now; what was read before was read before."""

    @property
    def held(self) -> int:
        """How many hazards are held."""

@final
class HazardBoard:
    """A client's hazard table as the server sees it. The descriptor may be closed once this is made.

    It may say anything at any time, and is believed only as far as that harms nobody else.
    """

    def __init__(self, fd: int) -> None:
        """Map a memfd of `HAZARD_TABLE_BYTES` that cannot shrink. OSError if it cannot be mapped for writing."""

    def honour(self) -> None:
        """Tell the client that what it notes is looked for from now on."""

    def end(self) -> None:
        """Tell the client that it is not looked for any more."""

    def holds(self, location: int) -> bool:
        """Whether the record at a location is being read. To be asked after the shared table was changed."""

    def locations(self) -> list[int]:
        """The locations of all records that are being read, as the client says."""

    def drain(self, limit: int) -> NDArray[np.uint32]:
        """At most `limit` marks that were not given before, oldest first, for `SharedTable.used_by`."""

    @property
    def lost(self) -> int:
        """Marks that the client found no room for, as it says."""

@final
class Mutex:
    """A lock that native code takes, too; waits for it without the GIL. RuntimeError to release what nobody holds."""

    awaited: int
    """How many threads wait on a condition of this lock; it guards the number."""

    def __init__(self) -> None: ...
    def acquire(self, blocking: bool = True) -> bool: ...
    def release(self) -> None: ...
    def locked(self) -> bool: ...
    def __enter__(self) -> bool: ...
    def __exit__(self, *error: object) -> None: ...

@final
class Holdings:
    """The extents of one namespace, for Python and native code to allocate from. `lock` is theirs.

    All but `wait_for_users` need it. An extent's memory and allocator must outlive its place in here.
    """

    def __init__(self, lock: Mutex) -> None: ...
    def add(self, number: int, memory: Buffer, allocator: Allocator) -> None: ...
    def remove(self, number: int) -> None: ...
    def alloc(self, nbytes: int) -> int:
        """A location (`extent number << 40 | offset`), or -1 where there is no room."""

    def end(self) -> None:
        """From now on nothing is handed out."""

    def wait_for_users(self) -> None:
        """After `end`: return when native code neither writes to any of the memory nor reads it any more."""

@final
class Intake:
    """Where native code takes puts into a store: its index, and the lock that guards it."""

    def __init__(self, index: Index, lock: Mutex) -> None: ...
    def close(self) -> None:
        """Take nothing more. Needs the lock."""

    @property
    def watched(self) -> bool:
        """Whether somebody wants to hear of every put; then none is taken natively."""

    @watched.setter
    def watched(self, watched: bool) -> None: ...

@final
class Tally:
    """What was put into one namespace natively. Needs the store's lock."""

    def __init__(self) -> None: ...
    @property
    def hits_dram(self) -> int:
        """Parts that were read."""

    @property
    def stored(self) -> int:
        """Parts."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of their payload."""

    @property
    def peer_reads(self) -> int:
        """Reads of records by other servers."""

    @property
    def peer_bytes(self) -> int:
        """Bytes that they read."""

    @property
    def used(self) -> int:
        """Bytes of the namespace's records; whoever adds or removes some in Python counts here, too."""

    @used.setter
    def used(self, nbytes: int) -> None: ...

@final
class StagedPuts:
    """Puts from the staged memory of one session, taken natively where nothing is special about them.

    A put is one that has no windows, acknowledges `stored`, and adds to the index what is not there. `prefix` stands
    before it in a message of `method`; `answer` is the encoded frame that says it is stored.
    """

    def __init__(self, method: int, prefix: bytes, answer: bytes) -> None: ...
    def add_memory(self, number: int, memory: Buffer) -> bool:
        """Memory to put from, kept; False for a number that is known."""

    def add_shape(
        self,
        spec: bytes,
        part: bytes,
        tokens: int,
        intake: Intake,
        holdings: Holdings,
        order: Policy,
        tally: Tally,
        scope: int,
        fixed: bytes,
        header: int,
        payload: int,
        total: int,
        offsets: Buffer,
        lengths: Buffer,
    ) -> bool:
        """Take puts of such a part from now on; False where 1,024 kinds are known.

        `fixed` is the fixed part of its record's header; `header`, `payload` and `total` are lengths in bytes,
        `offsets` and `lengths` (uint64) its layer groups. ValueError for what does not fit together.
        """

@final
class HeldPart:
    """A part of the arena that stays where it is until `close`."""

    @property
    def head(self) -> bytes:
        """The encoded frame that announces it."""

    @property
    def data(self) -> memoryview:
        """Its payload, to be released before `close`; ValueError after that."""

    def close(self) -> None:
        """Let it go. A second call does nothing."""

@final
class PartScope:
    """Where the parts of one spec of a namespace are found, and who is told that they were used.

    `orders` are those of every tier; `parts` and the lengths of their headers (u32) are packed as for the index.
    """

    def __init__(
        self,
        intake: Intake,
        holdings: Holdings,
        tally: Tally,
        orders: list[Policy],
        scope: int,
        namespace: bytes,
        parts: bytes,
        headers: bytes,
    ) -> None: ...

class PartSource:
    """What answers frames of some methods natively, with bytes that are held in DRAM until they are sent."""

    def find(self, method: int, message: Buffer) -> HeldPart | None:
        """What a frame asks for, counted as used; None where it is not plain or not there."""

@final
class PlainGets(PartSource):
    """Gets of one whole part each, answered natively where it lies raw and exact in DRAM.

    `freed` is called, in any thread, where somebody waits for readers to go.
    """

    def __init__(self, method: int, freed: Callable[[], object]) -> None: ...
    def add_scope(self, spec: bytes, scope: PartScope) -> bool:
        """Answer gets of a spec from now on; False where 1,024 are known."""

@final
class PeerReads(PartSource):
    """Reads of other servers, answered natively where what they name lies exact in DRAM, in any form.

    `freed` is called, in any thread, where somebody waits for readers to go.
    """

    RECENT_MS: ClassVar[int]

    def __init__(self, record_method: int, object_method: int, freed: Callable[[], object]) -> None: ...
    def add_records(self, spec: bytes, scope: PartScope) -> None:
        """Answer reads of records of a spec, in the scope's namespace, from now on."""

    def add_objects(self, scope: PartScope, data_at: int) -> None:
        """Answer reads of objects, whose spec has one part and whose bytes begin `data_at` in it."""

@final
class RawPart:
    """A whole raw part as its reader expects it: its layer groups (uint64 columns), `nbytes` bytes in all.

    ValueError unless they follow one another.
    """

    def __init__(self, spec: bytes, offsets: Buffer, lengths: Buffer, nbytes: int) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def digests(self, message: Buffer, item: bytes) -> bytes | None:
        """The checksums in an encoded `GetResponse` that announces this part of `item`; None if it is anything else."""

@final
class Arrival:
    """The bytes of a part as they come, in any pieces, and which layer groups do not match their checksums."""

    def __init__(self, part: RawPart, digests: bytes) -> None: ...
    def take(self, bytes: Buffer) -> None: ...
    @property
    def damaged(self) -> list[int]: ...

@final
class UseLog(Policy):
    """Orders nothing, and remembers what was used of what a tier of an index holds. Needs the store's lock.

    The last `most` uses are kept, each of chunks of one prefix.
    """

    def __init__(self, index: Index, tier: int, most: int) -> None: ...
    def take(self) -> list[NDArray[np.uint32]]:
        """Rows of the chunks that were used since this was asked last: an array a use, the root of its prefix first."""

class Victims(Iterator[int]):
    """Rows in the order in which they should go, as if each had gone that it has told of.

    It can be kept while other things happen, and asked on under the lock of the policy. Rows may go meanwhile. Whoever
    asks on and on is told of every row once; where something happens between, `ValuePolicy` tells once of each that is
    there from beginning to end, the others begin anew if the row that is next has gone.
    """

    def __next__(self) -> int: ...

class ValuePolicy(Policy):
    """The policy `value` (docs/value.md)."""

    def __init__(self, max_rows: int) -> None: ...
    @property
    def ghosts(self) -> int:
        """Chunks known that are not here: eight to each that is, at most `max_rows`."""

    @property
    def waits(self) -> int:
        """Chunks here that are awaited."""

    @property
    def followed(self) -> str | None:
        """The simpler policy that it follows because that does better: lru, arc or mq. No hint is heeded then."""

def policy_names() -> list[str]:
    """The policies that `Policy` knows."""

class Admission:
    """What may be written down to a tier of `capacity` bytes; codecs/native/admission.hpp says how that is judged.

    `bytes_per_day` 0: no bound. Chunks that left are remembered, `max_ghosts` at most. Keys are 64 bits wide.
    """

    def __init__(self, second_touch: bool, bytes_per_day: int, capacity: int, max_ghosts: int) -> None: ...
    def judge(self, key: int, used: bool) -> str:
        """What a chunk finds that is offered: one of `entry_names()`. `used`: since it came. Changes nothing."""

    def judge_chunk(self, index: Index, chunk: int) -> str:
        """`judge` of a chunk of the index (its row). IndexError if it is not there."""

    def begin(self, bytes: int) -> None:
        """Writing a chunk begins."""

    def end(self, bytes: int) -> None:
        """It has ended, and is in what `settle` is told from now on."""

    def settle(self, written: int, now_ms: int) -> None:
        """So many bytes have been written to the tier in all, until this Unix time."""

    def refuse(self, why: str, bytes: int) -> None:
        """A chunk was let go as it had been judged. ValueError for `open` and what is no verdict."""

    def remember(self, key: int, bytes: int) -> None:
        """A chunk was evicted, and is in no tier any more."""

    def remember_chunk(self, scope: int, key: bytes, bytes: int) -> None:
        """`remember` of a chunk that was in the index."""

    def came(self, bytes: int) -> None:
        """So many bytes came to the tier."""

    def left(self, bytes: int) -> None:
        """So many left it, for whatever reason."""

    def was_full(self) -> None:
        """Something there had to go to make room."""

    def set_capacity(self, bytes: int) -> None: ...
    def restore(self, left: float, at_ms: int) -> None:
        """Of the budget so much was left at this Unix time."""

    @property
    def state(self) -> str:
        """What the budget says just now: `open`, `budget_low` (nothing that was used once), `budget_spent`."""

    @property
    def has_room(self) -> bool:
        """Whether there is room that costs no chunk its place, so that everything may come."""

    @property
    def budget_left(self) -> float:
        """Bytes, less what is under way; negative where more was written than may be."""

    @property
    def budget_most(self) -> float: ...
    @property
    def ghosts(self) -> int:
        """Chunks that are remembered."""

def entry_names() -> list[str]:
    """`open`, and why a chunk is refused: `used_once`, `budget_low`, `budget_spent`."""

def admit_chunk(index: Index, policy: Policy, chunk: int, tier: int, now_ms: int) -> None:
    """Tell a policy that a chunk (its row), or more of it, has come to its tier. `now_ms` is Unix time."""

def restore_chunks(index: Index, policy: Policy, chunks: Buffer, tier: int, now_ms: int) -> None:
    """Tell a policy which chunks (their rows) a tier has after a restart, what was used longest ago first.

    `now_ms` is Unix time. How long each lay is taken from the index.
    """

def demand_missing(orders: list[Policy], scope: int, refs: Buffer, rows: NDArray[np.int64]) -> None:
    """Tell policies which chunks of a look-up each has not. `refs` and `rows` are those of `Index.lookup`.

    ValueError unless every ref has a row.
    """

def use_unleased(index: Index, orders: list[Policy], chunk: int, now_ms: int) -> None:
    """Note that a chunk (its row) was used, in the index and in policies, unless it is under a lease.

    `now_ms` is Unix time.
    """

class Policy:
    """The order in which chunks leave a tier; codecs/native/policy.hpp says what each event means.

    `name` is one of `policy_names()`, ValueError otherwise. A row is the number of a chunk while it is here, less than
    `max_rows`: IndexError for another in `admit` and `remove`. `now_ms` is by a clock that nobody sets, in the store
    `CLOCK_MONOTONIC`.
    """

    def __init__(self, name: str, max_rows: int) -> None: ...
    def admit(
        self,
        row: int,
        key: int,
        parent: int,
        position: int,
        tokens: int,
        bytes: int,
        now_ms: int,
        parent_row: int = -1,
    ) -> None:
        """A chunk has come, or more of it; `bytes` is what it has here now.

        It goes just before its parent where `parent_row` says that this was used a moment ago.
        """

    def restore(
        self,
        row: int,
        key: int,
        parent: int,
        position: int,
        tokens: int,
        bytes: int,
        idle_ms: int,
        idle_uses: int,
        now_ms: int,
    ) -> None:
        """A chunk has outlived the process; it lay for `idle_ms`, and others were used `idle_uses` times since."""

    def hit(self, rows: Buffer, now_ms: int) -> None:
        """Chunks of one prefix were used, root first; touched leaf to root. Others are skipped."""

    @property
    def wants_demand(self) -> bool:
        """Whether telling of demand is worth a store's time."""

    def demand(self, keys: NDArray[np.uint64], now_ms: int) -> None:
        """Chunks were asked for that are not here."""

    def ended(self, rows: Buffer, now_ms: int) -> None:
        """Nobody will go on with the prompt of these rows, root first. A policy may make nothing of it."""

    def awaited(self, rows: Buffer, now_ms: int, until_ms: int) -> None:
        """The prompt of these rows comes back at about `until_ms`, or has ended. A policy may make nothing of it."""

    def remove(self, row: int, evicted: bool, now_ms: int) -> None:
        """A chunk is gone: evicted to make room, or for another reason. One that is not here is ignored."""

    def victim(self) -> int:
        """The row that should go first; -1: none. Asking does not evict."""

    def victims(self) -> Victims:
        """All rows, the one that should go first first."""

    def set_capacity(self, bytes: int) -> None:
        """The bytes that this order may fill."""

    def set_costs(
        self,
        *,
        flops_per_token: float,
        flops_per_token2: float,
        prefill_flops_per_s: float,
        load_bytes_per_s: float,
        load_latency_s: float,
        decode_bytes_per_s: float,
    ) -> None:
        """What recomputing and loading cost: FLOPs of tokens a to b are per_token·(b−a) + per_token2·(b²−a²)/2."""

    def __len__(self) -> int: ...
    def __contains__(self, row: int) -> bool: ...

@final
class SimTrace:
    """The columns of a trace, held while this lives: see `kvstore.sim.trace.Trace`.

    TypeError for items of another size, ValueError for columns that do not fit each other.
    """

    def __init__(
        self,
        times_ms: NDArray[np.int64],
        input_tokens: NDArray[np.uint32],
        tenants: NDArray[np.uint16],
        linked: NDArray[np.uint8],
        starts: NDArray[np.uint64],
        chunk: NDArray[np.uint32],
        chunk_tokens: NDArray[np.uint32],
        chunk_bytes: NDArray[np.uint64],
        ended: NDArray[np.uint8],
    ) -> None: ...

def sim_replay(
    trace: SimTrace,
    policy: str,
    tiers: Sequence[tuple[int, float, tuple[float, float, float, float], bool, int]],
    shares: Sequence[float],
    prefill: tuple[float, float, float, float],
    touch: int,
    overlap: bool,
    bypass: bool,
    first: int,
) -> dict[str, Any]:
    """Play a trace, without the GIL: the fields of `kvstore.sim.replay.Outcome` but the last.

    A tier is its capacity in bytes, by how much what lies there is smaller, its speed (`kvstore.cost.TierSpeed`),
    whether what comes down to it was used twice, and the bytes a day that may be written (0: no bound); there are 1 to
    8. `policy` is one of `policy_names()` or `belady`, which is told the future, and comes down as it likes. `touch` is
    0 (leaf first), 1 (as put) or 2 (forward, nothing leased). Requests before `first` are not counted. ValueError for
    what does not fit.
    """

def plan_load(
    tokens: NDArray[np.uint32],
    stored: NDArray[np.uint64],
    tiers: NDArray[np.uint8],
    start: int,
    prompt: int,
    prefill: tuple[float, float, float, float],
    speeds: Sequence[tuple[float, float, float, float]],
    overlap: bool,
) -> tuple[int, int, float, float, int]:
    """`kvstore.cost.plan`: the fields of a `Plan`."""
