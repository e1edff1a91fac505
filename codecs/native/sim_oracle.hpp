// Belady's rule as a policy: what is used again last goes first. Only a simulator can tell it the future.
#pragma once

#include "policy_list.hpp"

#include <cstdint>
#include <set>
#include <utility>
#include <vector>

namespace kvstore {

// When a row is used next: the number of the request, then its place in that request's prompt, so that of one prefix
// the tail goes before the head. All ones: never.
using NextUse = std::uint64_t;

class OraclePolicy final : public ListPolicy {
public:
    // `next` says it of every row and is kept up to date by the simulator, before it tells of a use.
    OraclePolicy(const std::vector<NextUse>& next, std::uint32_t max_rows) : next_(next), placed_(max_rows, kAbsent) {}

    void admit(std::uint32_t row, const Arrival&, std::int64_t) override { place(row); }
    void hit(const std::uint32_t* rows, std::size_t count, std::int64_t) override {
        for (std::size_t i = 0; i < count; ++i)
            if (contains(rows[i])) place(rows[i]);
    }
    void remove(std::uint32_t row, bool, std::int64_t) override {
        if (!contains(row)) return;
        order_.erase({placed_[row], row});
        placed_[row] = kAbsent;
    }
    std::size_t size() const override { return order_.size(); }
    bool contains(std::uint32_t row) const override { return row < placed_.size() && placed_[row] != kAbsent; }

protected:
    std::int64_t following(std::int64_t row) override {
        if (row < 0 || !contains(static_cast<std::uint32_t>(row)))
            return order_.empty() ? -1 : std::int64_t{order_.rbegin()->second};
        const auto found = order_.find({placed_[static_cast<std::size_t>(row)], static_cast<std::uint32_t>(row)});
        return found == order_.begin() ? -1 : std::int64_t{std::prev(found)->second};
    }

private:
    // No chunk is used in request 0 again, since that is where the trace begins.
    static constexpr NextUse kAbsent = 0;

    void place(std::uint32_t row) {
        if (placed_[row] != kAbsent) order_.erase({placed_[row], row});
        placed_[row] = next_[row];
        order_.insert({placed_[row], row});
    }

    const std::vector<NextUse>& next_;
    std::vector<NextUse> placed_;
    std::set<std::pair<NextUse, std::uint32_t>> order_;
};

}  // namespace kvstore
