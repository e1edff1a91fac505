// Of `value`: victims one after the other.
#pragma once

#include "policy_value.hpp"

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace kvstore {

// Chunks that it has told of count as gone, so that what comes next is what would be the victim if they were: a parent,
// perhaps. It changes nothing, so that whatever happens meanwhile finds everything where it is; the policy tells it. Each
// chunk that is here from beginning to end is told of once, after all that follow it here. What moved behind where it
// stands comes at the end, when it goes through all queues once more. 1 bit a row, and some 40 bytes for each parent
// between what it has told of and what it has not.
class ValuePolicy::Cursor final : public Victims {
public:
    explicit Cursor(ValuePolicy& policy) : policy_(policy) {}

    std::int64_t next() override;

    // A chunk has come, its parent is known; it is about to leave; its node is forgotten.
    void came(std::uint32_t node);
    void leaves(std::uint32_t node);
    void forgets(std::uint32_t node) { untold_.erase(node); }
    // A row is about to leave its queue. Queues have more rows, or another order.
    void dequeues(std::uint32_t row) {
        if (row == next_) next_ = policy_.queues_.newer(row);
    }
    void stir() { stirred_ = true; }
    // The policy that is followed is about to go.
    void unfollows() { order_.reset(); }

private:
    struct Freed {
        std::size_t rank;
        std::size_t turn;
        std::uint32_t node;
        // Of a heap: the least rank first, and of one the one that was freed last.
        bool operator<(const Freed& other) const {
            return rank != other.rank ? rank > other.rank : turn < other.turn;
        }
    };

    bool is_told(std::uint32_t row) const {
        const auto found = told_.find(row / 64);
        return found != told_.end() && (found->second >> row % 64 & 1U) != 0;
    }
    void tell(std::uint32_t row);
    void count_down(std::uint32_t parent);
    void free(std::uint32_t node);
    bool is_free(std::uint32_t node) const;
    std::int64_t in_queues();
    std::int64_t followed();

    ValuePolicy& policy_;
    std::unordered_map<std::uint32_t, std::uint64_t> told_;    // rows, 64 bits at a time
    std::unordered_map<std::uint32_t, std::uint32_t> untold_;  // by parent: children here, once one was told of
    std::vector<Freed> freed_;                                 // parents of which all children here have been told of
    std::size_t turns_ = 0;
    std::int64_t next_ = -1;   // in its queue
    std::int64_t queue_ = -1;  // the one that it is in
    bool stirred_ = false;
    std::shared_ptr<Victims> order_;  // by the policy that is followed
};

}  // namespace kvstore
