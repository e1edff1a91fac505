#include "policy_cache.hpp"

#include "mixed_key.hpp"

#include <stdexcept>

namespace kvstore {

PolicyCache::PolicyCache(Policy& policy, std::uint64_t capacity, std::uint32_t max_rows)
    : policy_(policy), capacity_(capacity), table_(max_rows), held_(max_rows) {
    if (capacity == 0 || max_rows == 0) throw std::invalid_argument("a cache needs a capacity and rows");
    if (policy.size() > 0) throw std::invalid_argument("the policy of a new cache must be empty");
    free_.reserve(max_rows);
    for (std::uint32_t row = max_rows; row-- > 0;) free_.push_back(row);
    policy_.set_capacity(capacity);
}

std::int64_t PolicyCache::find(std::uint64_t key) const {
    return table_.find(mixed_key(key), [&](std::uint32_t row) { return held_[row].key == key; });
}

void PolicyCache::serve(std::span<const Arrival> chunks, std::int64_t now_ms, bool forward, std::uint8_t* found) {
    for (std::size_t i = 0; i < chunks.size(); ++i) found[i] = find(chunks[i].key) >= 0;
    for (std::size_t i = 0; i < chunks.size(); ++i) {
        const Arrival& chunk = chunks[forward ? i : chunks.size() - 1 - i];
        const std::int64_t row = find(chunk.key);
        if (row < 0) {
            take(chunk, now_ms);
            continue;
        }
        const auto here = static_cast<std::uint32_t>(row);
        policy_.hit(&here, 1, now_ms);
    }
}

void PolicyCache::take(const Arrival& chunk, std::int64_t now_ms) {
    policy_.demand(&chunk.key, 1, now_ms);
    if (chunk.bytes > capacity_) return;
    while (used_ + chunk.bytes > capacity_ || free_.empty()) {
        const std::int64_t row = policy_.victim();
        if (row < 0) throw std::logic_error("the policy names no victim of a cache that is full");
        evict(static_cast<std::uint32_t>(row), now_ms);
    }
    const std::uint32_t row = free_.back();
    free_.pop_back();
    held_[row] = {chunk.key, chunk.bytes};
    table_.insert(mixed_key(chunk.key), row);
    used_ += chunk.bytes;
    policy_.admit(row, chunk, now_ms);
}

void PolicyCache::evict(std::uint32_t row, std::int64_t now_ms) {
    policy_.remove(row, true, now_ms);
    table_.remove(mixed_key(held_[row].key), row);
    used_ -= held_[row].bytes;
    free_.push_back(row);
    ++evictions_;
}

std::vector<std::uint64_t> PolicyCache::keys() const {
    std::vector<std::uint64_t> keys;
    for (std::uint32_t row = 0; row < held_.size(); ++row)
        if (policy_.contains(row)) keys.push_back(held_[row].key);
    return keys;
}

}  // namespace kvstore
