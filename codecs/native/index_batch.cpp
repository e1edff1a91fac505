// The index, many rows at a time. A look-up of chunks that no cache holds is a chain of misses (slot, chunk, part,
// placement); each step is taken for a whole batch before the next, so that the batch waits for them together.
#include "index.hpp"

#include <algorithm>
#include <cstring>

namespace kvstore {

void Index::find_batch(std::uint32_t scope, const std::uint8_t* keys, std::size_t stride, std::size_t count,
                       std::int64_t* rows) const {
    std::uint64_t hashes[kBatch];
    for (std::size_t i = 0; i < count; ++i) {
        hashes[i] = hash_(scope, keys + i * stride);
        table_.prefetch(hashes[i]);
    }
    for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t likely = table_.find(hashes[i], [](std::uint32_t) { return true; });
        if (likely >= 0) chunks_.prefetch(static_cast<std::uint32_t>(likely));
    }
    for (std::size_t i = 0; i < count; ++i) {
        Key key;
        std::memcpy(key.data(), keys + i * stride, key.size());
        rows[i] = find_hashed(hashes[i], scope, key);
    }
}

void Index::find_many(std::uint32_t scope, const std::uint8_t* keys, std::size_t count, std::int64_t* rows) const {
    for (std::size_t begin = 0; begin < count; begin += kBatch)
        find_batch(scope, keys + begin * sizeof(Key), sizeof(Key), std::min(kBatch, count - begin), rows + begin);
}

bool Index::has_placement(const PartRow& part, bool exact_only) const {
    for (std::uint32_t row = part.first_placement; row != kNone; row = placements_[row].next)
        if (placements_[row].exact || !exact_only) return true;
    return false;
}

void Index::lookup_batch(const Lookup& query, std::size_t begin, std::size_t end, std::int64_t* rows,
                         std::uint8_t* present, std::uint32_t* first_valid) {
    const auto* keys = reinterpret_cast<const std::uint8_t*>(query.refs + begin);
    find_batch(query.scope, keys, sizeof(ChunkRef), end - begin, rows + begin);
    for (std::size_t i = begin; i < end; ++i) {
        if (rows[i] < 0) continue;
        ChunkRow& chunk = chunks_[static_cast<std::uint32_t>(rows[i])];
        if (chunk.position != query.refs[i].position || chunk.tokens != query.refs[i].tokens) {
            rows[i] = -1;
            continue;
        }
        if (query.now_ms > 0) chunk.last_use = query.now_ms;
        if (chunk.first_part != kNone) parts_.prefetch(chunk.first_part);
    }
    for (std::size_t i = begin; i < end; ++i) {
        if (rows[i] < 0) continue;
        const std::uint32_t part = chunks_[static_cast<std::uint32_t>(rows[i])].first_part;
        if (part != kNone && parts_[part].first_placement != kNone) placements_.prefetch(parts_[part].first_placement);
    }
    for (std::size_t j = 0; j < query.part_count; ++j) {
        for (std::size_t i = begin; i < end; ++i) {
            const std::size_t cell = j * query.ref_count + i;
            const std::uint32_t part =
                rows[i] < 0 ? kNone : part_of(static_cast<std::uint32_t>(rows[i]), query.parts[j]);
            present[cell] = part != kNone && has_placement(parts_[part], query.exact_only);
            first_valid[cell] = part == kNone ? 0 : parts_[part].first_valid;
        }
    }
}

void Index::lookup(const Lookup& query, std::int64_t* rows, std::uint8_t* present, std::uint32_t* first_valid) {
    for (std::size_t begin = 0; begin < query.ref_count; begin += kBatch)
        lookup_batch(query, begin, std::min(begin + kBatch, query.ref_count), rows, present, first_valid);
}

std::uint32_t Index::good_placement(const PartRow& part, const Acceptable& acceptable, std::uint8_t tier) const {
    const std::uint32_t row = placement_in(part, tier);
    if (row == kNone || (acceptable.exact_only && !placements_[row].exact)) return kNone;
    const auto& skip = acceptable.skip;
    return std::find(skip.begin(), skip.end(), row) == skip.end() ? row : kNone;
}

