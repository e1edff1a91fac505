// A tier without bytes: chunks under a policy, up to a capacity. What a request finds in it, and what it brings.
#pragma once

#include "key_table.hpp"
#include "policy.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace kvstore {

class PolicyCache {
public:
    // `policy` must be empty, take `max_rows` and outlive this. std::invalid_argument without capacity or rows.
    PolicyCache(Policy& policy, std::uint64_t capacity, std::uint32_t max_rows);

    // Serves one request: `found` says of each chunk (root first) whether it was there when the request came. Then all
    // are gone through, leaf to root or `forward`: what is there is hit, what is not is demanded and admitted after
    // victims have made room. What is larger than the capacity is not admitted.
    void serve(std::span<const Arrival> chunks, std::int64_t now_ms, bool forward, std::uint8_t* found);

    std::uint64_t used() const { return used_; }
    std::uint64_t evictions() const { return evictions_; }
    std::vector<std::uint64_t> keys() const;

private:
    std::int64_t find(std::uint64_t key) const;
    void take(const Arrival& chunk, std::int64_t now_ms);
    void evict(std::uint32_t row, std::int64_t now_ms);

    struct Held {
        std::uint64_t key;
        std::uint64_t bytes;
    };

    Policy& policy_;
    std::uint64_t capacity_;
    std::uint64_t used_ = 0;
    std::uint64_t evictions_ = 0;
    KeyTable table_;
    std::vector<Held> held_;
    std::vector<std::uint32_t> free_;
};

}  // namespace kvstore
