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
    // `chunks`: so many are held by it, those before it among them.
    void set(std::uint32_t row, std::int64_t until_ms, std::size_t chunks) {
        drop(row);
        waits_[row] = {until_ms, chunks};
        order_.insert({until_ms, row});
        chunks_ += chunks;
    }
    void drop(std::uint32_t row) {
        const auto found = waits_.find(row);
        if (found == waits_.end()) return;
        order_.erase({found->second.until_ms, row});
        chunks_ -= found->second.chunks;
        waits_.erase(found);
    }
    // A row whose time has come; -1: none.
    std::int64_t due(std::int64_t now_ms) const {
        return order_.empty() || order_.begin()->first > now_ms ? -1 : std::int64_t{order_.begin()->second};
    }
    // The row that is awaited the latest, if there is any.
    std::uint32_t last() const { return order_.rbegin()->second; }
    std::size_t size() const { return waits_.size(); }
    // Held by all of them; what two share counts twice.
    std::size_t chunks() const { return chunks_; }

private:
    struct Wait {
        std::int64_t until_ms;
        std::size_t chunks;
    };

    std::unordered_map<std::uint32_t, Wait> waits_;
    std::set<std::pair<std::int64_t, std::uint32_t>> order_;
    std::size_t chunks_ = 0;
};

}  // namespace kvstore
