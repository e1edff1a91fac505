#include "holdings.hpp"

#include <algorithm>

namespace kvstore {

void Holdings::add(std::uint64_t number, std::uint8_t* data, Allocator& allocator) {
    extents_.push_back({number, data, &allocator});
}

void Holdings::remove(std::uint64_t number) {
    std::erase_if(extents_, [&](const Extent& each) { return each.number == number; });
}

std::int64_t Holdings::alloc(std::uint64_t bytes) {
    const std::optional<Plot> found = find(bytes);
    return found ? static_cast<std::int64_t>(found->location) : -1;
}

std::optional<Plot> Holdings::find(std::uint64_t bytes) {
    if (ended_) return {};
    for (const Extent& each : extents_) {
        const std::int64_t offset = each.allocator->allocate(bytes);
        if (offset >= 0)
            return Plot{each.number << kExtentShift | static_cast<std::uint64_t>(offset), each.data + offset};
    }
    return {};
}

std::optional<Plot> Holdings::take(std::uint64_t bytes) {
    const std::lock_guard held(lock_);
    const std::optional<Plot> found = find(bytes);
    if (found) users_.fetch_add(1, std::memory_order_relaxed);
    return found;
}

void Holdings::give_back(const Plot& plot, std::uint64_t bytes) {
    {
        const std::lock_guard held(lock_);
        const auto extent = std::find_if(extents_.begin(), extents_.end(), [&](const Extent& each) {
            return each.number == plot.location >> kExtentShift;
        });
        // It is there still: an extent with memory in use is not replaced.
        if (extent != extents_.end())
            extent->allocator->release(static_cast<std::uint64_t>(plot.data - extent->data), bytes);
    }
    used();
}

const std::uint8_t* Holdings::at(std::uint64_t location) {
    const std::lock_guard held(lock_);
    for (const Extent& each : extents_)
        if (each.number == location >> kExtentShift) return each.data + (location & kOffsetMask);
    return nullptr;
}

void Holdings::used() {
    if (users_.fetch_sub(1, std::memory_order_release) == 1) users_.notify_all();
}

void Holdings::wait_for_users() const {
    for (std::uint32_t left; (left = users_.load(std::memory_order_acquire)) != 0;) users_.wait(left);
}

}  // namespace kvstore
