// Least-recently-used order over small numbers: a doubly linked list threaded through one array.
#pragma once

#include "mapped_array.hpp"

#include <cstdint>
#include <stdexcept>
#include <string>

namespace kvstore {

class LruList {
public:
    explicit LruList(std::uint32_t max_handles) : links_(max_handles) {
        if (max_handles > kMaxHandles)
            throw std::invalid_argument("max_handles must be at most " + std::to_string(kMaxHandles));
    }

    void push(std::uint64_t handle) {
        check(handle);
        if (contains(handle)) unlink(handle);
        append(handle);
    }

    // One that is not in the list is ignored.
    void touch(std::uint64_t handle) {
        if (!contains(handle)) return;
        unlink(handle);
        append(handle);
    }

    bool remove(std::uint64_t handle) {
        check(handle);
        if (!contains(handle)) return false;
        unlink(handle);
        return true;
    }

    std::int64_t oldest() const { return to_handle(oldest_); }

    std::int64_t newer(std::uint64_t handle) const {
        check(handle);
        if (!contains(handle))
            throw std::invalid_argument("handle " + std::to_string(handle) + " is not in the list");
        return to_handle(links_[handle].newer);
    }

    bool contains(std::uint64_t handle) const { return handle < links_.size() && links_[handle].newer != kAbsent; }
    std::size_t size() const { return size_; }

private:
    // A link is a handle plus kFirst, so that the zero pages of a new list read as "absent".
    using Link = std::uint32_t;
    static constexpr Link kAbsent = 0;
    static constexpr Link kEnd = 1;
    static constexpr Link kFirst = 2;
    static constexpr std::uint32_t kMaxHandles = 0xFFFFFFFFU - kFirst;

    struct Node {
        Link newer;
        Link older;
    };

    static Link to_link(std::uint64_t handle) { return static_cast<Link>(handle) + kFirst; }
    static std::int64_t to_handle(Link link) { return link == kEnd ? -1 : std::int64_t{link} - kFirst; }

    void check(std::uint64_t handle) const {
        if (handle >= links_.size())
            throw std::out_of_range("handle " + std::to_string(static_cast<std::int64_t>(handle)) +
                                    " is outside a list of " + std::to_string(links_.size()));
    }

    Link& newer_of(Link link) { return link == kEnd ? oldest_ : links_[link - kFirst].newer; }
    Link& older_of(Link link) { return link == kEnd ? newest_ : links_[link - kFirst].older; }

    void append(std::uint64_t handle) {
        links_[handle] = {kEnd, newest_};
        newer_of(newest_) = to_link(handle);
        newest_ = to_link(handle);
        ++size_;
    }

    void unlink(std::uint64_t handle) {
        const Node node = links_[handle];
        newer_of(node.older) = node.newer;
        older_of(node.newer) = node.older;
        links_[handle] = {kAbsent, kAbsent};
        --size_;
    }

    MappedArray<Node> links_;
    Link oldest_ = kEnd;
    Link newest_ = kEnd;
    std::size_t size_ = 0;
};

}  // namespace kvstore
