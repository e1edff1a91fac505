// A best-fit allocator over offsets. It keeps the holes alone, outside the memory that it divides: an
// allocation costs nothing while it lives, and its owner remembers its size.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

namespace kvstore {

class Allocator {
public:
    Allocator(std::uint64_t capacity, std::uint64_t granularity)
        : capacity_(granularity == 0 ? 0 : capacity / granularity * granularity), granularity_(granularity) {
        if (granularity == 0) throw std::invalid_argument("granularity must be at least 1");
        if (capacity_ > 0) add_hole(0, capacity_);
        free_ = capacity_;
    }

    std::int64_t allocate(std::uint64_t bytes) {
        if (bytes == 0) throw std::invalid_argument("nbytes must be at least 1");
        if (bytes > capacity_) return -1;
        const std::uint64_t size = rounded(bytes);
        const auto best = by_size_.lower_bound({size, 0});
        if (best == by_size_.end()) return -1;
        const auto [hole_size, offset] = *best;
        by_size_.erase(best);
        const auto hole = by_offset_.find(offset);
        if (hole_size == size) {
            by_offset_.erase(hole);
        } else {
            shrink_front(hole, size);
        }
        free_ -= size;
        return static_cast<std::int64_t>(offset);
    }

    void release(std::uint64_t offset, std::uint64_t bytes) {
        check_range(offset, bytes);
        std::uint64_t begin = offset;
        std::uint64_t end = offset + rounded(bytes);
        const auto next = by_offset_.lower_bound(begin);
        const auto previous = next == by_offset_.begin() ? by_offset_.end() : std::prev(next);
        const bool meets_next = next != by_offset_.end() && next->first < end;
        const bool meets_previous = previous != by_offset_.end() && previous->first + previous->second > begin;
        if (meets_next || meets_previous) fail("double free: part is free already", offset, bytes);
        free_ += end - begin;
        if (next != by_offset_.end() && next->first == end) {
            end += next->second;
            by_size_.erase({next->second, next->first});
            by_offset_.erase(next);
        }
        if (previous != by_offset_.end() && previous->first + previous->second == begin) {
            by_size_.erase({previous->second, previous->first});
            previous->second = end - previous->first;
            by_size_.insert({previous->second, previous->first});
        } else {
            add_hole(begin, end - begin);
        }
    }

    std::uint64_t capacity() const { return capacity_; }
    std::uint64_t granularity() const { return granularity_; }
    std::uint64_t free_bytes() const { return free_; }
    std::uint64_t used() const { return capacity_ - free_; }
    std::uint64_t largest_hole() const { return by_size_.empty() ? 0 : by_size_.rbegin()->first; }
    std::size_t holes() const { return by_offset_.size(); }

private:
    using ByOffset = std::map<std::uint64_t, std::uint64_t>;

    // For sizes of at most the capacity, a multiple of the granularity: it cannot overflow.
    std::uint64_t rounded(std::uint64_t bytes) const {
        const std::uint64_t rest = bytes % granularity_;
        return rest == 0 ? bytes : bytes - rest + granularity_;
    }

    void add_hole(std::uint64_t offset, std::uint64_t size) {
        by_offset_.emplace(offset, size);
        by_size_.emplace(size, offset);
    }

    void shrink_front(ByOffset::iterator hole, std::uint64_t size) {
        auto node = by_offset_.extract(hole);
        node.key() += size;
        node.mapped() -= size;
        by_size_.emplace(node.mapped(), node.key());
        by_offset_.insert(std::move(node));
    }

    void check_range(std::uint64_t offset, std::uint64_t bytes) const {
        if (bytes == 0) fail("nbytes must be at least 1", offset, bytes);
        if (offset % granularity_ != 0) fail("the offset is no multiple of the granularity", offset, bytes);
        if (offset >= capacity_ || bytes > capacity_ - offset) fail("out of range", offset, bytes);
    }

    [[noreturn]] static void fail(const char* reason, std::uint64_t offset, std::uint64_t bytes) {
        throw std::invalid_argument("free(" + std::to_string(offset) + ", " + std::to_string(bytes) + "): " + reason);
    }

    std::uint64_t capacity_;
    std::uint64_t granularity_;
    std::uint64_t free_ = 0;
    ByOffset by_offset_;
    std::set<std::pair<std::uint64_t, std::uint64_t>> by_size_;
};

}  // namespace kvstore
