// A key's bits spread over all 64, for tables that use the low ones: the last step of SplitMix64 (Steele, Lea, Flood,
// "Fast splittable pseudorandom number generators", 2014).
#pragma once

#include <cstdint>

namespace kvstore {

inline std::uint64_t mixed_key(std::uint64_t key) {
    key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9ULL;
    key = (key ^ (key >> 27)) * 0x94D049BB133111EBULL;
    return key ^ (key >> 31);
}

}  // namespace kvstore
