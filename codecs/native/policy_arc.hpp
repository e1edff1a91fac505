// ARC (Megiddo, Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003), in bytes.
#pragma once

#include "ghosts.hpp"
#include "held_rows.hpp"
#include "policy_list.hpp"

namespace kvstore {

// Two LRU queues, of what was used once and of what was used more often, and what either has lost lately. A ghost that
// comes back moves the target for the first queue (`target_`, the paper's p) by its own size, or by more where its side
// has the fewer ghosts. Bounds are the paper's: the first queue and its ghosts have at most the capacity, everything
// together twice that. O(1), 96 bytes a row at most.
class ArcPolicy final : public ListPolicy {
public:
    explicit ArcPolicy(std::uint32_t max_rows) : rows_(max_rows), ghosts_(max_rows) {}

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
    static constexpr std::uint32_t kOnce = 0, kOften = 1;  // of rows and of ghosts
    static constexpr std::uint32_t kAsked = 2;             // ghosts that were asked for since, and have not come yet

    std::uint64_t capacity() const { return capacity_ != 0 ? capacity_ : rows_.all_bytes(); }
    void adapt(const Ghost& ghost);
    void make_room(std::uint64_t bytes);

    HeldRows<2> rows_;
    Ghosts<3> ghosts_;
    std::uint64_t capacity_ = 0;
    double target_ = 0;
    bool asked_often_ = false;  // what was asked for last was a ghost of the second queue
    bool once_first_ = true;
};

}  // namespace kvstore
