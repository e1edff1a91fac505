// What the coming and the use of a chunk means to the index and to policies. `now_ms` is Unix time, the index's; policies
// are told of the steady clock.
#pragma once

#include "clocks.hpp"
#include "index.hpp"
#include "policy.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace kvstore {

// Tells a policy that a chunk, or more of it, has come to its tier. Needs the store's lock.
inline void admit_chunk(const Index& index, Policy& policy, std::uint32_t chunk, std::uint8_t tier,
                        std::int64_t now_ms) {
    policy.admit(chunk, index.arrival(chunk, tier, now_ms), steady_ms());
}

// Tells a policy which chunks a tier has after a restart, what was used longest ago first. Needs the store's lock.
inline void restore_chunks(const Index& index, Policy& policy, std::span<const std::uint32_t> chunks, std::uint8_t tier,
                           std::int64_t now_ms) {
    const std::int64_t steady = steady_ms();
    for (std::size_t i = 0; i < chunks.size(); ++i) {
        const std::int64_t used = index.chunk(chunks[i]).last_use;
        policy.restore(chunks[i], index.arrival(chunks[i], tier, used), {now_ms - used, chunks.size() - i}, steady);
    }
}

// Tells a policy which chunks of a look-up it has not, before it is told of the use of those that it has. `rows` are
// what the index has of them, -1 or a row. Needs the store's lock.
inline void demand_missing(Policy& policy, std::uint32_t scope, std::span<const ChunkRef> refs,
                           std::span<const std::int64_t> rows) {
    std::vector<std::uint64_t> keys;
    for (std::size_t i = 0; i < refs.size(); ++i)
        if (rows[i] < 0 || !policy.contains(static_cast<std::uint32_t>(rows[i])))
            keys.push_back(Index::name_of(scope, refs[i].key));
    if (!keys.empty()) policy.demand(keys.data(), keys.size(), steady_ms());
}

// Notes that a chunk was used, unless it is under a lease: its look-up has told. Needs the store's lock.
inline void use_unleased(Index& index, const std::vector<Policy*>& orders, std::uint32_t chunk, std::int64_t now_ms) {
    if (index.is_leased(chunk)) return;
    index.touch(chunk, now_ms);
    const std::int64_t steady = steady_ms();
    for (Policy* const order : orders) order->hit(&chunk, 1, steady);
}

}  // namespace kvstore
