// Of the replay: how chunks come into tiers and leave them.
#include "sim_replay.hpp"

#include <algorithm>

namespace kvstore {

std::uint64_t SimReplay::stored_bytes(std::uint32_t chunk, std::size_t tier) const {
    const double smaller = tiers_[tier].setup.smaller;
    const std::uint64_t bytes = trace_.chunk_bytes[chunk];
    return smaller == 1 ? bytes : std::max<std::uint64_t>(1, static_cast<std::uint64_t>(double(bytes) / smaller));
}

void SimReplay::admit(std::uint32_t chunk, std::size_t tier, bool demoted, std::uint32_t parent_row) {
    const std::uint64_t bytes = stored_bytes(chunk, tier);
    Tier& into = tiers_[tier];
    if (!make_room(tier, bytes, chunk)) {
        if (counts()) ++into.tally.refused;
        return;
    }
    const std::uint32_t row = row_for(chunk);
    Arrival arrival = arrival_[chunk];
    arrival.bytes = bytes;
    arrival.parent_row = parent_row;
    into.policies[tenant_[chunk]]->admit(row, arrival, now_ms_);
    into.used += bytes;
    into.written += bytes;
    if (into.filter) into.filter->came(bytes);
    into.used_by[tenant_[chunk]] += bytes;
    into.tally.peak_bytes = std::max(into.tally.peak_bytes, into.used);
    where_[chunk] = static_cast<std::uint8_t>(where_[chunk] | 1U << tier);
    if (!counts()) return;
    into.tally.written_bytes += bytes;
    if (demoted) into.tally.demoted_bytes += bytes;
}

bool SimReplay::make_room(std::size_t tier, std::uint64_t bytes, std::uint32_t chunk) {
    const std::uint64_t capacity = tiers_[tier].setup.capacity;
    if (bytes > capacity) return false;
    while (tiers_[tier].used + bytes > capacity)
        if (!evict_one(tier, chunk)) return false;
    return true;
}

// Lets the next victim go of whoever has most for its share; false if there is none.
bool SimReplay::evict_one(std::size_t tier, std::uint32_t incoming) {
    Tier& from = tiers_[tier];
    std::int64_t victim = -1;
    double most = -1;
    for (std::size_t tenant = 0; tenant < from.policies.size(); ++tenant) {
        const double full = static_cast<double>(from.used_by[tenant]) / setup_.shares[tenant];
        if (full <= most) continue;
        const std::int64_t found = victim_of(*from.policies[tenant]);
        if (found < 0) continue;
        victim = found;
        most = full;
    }
    if (victim < 0) return false;
    const auto row = static_cast<std::uint32_t>(victim);
    if (from.filter) from.filter->was_full();
    if (oracle_ && setup_.bypass && next_by_chunk_[incoming] >= next_by_row_[row]) return false;
    evict(row, tier);
    return true;
}

// The first in a policy's order that the request at hand has not leased.
std::int64_t SimReplay::victim_of(Policy& policy) {
    const auto is_leased = [&](std::int64_t row) { return leased_[static_cast<std::size_t>(row)] == request_ + 1; };
    std::int64_t row = policy.victim();
    if (row < 0 || !is_leased(row)) return row;
    const std::shared_ptr<Victims> victims = policy.victims();
    do row = victims->next();
    while (row >= 0 && is_leased(row));
    return row;
}

// A chunk leaves a tier, for the next one if there is one and it is not there already.
void SimReplay::evict(std::uint32_t row, std::size_t tier) {
    const std::uint32_t chunk = chunk_of_[row];
    const std::uint64_t bytes = stored_bytes(chunk, tier);
    Tier& from = tiers_[tier];
    from.policies[tenant_[chunk]]->remove(row, true, now_ms_);
    from.used -= bytes;
    from.used_by[tenant_[chunk]] -= bytes;
    where_[chunk] = static_cast<std::uint8_t>(where_[chunk] & ~(1U << tier));
    if (counts()) ++from.tally.evictions;
    if (tier + 1 < tiers_.size() && !here(chunk, tier + 1) && !is_kept_out(chunk, tier + 1))
        admit(chunk, tier + 1, true);
    release_if_gone(chunk);
}

// Whether the filter of a tier, if it has one, refuses what comes down to it.
bool SimReplay::is_kept_out(std::uint32_t chunk, std::size_t tier) {
    Tier& into = tiers_[tier];
    if (!into.filter) return false;
    const std::uint64_t bytes = stored_bytes(chunk, tier);
    into.filter->settle(into.written, now_ms_);
    const Entry entry = into.filter->judge(arrival_[chunk].key, used_[chunk] != 0);
    if (entry == Entry::open) {
        into.filter->begin(bytes);
        into.filter->end(bytes);
        return false;
    }
    into.filter->refuse(entry, bytes);
    if (counts()) ++into.tally.kept_out[static_cast<std::size_t>(entry)];
    return true;
}

// Rows are used again at once, as the store's index does it.
std::uint32_t SimReplay::row_for(std::uint32_t chunk) {
    std::uint32_t& row = row_of_[chunk];
    if (row != kNone) return row;
    if (free_rows_.empty()) {
        row = static_cast<std::uint32_t>(chunk_of_.size());
        chunk_of_.push_back(chunk);
    } else {
        row = free_rows_.back();
        free_rows_.pop_back();
        chunk_of_[row] = chunk;
    }
    leased_[row] = 0;
    if (oracle_) next_by_row_[row] = next_by_chunk_[chunk];
    return row;
}

void SimReplay::release_if_gone(std::uint32_t chunk) {
    // It may have gone already, from a slower tier, while that made room for what made room for it.
    if (where_[chunk] != 0 || row_of_[chunk] == kNone) return;
    used_[chunk] = 0;
    for (std::size_t tier = 0; tier < tiers_.size(); ++tier)
        if (tiers_[tier].filter) tiers_[tier].filter->remember(arrival_[chunk].key, stored_bytes(chunk, tier));
    free_rows_.push_back(row_of_[chunk]);
    row_of_[chunk] = kNone;
}

}  // namespace kvstore
