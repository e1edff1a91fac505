// The chunk index: which chunks there are, in which parts, and where each part's bytes lie. All of it is rows of
// fixed size in mapped tables; see kvstore/_native.pyi for what each operation promises.
#pragma once

#include "key_table.hpp"
#include "policy.hpp"
#include "row_table.hpp"
#include "siphash.hpp"

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace kvstore {

using Key = std::array<std::uint8_t, 32>;
using SpecDigest = std::array<std::uint8_t, 16>;

class SharedTable;

// What a look-up reads, in one cache line.
struct alignas(64) ChunkRow {
    static constexpr std::uint32_t kFree = 0xFFFFFFFEU;
    static constexpr std::uint32_t kHidden = 1;  // of flags: readers of a shared table do not see the chunk
    static constexpr std::uint32_t kMostHits = (1U << 24) - 1;
    static constexpr std::uint32_t kMostFlags = (1U << 7) - 1;

    Key key;
    std::uint32_t scope;
    std::uint32_t position;
    std::uint32_t tokens;
    std::uint32_t first_part;
    std::uint32_t leases;
    std::uint32_t hits : 24;  // at most kMostHits
    std::uint32_t flags : 7;
    std::uint32_t published : 1;  // whether its tag is in the shared table of its scope, or counted there as overflowed
    std::int64_t last_use;

    bool is_free() const { return first_part == kFree; }
    std::uint32_t free_link() const { return position; }
    void set_free(std::uint32_t link) {
        first_part = kFree;
        position = link;
    }
};

static_assert(sizeof(ChunkRow) == 64);

// The rest of what is known of a chunk.
struct ChunkRest {
    Key parent;
    std::int64_t pin_until;
};

// Which piece of a chunk a part is. Also a record of a look-up.
struct PartId {
    std::uint16_t group;
    std::uint16_t rank;
    std::uint16_t layer_start;
    std::uint16_t layer_end;

    bool operator==(const PartId&) const = default;
};
static_assert(sizeof(PartId) == 8);

struct PartRow {
    std::uint64_t logical;
    std::uint32_t chunk;
    std::uint32_t next;
    std::uint32_t first_valid;
    std::uint32_t first_placement;
    PartId id;

    bool is_free() const { return chunk == kNone; }
    std::uint32_t free_link() const { return next; }
    void set_free(std::uint32_t link) {
        chunk = kNone;
        next = link;
    }
};

struct PlacementRow {
    static constexpr std::uint64_t kMostStored = (std::uint64_t{1} << 48) - 1;

    std::uint32_t part;
    std::uint32_t next;
    std::uint64_t loc;
    std::uint64_t stored : 48;
    std::uint16_t codec;
    std::uint32_t readers;
    std::uint16_t level;
    std::uint8_t tier;
    bool exact;

    bool is_free() const { return part == kNone; }
    std::uint32_t free_link() const { return next; }
    void set_free(std::uint32_t link) {
        part = kNone;
        next = link;
    }
};

static_assert(sizeof(PlacementRow) == 32);

// A chunk that a look-up asks for, as it is packed on the wire.
struct ChunkRef {
    Key key;
    std::uint32_t position;
    std::uint32_t tokens;
};
static_assert(sizeof(ChunkRef) == 40);

// One part of a chunk that somebody asks for, as it is packed on the wire.
struct ItemRef {
    ChunkRef chunk;
    PartId part;
};
static_assert(sizeof(ItemRef) == 48);

// Where a payload lies: its first byte, behind the header. kvstore/places.py describes the same bytes.
struct Place {
    static constexpr std::uint64_t kNowhere = ~std::uint64_t{0};

    std::uint64_t location = kNowhere;
    std::uint64_t stored = 0;
    std::uint32_t form = 0;
    std::uint32_t first_valid = 0;
};
static_assert(sizeof(Place) == 24);

// Parts that are asked for, and the length of the header in front of each one's payload.
struct PartTable {
    std::vector<PartId> parts;
    std::vector<std::uint32_t> headers;
};

// What a reader takes: how exact, and which placements nobody is given.
struct Acceptable {
    bool exact_only;
    std::vector<std::uint32_t> skip;
};

// What is read to have a chunk: bytes as stored, the slowest tier of those that parts are read from, the form there.
struct StoredCopy {
    std::uint64_t bytes = 0;
    std::uint32_t tokens = 0;
    std::uint8_t tier = 0;
    std::uint16_t form = 0;
};

// A placement with its part and chunk, for snapshots and recovery. kvstore/rows.py describes the same bytes.
struct ExportRecord {
    Key key;
    Key parent;
    std::uint32_t scope;
    std::uint32_t position;
    std::uint32_t tokens;
    PartId part;
    std::uint32_t first_valid;
    std::uint16_t codec;
    std::uint16_t level;
    std::uint8_t exact;
    std::uint8_t tier;
    std::uint16_t padding;
    std::uint64_t logical;
    std::uint64_t loc;
    std::uint64_t stored;
    std::int64_t last_use;
    std::int64_t pin_until;
};
static_assert(sizeof(ExportRecord) == 136);

struct PlacementFields {
    std::uint8_t tier;
    std::uint16_t codec;
    std::uint16_t level;
    bool exact;
    std::uint64_t loc;
    std::uint64_t stored;
};

// Flags of Index::remove_placement.
inline constexpr int kPartRemoved = 1;
inline constexpr int kChunkRemoved = 2;

class Index {
public:
    Index(std::uint32_t max_chunks, std::uint64_t secret, std::uint32_t max_parts, std::uint32_t max_placements);

    std::int64_t find(std::uint32_t scope, const Key& key) const;
    std::uint32_t insert_chunk(std::uint32_t scope, const Key& key, const Key& parent, std::uint32_t position,
                               std::uint32_t tokens, std::int64_t now_ms);
    std::uint32_t add_part(std::uint64_t chunk, const PartId& id, std::uint32_t first_valid, std::uint64_t logical);
    std::int64_t find_part(std::uint64_t chunk, const PartId& id) const;
    std::uint32_t add_placement(std::uint64_t part, const PlacementFields& fields);
    std::int64_t find_placement(std::uint64_t part, std::uint8_t tier) const;
    std::int64_t best_placement(std::uint64_t part, bool exact_only, const std::uint8_t* tiers,
                                std::size_t tier_count) const;
    int remove_placement(std::uint64_t placement);
    // Removes the chunk's parts without placements, then the chunk if it has no part and no lease.
    bool prune(std::uint64_t chunk);

    const ChunkRow& chunk(std::uint64_t row) const { return chunks_[chunks_.checked(row)]; }
    const ChunkRest& rest(std::uint64_t chunk) const { return rest_[chunks_.checked(chunk)]; }
    const PartRow& part(std::uint64_t row) const { return parts_[parts_.checked(row)]; }
    const PlacementRow& placement(std::uint64_t row) const { return placements_[placements_.checked(row)]; }
    std::vector<std::uint32_t> chunk_parts(std::uint64_t chunk) const;
    std::vector<std::uint32_t> part_placements(std::uint64_t part) const;
    std::vector<std::uint32_t> live_chunks(std::uint32_t start, std::size_t limit, std::int64_t& next) const;

    struct Inserted {
        std::uint32_t chunk;
        std::uint32_t first_valid;
        std::int64_t placement;
    };
    // A placement with its part and chunk, as far as they are new; nothing of it where a table is full.
    Inserted insert(const ExportRecord& record);
    void set_loc(std::uint64_t placement, std::uint64_t loc, std::uint64_t stored);
    void add_reader(std::uint64_t placement);
    void drop_reader(std::uint64_t placement);
    void set_flags(std::uint64_t chunk, std::uint32_t flags);
    void pin(std::uint64_t chunk, std::int64_t until_ms);
    void add_lease(std::uint32_t chunk) { ++chunks_[chunk].leases; }
    void drop_lease(std::uint32_t chunk);
    bool remove_if_empty(std::uint32_t chunk);
    void touch(std::uint32_t chunk, std::int64_t now_ms);
    bool is_leased(std::uint32_t chunk) const { return chunks_[chunk].leases > 0; }
    bool evictable(std::uint64_t chunk, std::int64_t now_ms) const;
    // What policies know a chunk by: one sees the chunks of several specs. 0 for the key of no chunk.
    static std::uint64_t name_of(std::uint32_t scope, const Key& key);
    // What the policy of a tier is told of a chunk with placements there.
    Arrival arrival(std::uint32_t chunk, std::uint8_t tier, std::int64_t now_ms) const;
    bool is_live_chunk(std::uint32_t row) const { return chunks_.is_live(row); }
    std::uint32_t checked_chunk(std::uint64_t row) const { return chunks_.checked(row); }

    void find_many(std::uint32_t scope, const std::uint8_t* keys, std::size_t count, std::int64_t* rows) const;
    struct Lookup {
        std::uint32_t scope;
        const ChunkRef* refs;
        std::size_t ref_count;
        const PartId* parts;
        std::size_t part_count;
        bool exact_only;
        std::int64_t now_ms;
    };
    void lookup(const Lookup& query, std::int64_t* rows, std::uint8_t* present, std::uint32_t* first_valid);
    struct Items {
        std::uint32_t scope;
        const ItemRef* refs;
        std::size_t count;
    };
    // Gives how many lie in the first of the tiers; only these have a place.
    std::size_t find_items(const Items& items, const PartTable& table, const Acceptable& acceptable,
                           const std::string& tiers, std::int64_t* chunks, std::int64_t* placements,
                           Place* places) const;
    // Where each part of a chunk lies in one tier.
    void places(std::uint32_t chunk, const PartTable& table, const Acceptable& acceptable, std::uint8_t tier,
                Place* places) const;

    // What is read to have a chunk: of each part that is needed the best copy in the fastest tier.
    struct Needed {
        const PartTable& table;
        const std::uint32_t* from;  // first token needed, a part
        const Acceptable& acceptable;
        const std::string& tiers;  // fastest first
    };
    StoredCopy stored(std::uint32_t chunk, const Needed& needed) const;
    // Chunks of a scope with a time in `before_ms` (by scope; 0: never) that were used last before it, of `count` rows
    // from `start` on, `limit` at most; the row to go on from, -1 at the end.
    std::vector<std::uint32_t> idle_chunks(std::uint32_t start, std::size_t count, std::size_t limit,
                                           const std::vector<std::int64_t>& before_ms, std::int64_t& next) const;

    std::size_t count_in_tier(std::uint8_t tier) const;
    void export_tier(std::uint8_t tier, ExportRecord* records) const;
    void bulk_insert(const std::uint8_t* records, std::size_t count, std::uint8_t tier, std::uint32_t* placements);

    // Keeps in `table` the chunks of a scope that have all `parts` in exact copies and are not hidden.
    void publish_to(std::uint32_t scope, SharedTable* table, const SpecDigest& spec, std::uint32_t parts);
    // Enters those that were there before, some rows at a time: the row to go on from, -1 at the end.
    std::int64_t publish_rows(std::uint32_t start, std::size_t limit);
    // Of all these chunks together.
    std::uint64_t tokens(const std::uint32_t* rows, std::size_t count) const;

    std::uint32_t chunk_count() const { return chunks_.live(); }
    std::uint32_t part_count() const { return parts_.live(); }
    std::uint32_t placement_count() const { return placements_.live(); }
    std::size_t resident_bytes() const;

private:
    static constexpr std::size_t kBatch = 64;
    static constexpr std::uint8_t kReadableTier = 0;  // the arena, which clients map
    static constexpr std::uint16_t kRawForm = 0;

    struct Publication {
        SharedTable* table = nullptr;
        SpecDigest spec{};
        std::uint32_t parts = 0;
    };

    // After every change to what is_whole() or the flags say of a chunk, and before its row is given back.
    void republish(std::uint32_t chunk) {
        const std::uint32_t scope = chunks_[chunk].scope;
        if (scope < publications_.size() && publications_[scope].table != nullptr)
            republish_in(publications_[scope], chunk);
    }
    // For a new chunk, whose tag is likely to be entered soon.
    void prefetch_published(std::uint32_t chunk) const;
    void republish_in(const Publication& publication, std::uint32_t chunk);
    bool is_whole(const ChunkRow& chunk, std::uint32_t parts) const;
    std::uint64_t readable_block(const ChunkRow& chunk, std::uint32_t parts) const;
    static std::uint64_t tag_of(const Publication& publication, const ChunkRow& chunk);

    std::int64_t find_hashed(std::uint64_t hash, std::uint32_t scope, const Key& key) const;
    void find_batch(std::uint32_t scope, const std::uint8_t* keys, std::size_t stride, std::size_t count,
                    std::int64_t* rows) const;
    void lookup_batch(const Lookup& query, std::size_t begin, std::size_t end, std::int64_t* rows,
                      std::uint8_t* present, std::uint32_t* first_valid);
    std::uint32_t part_of(std::uint32_t chunk, const PartId& id) const;
    bool has_placement(const PartRow& part, bool exact_only) const;
    std::uint32_t placement_in(const PartRow& part, std::uint8_t tier) const;
    std::uint32_t good_placement(const PartRow& part, const Acceptable& acceptable, std::uint8_t tier) const;
    Place place_of(const PartRow& part, std::uint32_t placement, std::uint32_t header) const;
    void unlink_part(std::uint32_t part);
    void remove_chunk(std::uint32_t chunk);
    std::uint32_t add_chunk(std::uint64_t hash, std::uint32_t scope, const Key& key, const Key& parent,
                            std::uint32_t position, std::uint32_t tokens, std::int64_t now_ms);
    std::uint32_t insert_record(const ExportRecord& record, std::uint64_t hash, std::uint8_t tier);
    void insert_batch(const ExportRecord* records, std::size_t count, std::uint8_t tier, std::uint32_t* placements,
                      std::size_t& done);

    RowTable<ChunkRow> chunks_;
    MappedArray<ChunkRest> rest_;  // by row of a chunk
    RowTable<PartRow> parts_;
    RowTable<PlacementRow> placements_;
    KeyTable table_;
    SipHash hash_;
    std::vector<Publication> publications_;
};

}  // namespace kvstore
