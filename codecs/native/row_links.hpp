// Doubly linked lists of rows, all threaded through one array: a row is in one of them at most.
#pragma once

#include "mapped_array.hpp"

#include <cstdint>
#include <stdexcept>
#include <string>

namespace kvstore {

class RowLinks {
    // A link is a row plus kFirst, so that the zero pages of a new array read as "in no list".
    using Link = std::uint32_t;
    static constexpr Link kAbsent = 0;
    static constexpr Link kEnd = 1;
    static constexpr Link kFirst = 2;

public:
    static constexpr std::uint32_t kMaxRows = 0xFFFFFFFFU - kFirst;

    struct List {
        Link oldest = kEnd;
        Link newest = kEnd;
        std::size_t size = 0;
    };

    explicit RowLinks(std::uint32_t max_rows) : links_(max_rows) {
        if (max_rows > kMaxRows) throw std::invalid_argument("max_rows must be at most " + std::to_string(kMaxRows));
    }

    // For numbers from outside.
    void check(std::uint32_t row) const {
        if (row >= links_.size())
            throw std::out_of_range("row " + std::to_string(row) + " is outside a policy of " +
                                    std::to_string(links_.size()));
    }
    bool contains(std::uint64_t row) const { return row < links_.size() && links_[row].newer != kAbsent; }

    // The row must be in no list.
    void append(List& list, std::uint32_t row) {
        links_[row] = {kEnd, list.newest};
        newer_of(list, list.newest) = row + kFirst;
        list.newest = row + kFirst;
        ++list.size;
    }

    // The row must be in no list, `anchor` in this one.
    void insert_older(List& list, std::uint32_t row, std::uint32_t anchor) {
        const Link older = links_[anchor].older;
        links_[row] = {anchor + kFirst, older};
        links_[anchor].older = row + kFirst;
        newer_of(list, older) = row + kFirst;
        ++list.size;
    }

    // The row must be in this list.
    void unlink(List& list, std::uint32_t row) {
        const Node node = links_[row];
        newer_of(list, node.older) = node.newer;
        older_of(list, node.newer) = node.older;
        links_[row] = {kAbsent, kAbsent};
        --list.size;
    }

    void make_newest(List& list, std::uint32_t row) {
        if (list.newest == row + kFirst) return;
        unlink(list, row);
        append(list, row);
    }

    static std::int64_t oldest(const List& list) { return to_row(list.oldest); }
    // The next newer row of the same list, -1 at its end.
    std::int64_t newer(std::uint32_t row) const { return to_row(links_[row].newer); }

private:
    struct Node {
        Link newer;
        Link older;
    };

    static std::int64_t to_row(Link link) { return link == kEnd ? -1 : std::int64_t{link} - kFirst; }
    Link& newer_of(List& list, Link link) { return link == kEnd ? list.oldest : links_[link - kFirst].newer; }
    Link& older_of(List& list, Link link) { return link == kEnd ? list.newest : links_[link - kFirst].older; }

    MappedArray<Node> links_;
};

}  // namespace kvstore
