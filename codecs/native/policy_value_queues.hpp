// Queues of rows in the order of their worth: finding the first row of the least of them costs a few words of a bitmap.
#pragma once

#include "row_links.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <numeric>
#include <utility>

namespace kvstore {

template <std::size_t kQueues>
class RankedQueues {
public:
    explicit RankedQueues(std::uint32_t max_rows) : links_(max_rows) {
        std::iota(order_.begin(), order_.end(), std::uint16_t{0});
        rank_ = order_;
    }

    void check(std::uint32_t row) const { links_.check(row); }
    bool contains(std::uint64_t row) const { return links_.contains(row); }

    void append(std::size_t queue, std::uint32_t row) {
        links_.append(lists_[queue], row);
        mark(queue);
    }
    void prepend(std::size_t queue, std::uint32_t row) {
        links_.prepend(lists_[queue], row);
        mark(queue);
    }
    // Just before one that is in this queue.
    void insert_older(std::size_t queue, std::uint32_t row, std::uint32_t anchor) {
        links_.insert_older(lists_[queue], row, anchor);
        mark(queue);
    }
    void unlink(std::size_t queue, std::uint32_t row) {
        links_.unlink(lists_[queue], row);
        if (lists_[queue].size == 0) filled_[rank_[queue] / 64] &= ~(std::uint64_t{1} << rank_[queue] % 64);
    }

    // The first row of the least queue, from this rank on, that has any; -1: none.
    std::int64_t first(std::size_t rank = 0) const {
        for (std::size_t word = rank / 64; word < kWords; ++word) {
            std::uint64_t filled = filled_[word];
            if (word == rank / 64) filled &= ~std::uint64_t{0} << rank % 64;
            if (filled != 0) return RowLinks::oldest(lists_[order_[word * 64 + std::countr_zero(filled)]]);
        }
        return -1;
    }
    // The next row of the queue that this one is in; -1: it is the last.
    std::int64_t newer(std::uint32_t row) const { return links_.newer(row); }
    std::size_t rank_of(std::size_t queue) const { return rank_[queue]; }

    // Puts the queues in the order of `worth(queue)`, least first.
    template <typename Worth>
    void rank(Worth worth) {
        std::array<std::pair<double, std::uint16_t>, kQueues> sorted;
        for (std::size_t queue = 0; queue < kQueues; ++queue)
            sorted[queue] = {worth(queue), static_cast<std::uint16_t>(queue)};
        std::sort(sorted.begin(), sorted.end());
        filled_ = {};
        for (std::size_t rank = 0; rank < kQueues; ++rank) {
            order_[rank] = sorted[rank].second;
            rank_[order_[rank]] = static_cast<std::uint16_t>(rank);
            if (lists_[order_[rank]].size > 0) mark(order_[rank]);
        }
    }

private:
    static constexpr std::size_t kWords = (kQueues + 63) / 64;

    void mark(std::size_t queue) { filled_[rank_[queue] / 64] |= std::uint64_t{1} << rank_[queue] % 64; }

    RowLinks links_;
    std::array<RowLinks::List, kQueues> lists_{};
    std::array<std::uint16_t, kQueues> order_{}, rank_{};
    std::array<std::uint64_t, kWords> filled_{};
};

}  // namespace kvstore
