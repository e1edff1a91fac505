// What the use of a chunk means to the index and to the orders of use.
#pragma once

#include "index.hpp"
#include "lru.hpp"

#include <cstdint>
#include <vector>

namespace kvstore {

// Notes that a chunk was used, unless it is under a lease: its look-up has told. Needs the store's lock.
inline void use_unleased(Index& index, const std::vector<LruList*>& orders, std::uint32_t chunk, std::int64_t now_ms) {
    if (index.is_leased(chunk)) return;
    index.touch(chunk, now_ms);
    for (LruList* const order : orders) order->touch(chunk);
}

}  // namespace kvstore