Place Index::place_of(const PartRow& part, std::uint32_t placement, std::uint32_t header) const {
    const PlacementRow& row = placements_[placement];
    return {row.loc + header, row.stored, row.codec, part.first_valid};
}

std::size_t Index::find_items(const Items& items, const PartTable& table, const Acceptable& acceptable,
                              const std::string& tiers, std::int64_t* chunks, std::int64_t* placements,
                              Place* places) const {
    for (std::size_t begin = 0; begin < items.count; begin += kBatch)
        find_batch(items.scope, reinterpret_cast<const std::uint8_t*>(items.refs + begin), sizeof(ItemRef),
                   std::min(kBatch, items.count - begin), chunks + begin);
    std::size_t in_place = 0;
    for (std::size_t i = 0; i < items.count; ++i) {
        const ItemRef& item = items.refs[i];
        const std::int64_t chunk = chunks[i];
        chunks[i] = placements[i] = -1;
        places[i] = Place{};
        const auto known = std::find(table.parts.begin(), table.parts.end(), item.part);
        if (chunk < 0 || known == table.parts.end()) continue;
        const ChunkRow& row = chunks_[static_cast<std::uint32_t>(chunk)];
        if (row.position != item.chunk.position || row.tokens != item.chunk.tokens) continue;
        const std::uint32_t part = part_of(static_cast<std::uint32_t>(chunk), item.part);
        if (part == kNone) continue;
        for (const char tier : tiers) {
            const std::uint32_t found = good_placement(parts_[part], acceptable, static_cast<std::uint8_t>(tier));
            if (found == kNone) continue;
            chunks[i] = chunk;
            placements[i] = found;
            if (tier == tiers.front()) {
                places[i] = place_of(parts_[part], found, table.headers[known - table.parts.begin()]);
                ++in_place;
            }
            break;
        }
    }
    return in_place;
}

void Index::places(std::uint32_t chunk, const PartTable& table, const Acceptable& acceptable, std::uint8_t tier,
                   Place* places) const {
    for (std::size_t j = 0; j < table.parts.size(); ++j) {
        const std::uint32_t part = part_of(chunk, table.parts[j]);
        const std::uint32_t found = part == kNone ? kNone : good_placement(parts_[part], acceptable, tier);
        places[j] = found == kNone ? Place{} : place_of(parts_[part], found, table.headers[j]);
    }
}

StoredCopy Index::stored(std::uint32_t chunk, const Needed& needed) const {
    const ChunkRow& row = chunks_[chunk];
    StoredCopy copy{0, row.tokens, 0, kRawForm};
    std::size_t slowest = 0;
    for (std::size_t j = 0; j < needed.table.parts.size(); ++j) {
        const std::uint32_t part = part_of(chunk, needed.table.parts[j]);
        if (part == kNone || row.position + row.tokens <= needed.from[j]) continue;
        for (std::size_t rank = 0; rank < needed.tiers.size(); ++rank) {
            const auto tier = static_cast<std::uint8_t>(needed.tiers[rank]);
            const std::uint32_t found = good_placement(parts_[part], needed.acceptable, tier);
            if (found == kNone) continue;
            const PlacementRow& place = placements_[found];
            copy.bytes += place.stored;
            // Of raw and encoded parts in one tier the encoded ones are told: these have to be decoded.
            if (rank > slowest || (rank == slowest && place.codec != kRawForm)) copy.form = place.codec;
            if (rank >= slowest) copy.tier = tier;
            slowest = std::max(slowest, rank);
            break;
        }
    }
    return copy;
}

std::vector<std::uint32_t> Index::live_chunks(std::uint32_t start, std::size_t limit, std::int64_t& next) const {
    std::vector<std::uint32_t> rows;
    std::uint32_t row = start;
    for (; row < chunks_.high_water() && rows.size() < limit; ++row)
        if (chunks_.is_live(row)) rows.push_back(row);
    next = row < chunks_.high_water() ? std::int64_t{row} : -1;
    return rows;
}

