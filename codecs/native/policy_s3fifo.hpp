// S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction", SOSP 2023), in bytes.
#pragma once

#include "ghosts.hpp"
#include "held_rows.hpp"
#include "policy_list.hpp"

namespace kvstore {

// A small queue of a tenth takes what is new and passes on what is used twice there; the main queue goes round, an
// extra time for each use. What leaves the small one unused is remembered, nine tenths of the capacity of it, and
// enters the main one when it comes back. Amortised O(1), 96 bytes a row at most.
class S3FifoPolicy final : public ListPolicy {
public:
    explicit S3FifoPolicy(std::uint32_t max_rows) : rows_(max_rows), ghosts_(max_rows) {}

    void admit(std::uint32_t row, const Arrival& chunk, std::int64_t now_ms) override;
    void hit(const std::uint32_t* rows, std::size_t count, std::int64_t now_ms) override;
    void demand(const std::uint64_t* keys, std::size_t count, std::int64_t now_ms) override;
    void remove(std::uint32_t row, bool evicted, std::int64_t now_ms) override;
    void set_capacity(std::uint64_t bytes) override { capacity_ = bytes; }
    std::size_t size() const override { return rows_.all(); }
    bool contains(std::uint32_t row) const override { return rows_.contains(row); }

protected:
    std::int64_t following(std::int64_t row) override;

private:
    static constexpr std::uint32_t kSmall = 0, kMain = 1;
    static constexpr std::uint32_t kGhost = 0, kAsked = 1;  // asked for since, and not come yet
    static constexpr std::uint32_t kPassOn = 2;             // uses in the small queue
    static constexpr std::uint32_t kMostUses = 3;           // that count

    std::uint64_t capacity() const { return capacity_ != 0 ? capacity_ : rows_.all_bytes(); }
    std::uint64_t small_most() const { return capacity() / 10; }
    std::uint64_t ghosts_most() const { return capacity() - (capacity() + 9) / 10; }
    void settle_small();
    void settle_main();

    HeldRows<2> rows_;
    Ghosts<2> ghosts_;
    std::uint64_t capacity_ = 0;
    bool has_evicted_ = false;
    bool main_first_ = false;
};

}  // namespace kvstore
