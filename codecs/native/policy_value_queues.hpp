// Queues of rows in the order of their worth: finding the first row of the least of them costs a few words of a bitmap.
#pragma once

#include "row_links.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <memory>
#include <utility>
#include <vector>

namespace kvstore {

// Each queue there is once in each class, of rows that are worth as much and so many times more: half an octave a class.
// Lists of a class come to be with its first row.
template <std::size_t kQueues, std::size_t kClasses>
class RankedQueues {
    static_assert(kQueues * kClasses < 0xFFFF);

public:
    static constexpr std::size_t kNeutral = kClasses / 2 - 1;  // the class whose rows are worth what their queue is

    explicit RankedQueues(std::uint32_t max_rows) : links_(max_rows) {
        for (std::size_t queue = 0; queue < kQueues; ++queue) sorted_[queue] = {0.0, static_cast<std::uint16_t>(queue)};
        begin_class(kNeutral);
    }

    void check(std::uint32_t row) const { links_.check(row); }
    bool contains(std::uint64_t row) const { return links_.contains(row); }

    static std::size_t in_class(std::size_t queue, std::size_t worth) { return worth * kQueues + queue; }

    // Before the first row of a class is put into a queue. Ranks change.
    void begin_class(std::size_t worth) {
        if (lists_[worth]) return;
        lists_[worth] = std::make_unique<Lists>();
        order();
    }

    void append(std::size_t queue, std::uint32_t row) {
        links_.append(list(queue), row);
        mark(queue);
    }
    void prepend(std::size_t queue, std::uint32_t row) {
        links_.prepend(list(queue), row);
        mark(queue);
    }
    void unlink(std::size_t queue, std::uint32_t row) {
        links_.unlink(list(queue), row);
        if (list(queue).size == 0) filled_[rank_[queue] / 64] &= ~(std::uint64_t{1} << rank_[queue] % 64);
    }

    // The first row of the least queue, from this rank on, that has any; -1: none.
    std::int64_t first(std::size_t rank = 0) const {
        for (std::size_t word = rank / 64; word < filled_.size(); ++word) {
            std::uint64_t filled = filled_[word];
            if (word == rank / 64) filled &= ~std::uint64_t{0} << rank % 64;
            if (filled != 0) return RowLinks::oldest(list(order_[word * 64 + std::countr_zero(filled)]));
        }
        return -1;
    }
    // The next row of the queue that this one is in; -1: it is the last.
    std::int64_t newer(std::uint32_t row) const { return links_.newer(row); }
    std::size_t rank_of(std::size_t queue) const { return rank_[queue]; }

    // Puts the queues in the order of `worth(queue)`, least first; each in its classes.
    template <typename Worth>
    void rank(Worth worth) {
        for (std::size_t queue = 0; queue < kQueues; ++queue)
            sorted_[queue] = {worth(queue), static_cast<std::uint16_t>(queue)};
        std::sort(sorted_.begin(), sorted_.end());
        order();
    }

private:
    using Ranked = std::pair<double, std::uint16_t>;
    using Lists = std::array<RowLinks::List, kQueues>;

    RowLinks::List& list(std::size_t queue) { return (*lists_[queue / kQueues])[queue % kQueues]; }
    const RowLinks::List& list(std::size_t queue) const { return (*lists_[queue / kQueues])[queue % kQueues]; }
    void mark(std::size_t queue) { filled_[rank_[queue] / 64] |= std::uint64_t{1} << rank_[queue] % 64; }

    // Merges the orders of all classes, which are one another's, so many times as much.
    void order() {
        std::vector<Ranked> ranked, merged;
        for (std::size_t worth = 0; worth < kClasses; ++worth) {
            if (!lists_[worth]) continue;
            const double factor = std::exp2((static_cast<double>(worth) - kNeutral) / 2);
            std::vector<Ranked> more(kQueues);
            std::transform(sorted_.begin(), sorted_.end(), more.begin(), [&](const Ranked& each) {
                return Ranked{each.first * factor, static_cast<std::uint16_t>(in_class(each.second, worth))};
            });
            merged.clear();
            std::merge(ranked.begin(), ranked.end(), more.begin(), more.end(), std::back_inserter(merged));
            std::swap(ranked, merged);
        }
        order_.resize(ranked.size());
        filled_.assign((ranked.size() + 63) / 64, 0);
        for (std::size_t rank = 0; rank < ranked.size(); ++rank) {
            const std::uint16_t queue = order_[rank] = ranked[rank].second;
            rank_[queue] = static_cast<std::uint16_t>(rank);
            if (list(queue).size > 0) mark(queue);
        }
    }

    RowLinks links_;
    std::array<std::unique_ptr<Lists>, kClasses> lists_;
    std::array<Ranked, kQueues> sorted_;  // without classes
    std::vector<std::uint16_t> order_;
    std::array<std::uint16_t, kQueues * kClasses> rank_{};
    std::vector<std::uint64_t> filled_;
};

}  // namespace kvstore