std::vector<std::uint32_t> Index::idle_chunks(std::uint32_t start, std::size_t count, std::size_t limit,
                                              const std::vector<std::int64_t>& before_ms, std::int64_t& next) const {
    std::vector<std::uint32_t> rows;
    const std::size_t end = std::min<std::size_t>(start + count, chunks_.high_water());
    std::size_t row = start;
    for (; row < end && rows.size() < limit; ++row) {
        const ChunkRow& chunk = chunks_[static_cast<std::uint32_t>(row)];
        if (!chunk.is_free() && chunk.scope < before_ms.size() && chunk.last_use < before_ms[chunk.scope])
            rows.push_back(static_cast<std::uint32_t>(row));
    }
    next = row < chunks_.high_water() ? static_cast<std::int64_t>(row) : -1;
    return rows;
}

std::size_t Index::count_in_tier(std::uint8_t tier) const {
    std::size_t count = 0;
    for (std::uint32_t row = 0; row < placements_.high_water(); ++row)
        count += placements_.is_live(row) && placements_[row].tier == tier;
    return count;
}

void Index::export_tier(std::uint8_t tier, ExportRecord* records) const {
    for (std::uint32_t row = 0; row < placements_.high_water(); ++row) {
        if (!placements_.is_live(row) || placements_[row].tier != tier) continue;
        const PlacementRow& placement = placements_[row];
        const PartRow& part = parts_[placement.part];
        const ChunkRow& chunk = chunks_[part.chunk];
        const ChunkRest& rest = rest_[part.chunk];
        *records++ = {chunk.key,       rest.parent,     chunk.scope,     chunk.position,  chunk.tokens,
                      part.id,         part.first_valid, placement.codec, placement.level, placement.exact,
                      placement.tier,  0,               part.logical,    placement.loc,   placement.stored,
                      chunk.last_use,  rest.pin_until};
    }
}

std::uint32_t Index::insert_record(const ExportRecord& record, std::uint64_t hash, std::uint8_t tier) {
    if (record.stored > PlacementRow::kMostStored) return kNone;
    const std::int64_t found = find_hashed(hash, record.scope, record.key);
    if (found >= 0) {
        const ChunkRow& known = chunks_[static_cast<std::uint32_t>(found)];
        if (known.position != record.position || known.tokens != record.tokens) return kNone;
    }
    const std::uint32_t chunk = found >= 0 ? static_cast<std::uint32_t>(found)
                                           : add_chunk(hash, record.scope, record.key, record.parent,
                                                       record.position, record.tokens, record.last_use);
    try {
        const std::uint32_t part = add_part(chunk, record.part, record.first_valid, record.logical);
        if (placement_in(parts_[part], tier) != kNone) return kNone;
        const std::uint32_t placement = add_placement(
            part, {tier, record.codec, record.level, record.exact != 0, record.loc, record.stored});
        if (found < 0) rest_[chunk].pin_until = record.pin_until;
        return placement;
    } catch (const std::overflow_error&) {
        prune(chunk);
        throw;
    }
}

void Index::insert_batch(const ExportRecord* records, std::size_t count, std::uint8_t tier,
                         std::uint32_t* placements, std::size_t& done) {
    std::uint64_t hashes[kBatch];
    for (std::size_t i = 0; i < count; ++i) {
        hashes[i] = hash_(records[i].scope, records[i].key.data());
        table_.prefetch(hashes[i]);
    }
    for (std::size_t i = 0; i < count; ++i, ++done) placements[i] = insert_record(records[i], hashes[i], tier);
}

void Index::bulk_insert(const std::uint8_t* bytes, std::size_t count, std::uint8_t tier, std::uint32_t* placements) {
    std::size_t done = 0;
    try {
        for (std::size_t begin = 0; begin < count; begin += kBatch) {
            ExportRecord records[kBatch];
            const std::size_t batch = std::min(kBatch, count - begin);
            std::memcpy(records, bytes + begin * sizeof(ExportRecord), batch * sizeof(ExportRecord));
            insert_batch(records, batch, tier, placements + begin, done);
        }
    } catch (const std::overflow_error&) {
        // All or nothing: the caller would not know the rows of what is in already.
        for (std::size_t i = 0; i < done; ++i)
            if (placements[i] != kNone) remove_placement(placements[i]);
        throw;
    }
}

}  // namespace kvstore
