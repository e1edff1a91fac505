// Chunks that were here and are not, by key alone, in a few queues, oldest first. Bounded: where all places are taken
// the oldest of the longest queue makes room.
#pragma once

#include "key_chains.hpp"
#include "mapped_array.hpp"
#include "row_links.hpp"

#include <array>
#include <cstdint>

namespace kvstore {

struct Ghost {
    std::uint64_t key;
    std::uint64_t bytes;
    std::uint16_t uses;
    std::uint16_t queue;
    std::uint32_t chain = 0;  // KeyChains'
};

template <std::size_t kQueues = 1>
class Ghosts {
public:
    explicit Ghosts(std::uint32_t max_ghosts) : ghosts_(max_ghosts), links_(max_ghosts), table_(ghosts_) {}

    std::int64_t find(std::uint64_t key) const { return table_.find(key); }
    const Ghost& operator[](std::int64_t at) const { return ghosts_[static_cast<std::size_t>(at)]; }

    // As the newest of its queue; one that is known becomes that.
    void add(const Ghost& ghost) {
        drop(find(ghost.key));
        if (free_ == 0 && used_ == ghosts_.size()) drop_oldest(longest());
        const std::uint32_t at = take();
        ghosts_[at] = ghost;
        table_.insert(at);
        links_.append(queues_[ghost.queue], at);
        bytes_[ghost.queue] += ghost.bytes;
    }

    // One that is not there (-1) is ignored.
    void drop(std::int64_t found) {
        if (found < 0) return;
        const auto at = static_cast<std::uint32_t>(found);
        const Ghost& ghost = ghosts_[at];
        table_.remove(at);
        links_.unlink(queues_[ghost.queue], at);
        bytes_[ghost.queue] -= ghost.bytes;
        ghosts_[at].bytes = free_;  // a free place holds the number of the next one, from 1 on
        free_ = at + 1;
    }
    void drop_oldest(std::size_t queue = 0) { drop(RowLinks::oldest(queues_[queue])); }

    std::uint64_t bytes(std::size_t queue = 0) const { return bytes_[queue]; }
    std::size_t size(std::size_t queue = 0) const { return queues_[queue].size; }
    // Drops the oldest until the queue has at most so many bytes.
    void shrink(std::uint64_t most, std::size_t queue = 0) {
        while (bytes_[queue] > most) drop_oldest(queue);
    }

private:
    std::uint32_t take() {
        if (free_ == 0) return used_++;
        const auto at = static_cast<std::uint32_t>(free_ - 1);
        free_ = ghosts_[at].bytes;
        return at;
    }

    std::size_t longest() const {
        std::size_t found = 0;
        for (std::size_t queue = 1; queue < kQueues; ++queue)
            if (queues_[queue].size > queues_[found].size) found = queue;
        return found;
    }

    MappedArray<Ghost> ghosts_;
    RowLinks links_;
    KeyChains<Ghost> table_;
    std::array<RowLinks::List, kQueues> queues_{};
    std::array<std::uint64_t, kQueues> bytes_{};
    std::uint64_t free_ = 0;
    std::uint32_t used_ = 0;
};

}  // namespace kvstore
