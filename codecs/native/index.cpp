// The index, one row at a time.
#include "index.hpp"

#include "mixed_key.hpp"

#include <cstring>

namespace kvstore {

namespace {

[[noreturn]] void refuse(const std::string& reason) { throw std::invalid_argument(reason); }

void check_stored(std::uint64_t bytes) {
    if (bytes > PlacementRow::kMostStored)
        refuse("a placement has at most 2**48 - 1 bytes, not " + std::to_string(bytes));
}

}  // namespace

Index::Index(std::uint32_t max_chunks, std::uint64_t secret, std::uint32_t max_parts, std::uint32_t max_placements)
    : chunks_(max_chunks, "chunk"),
      rest_(max_chunks),
      parts_(max_parts, "part"),
      placements_(max_placements, "placement"),
      table_(max_chunks),
      hash_(secret) {}

std::int64_t Index::find_hashed(std::uint64_t hash, std::uint32_t scope, const Key& key) const {
    return table_.find(hash, [&](std::uint32_t row) {
        return chunks_[row].scope == scope && chunks_[row].key == key;
    });
}

std::int64_t Index::find(std::uint32_t scope, const Key& key) const {
    return find_hashed(hash_(scope, key.data()), scope, key);
}

std::uint32_t Index::insert_chunk(std::uint32_t scope, const Key& key, const Key& parent, std::uint32_t position,
                                  std::uint32_t tokens, std::int64_t now_ms) {
    const std::uint64_t hash = hash_(scope, key.data());
    const std::int64_t found = find_hashed(hash, scope, key);
    if (found >= 0) {
        const ChunkRow& chunk = chunks_[static_cast<std::uint32_t>(found)];
        if (chunk.position != position || chunk.tokens != tokens)
            refuse("the chunk is known with " + std::to_string(chunk.tokens) + " tokens at position " +
                   std::to_string(chunk.position) + ", not " + std::to_string(tokens) + " at " +
                   std::to_string(position));
        return static_cast<std::uint32_t>(found);
    }
    return add_chunk(hash, scope, key, parent, position, tokens, now_ms);
}

std::uint32_t Index::add_chunk(std::uint64_t hash, std::uint32_t scope, const Key& key, const Key& parent,
                               std::uint32_t position, std::uint32_t tokens, std::int64_t now_ms) {
    const std::uint32_t row = chunks_.take();
    ChunkRow& chunk = chunks_[row];
    chunk.key = key;
    rest_[row] = {parent, 0};
    chunk.scope = scope;
    chunk.position = position;
    chunk.tokens = tokens;
    chunk.first_part = kNone;
    chunk.last_use = now_ms;
    table_.insert(hash, row);
    prefetch_published(row);
    return row;
}

std::uint32_t Index::part_of(std::uint32_t chunk, const PartId& id) const {
    std::uint32_t row = chunks_[chunk].first_part;
    while (row != kNone && parts_[row].id != id) row = parts_[row].next;
    return row;
}

std::int64_t Index::find_part(std::uint64_t chunk, const PartId& id) const {
    const std::uint32_t row = part_of(chunks_.checked(chunk), id);
    return row == kNone ? -1 : std::int64_t{row};
}

std::uint32_t Index::add_part(std::uint64_t chunk_row, const PartId& id, std::uint32_t first_valid,
                              std::uint64_t logical) {
    const std::uint32_t chunk = chunks_.checked(chunk_row);
    const std::uint32_t known = part_of(chunk, id);
    if (known != kNone) return known;
    const std::uint32_t row = parts_.take();
    parts_[row] = {logical, chunk, chunks_[chunk].first_part, first_valid, kNone, id};
    chunks_[chunk].first_part = row;
    return row;
}

std::uint32_t Index::placement_in(const PartRow& part, std::uint8_t tier) const {
    std::uint32_t row = part.first_placement;
    while (row != kNone && placements_[row].tier != tier) row = placements_[row].next;
    return row;
}

std::int64_t Index::find_placement(std::uint64_t part_row, std::uint8_t tier) const {
    const std::uint32_t row = placement_in(part(part_row), tier);
    return row == kNone ? -1 : std::int64_t{row};
}

std::uint32_t Index::add_placement(std::uint64_t part_row, const PlacementFields& fields) {
    const std::uint32_t part = parts_.checked(part_row);
    const std::uint32_t known = placement_in(parts_[part], fields.tier);
    if (known != kNone)
        refuse("part " + std::to_string(part) + " has placement " + std::to_string(known) + " in tier " +
               std::to_string(fields.tier));
    check_stored(fields.stored);
    const std::uint32_t row = placements_.take();
    placements_[row] = {.part = part, .next = parts_[part].first_placement, .loc = fields.loc,
                        .stored = fields.stored & PlacementRow::kMostStored, .codec = fields.codec, .readers = 0,
                        .level = fields.level, .tier = fields.tier, .exact = fields.exact};
    parts_[part].first_placement = row;
    republish(parts_[part].chunk);
    return row;
}

std::int64_t Index::best_placement(std::uint64_t part_row, bool exact_only, const std::uint8_t* tiers,
                                   std::size_t tier_count) const {
    const PartRow& row = part(part_row);
    for (std::size_t i = 0; i < tier_count; ++i) {
        const std::uint32_t placement = placement_in(row, tiers[i]);
        if (placement != kNone && (placements_[placement].exact || !exact_only)) return placement;
    }
    return -1;
}

Index::Inserted Index::insert(const ExportRecord& record) {
    check_stored(record.stored);
    const std::uint32_t chunk = insert_chunk(record.scope, record.key, record.parent, record.position, record.tokens,
                                             record.last_use);
    try {
        const std::uint32_t part = add_part(chunk, record.part, record.first_valid, record.logical);
        const std::uint32_t first_valid = parts_[part].first_valid;
        if (first_valid != record.first_valid || placement_in(parts_[part], record.tier) != kNone)
            return {chunk, first_valid, -1};
        const std::uint32_t placement = add_placement(
            part, {record.tier, record.codec, record.level, record.exact != 0, record.loc, record.stored});
        return {chunk, first_valid, placement};
    } catch (const std::overflow_error&) {
        prune(chunk);
        throw;
    }
}

void Index::unlink_part(std::uint32_t row) {
    std::uint32_t* link = &chunks_[parts_[row].chunk].first_part;
    while (*link != row) link = &parts_[*link].next;
    *link = parts_[row].next;
    parts_.give_back(row);
}

void Index::remove_chunk(std::uint32_t row) {
    table_.remove(hash_(chunks_[row].scope, chunks_[row].key.data()), row);
    chunks_.give_back(row);
}

bool Index::remove_if_empty(std::uint32_t row) {
    if (chunks_[row].first_part != kNone || chunks_[row].leases > 0) return false;
    remove_chunk(row);
    return true;
}

int Index::remove_placement(std::uint64_t placement_row) {
    const std::uint32_t row = placements_.checked(placement_row);
    if (placements_[row].readers > 0)
        refuse("placement " + std::to_string(row) + " has " + std::to_string(placements_[row].readers) + " readers");
    const std::uint32_t part = placements_[row].part;
    std::uint32_t* link = &parts_[part].first_placement;
    while (*link != row) link = &placements_[*link].next;
    *link = placements_[row].next;
    placements_.give_back(row);
    const std::uint32_t chunk = parts_[part].chunk;
    republish(chunk);
    if (parts_[part].first_placement != kNone) return 0;
    unlink_part(part);
    return kPartRemoved | (remove_if_empty(chunk) ? kChunkRemoved : 0);
}

bool Index::prune(std::uint64_t chunk_row) {
    const std::uint32_t chunk = chunks_.checked(chunk_row);
    for (const std::uint32_t row : chunk_parts(chunk))
        if (parts_[row].first_placement == kNone) unlink_part(row);
    return remove_if_empty(chunk);
}

std::vector<std::uint32_t> Index::chunk_parts(std::uint64_t chunk_row) const {
    std::vector<std::uint32_t> rows;
    for (std::uint32_t row = chunk(chunk_row).first_part; row != kNone; row = parts_[row].next) rows.push_back(row);
    return rows;
}

std::vector<std::uint32_t> Index::part_placements(std::uint64_t part_row) const {
    std::vector<std::uint32_t> rows;
    for (std::uint32_t row = part(part_row).first_placement; row != kNone; row = placements_[row].next)
        rows.push_back(row);
    return rows;
}

void Index::set_loc(std::uint64_t row, std::uint64_t loc, std::uint64_t stored) {
    PlacementRow& placement = placements_[placements_.checked(row)];
    check_stored(stored);
    placement.loc = loc;
    placement.stored = stored & PlacementRow::kMostStored;
    republish(parts_[placement.part].chunk);
}

void Index::add_reader(std::uint64_t row) { ++placements_[placements_.checked(row)].readers; }

void Index::drop_reader(std::uint64_t row) {
    PlacementRow& placement = placements_[placements_.checked(row)];
    if (placement.readers == 0) refuse("placement " + std::to_string(row) + " has no readers");
    --placement.readers;
}

void Index::set_flags(std::uint64_t row, std::uint32_t flags) {
    if (flags > ChunkRow::kMostFlags) refuse("flags " + std::to_string(flags) + " are more than 7 bits");
    chunks_[chunks_.checked(row)].flags = flags & ChunkRow::kMostFlags;
    republish(static_cast<std::uint32_t>(row));
}

void Index::pin(std::uint64_t row, std::int64_t until_ms) { rest_[chunks_.checked(row)].pin_until = until_ms; }

void Index::drop_lease(std::uint32_t row) {
    if (chunks_[row].leases == 0) refuse("chunk " + std::to_string(row) + " has no lease");
    --chunks_[row].leases;
}

void Index::touch(std::uint32_t row, std::int64_t now_ms) {
    chunks_[row].last_use = now_ms;
    chunks_[row].hits += chunks_[row].hits < ChunkRow::kMostHits;
}

bool Index::evictable(std::uint64_t chunk_row, std::int64_t now_ms) const {
    const ChunkRow& row = chunk(chunk_row);
    if (row.leases > 0 || rest(chunk_row).pin_until > now_ms) return false;
    for (std::uint32_t part = row.first_part; part != kNone; part = parts_[part].next)
        for (std::uint32_t at = parts_[part].first_placement; at != kNone; at = placements_[at].next)
            if (placements_[at].readers > 0) return false;
    return true;
}

std::uint64_t Index::name_of(std::uint32_t scope, const Key& key) {
    std::uint64_t head;
    std::memcpy(&head, key.data(), sizeof head);
    return head == 0 ? 0 : head ^ mixed_key(scope);
}

Arrival Index::arrival(std::uint32_t row, std::uint8_t tier, std::int64_t now_ms) const {
    const ChunkRow& chunk = chunks_[row];
    std::uint64_t bytes = 0;
    for (std::uint32_t part = chunk.first_part; part != kNone; part = parts_[part].next) {
        const std::uint32_t placement = placement_in(parts_[part], tier);
        if (placement != kNone) bytes += placements_[placement].stored;
    }
    const Key& before = rest_[row].parent;
    const std::uint64_t parent = name_of(chunk.scope, before);
    const std::int64_t known = parent == 0 ? -1 : find(chunk.scope, before);
    const bool used = known >= 0 && now_ms - chunks_[static_cast<std::uint32_t>(known)].last_use <= kMomentMs;
    return {name_of(chunk.scope, chunk.key), parent, chunk.position, chunk.tokens, bytes,
            used ? static_cast<std::uint32_t>(known) : kNoRow};
}

std::size_t Index::resident_bytes() const {
    return chunks_.touched_bytes() + chunks_.high_water() * sizeof(ChunkRest) + parts_.touched_bytes() +
           placements_.touched_bytes() + table_.bytes();
}

}  // namespace kvstore
