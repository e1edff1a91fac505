// What was used of what another tier holds: a policy that orders nothing and remembers every use.
#pragma once

#include "index.hpp"
#include "policy_list.hpp"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <iterator>
#include <utility>
#include <vector>

namespace kvstore {

// It stands among the orders of a namespace, so that whoever tells of a use, native code too, tells it. `most` uses of
// one prefix each are kept, the last ones. Needs the store's lock.
class UseLog final : public ListPolicy {
public:
    UseLog(const Index& index, std::uint8_t tier, std::size_t most) : index_(index), tier_(tier), most_(most) {}

    void hit(const std::uint32_t* rows, std::size_t count, std::int64_t) override {
        std::vector<std::uint32_t> held;
        std::copy_if(rows, rows + count, std::back_inserter(held), [&](std::uint32_t row) { return holds(row); });
        if (held.empty()) return;
        if (uses_.size() == most_) uses_.pop_front();
        uses_.push_back(std::move(held));
    }
    // The rows that were used since this was asked last, by prefix, root first.
    std::deque<std::vector<std::uint32_t>> take() { return std::exchange(uses_, {}); }

    void admit(std::uint32_t, const Arrival&, std::int64_t) override {}
    void remove(std::uint32_t, bool, std::int64_t) override {}
    std::size_t size() const override { return 0; }
    bool contains(std::uint32_t) const override { return false; }

protected:
    std::int64_t following(std::int64_t) override { return -1; }

private:
    bool holds(std::uint32_t row) const {
        if (!index_.is_live_chunk(row)) return false;
        for (std::uint32_t part = index_.chunk(row).first_part; part != kNone; part = index_.part(part).next)
            if (index_.find_placement(part, tier_) >= 0) return true;
        return false;
    }

    const Index& index_;
    std::uint8_t tier_;
    std::size_t most_;
    std::deque<std::vector<std::uint32_t>> uses_;
};

}  // namespace kvstore
