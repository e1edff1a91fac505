// MQ (Zhou, Philbin, Li, "The multi-queue replacement algorithm for second level buffer caches", USENIX ATC 2001).
#pragma once

#include "ghosts.hpp"
#include "held_rows.hpp"
#include "policy_list.hpp"

namespace kvstore {

// Eight LRU queues by the logarithm of how often a chunk was used, the least used goes first. Whatever was not used for
// `life` accesses goes down a queue: as many as there are chunks, or 10,000. (The paper wants the distance at which most
// reuse happens, which has to be measured beforehand.) Ghosts, four times the capacity of them, keep how often.
// O(queues) an event, 96 bytes a row at most.
class MqPolicy final : public ListPolicy {
public:
    explicit MqPolicy(std::uint32_t max_rows) : rows_(max_rows), ghosts_(max_rows) {}

    void admit(std::uint32_t row, const Arrival& chunk, std::int64_t now_ms) override;
    void hit(const std::uint32_t* rows, std::size_t count, std::int64_t now_ms) override;
    void remove(std::uint32_t row, bool evicted, std::int64_t now_ms) override;
    void set_capacity(std::uint64_t bytes) override { capacity_ = bytes; }
    std::size_t size() const override { return rows_.all(); }
    bool contains(std::uint32_t row) const override { return rows_.contains(row); }

protected:
    std::int64_t following(std::int64_t row) override;

private:
    static constexpr std::size_t kQueues = 8;
    static constexpr std::array<std::uint8_t, kQueues> kOrder{0, 1, 2, 3, 4, 5, 6, 7};
    static constexpr std::uint32_t kMostUses = 1U << kQueues;  // that are counted
    static constexpr std::uint64_t kGhostShare = 4;
    static constexpr std::int64_t kLeastLife = 10'000;

    std::uint64_t capacity() const { return capacity_ != 0 ? capacity_ : rows_.all_bytes(); }
    std::int64_t life() const;
    void adjust();

    HeldRows<kQueues> rows_;
    Ghosts<> ghosts_;
    std::uint64_t capacity_ = 0;
    std::int64_t accesses_ = 0;
};

}  // namespace kvstore
