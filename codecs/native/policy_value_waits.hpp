// Of `value`: rows that are awaited, each until some time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <unordered_map>
#include <utility>

namespace kvstore {

// However often a row is named it is here once, so that clients cannot make this larger than the tier. O(log rows).
class Waits {
public:
    void set(std::uint32_t row, std::int64_t until_ms) {
        drop(row);
        until_[row] = until_ms;
        order_.insert({until_ms, row});
    }
    void drop(std::uint32_t row) {
        const auto found = until_.find(row);
        if (found == until_.end()) return;
        order_.erase({found->second, row});
        until_.erase(found);
    }
    // A row whose time has come; -1: none.
    std::int64_t due(std::int64_t now_ms) const {
        return order_.empty() || order_.begin()->first > now_ms ? -1 : std::int64_t{order_.begin()->second};
    }
    std::size_t size() const { return until_.size(); }

private:
    std::unordered_map<std::uint32_t, std::int64_t> until_;
    std::set<std::pair<std::int64_t, std::uint32_t>> order_;
};

}  // namespace kvstore
