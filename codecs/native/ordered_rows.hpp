// Rows in the order of a number that changes: a treap (Seidel, Aragon, "Randomized search trees", 1996) in one array,
// O(log n) a change. Rows of one number stay in the order in which they were given it.
#pragma once

#include "mapped_array.hpp"
#include "mixed_key.hpp"

#include <cstdint>
#include <stdexcept>
#include <string>

namespace kvstore {

class OrderedRows {
public:
    explicit OrderedRows(std::uint32_t max_rows) : nodes_(max_rows) {
        if (max_rows == 0xFFFFFFFFU) throw std::invalid_argument("max_rows must be at most 4294967294");
    }

    // For numbers from outside.
    void check(std::uint32_t row) const {
        if (row >= nodes_.size())
            throw std::out_of_range("row " + std::to_string(row) + " is outside a policy of " +
                                    std::to_string(nodes_.size()));
    }
    bool contains(std::uint64_t row) const { return row < nodes_.size() && nodes_[row].turn != 0; }
    std::size_t size() const { return size_; }

    // The row must not be here.
    void add(std::uint32_t row, double number);
    // The row must be here.
    void remove(std::uint32_t row);

    std::int64_t first() const { return lowest(root_); }
    std::int64_t next(std::uint32_t row) const;
    double number(std::uint32_t row) const { return nodes_[row].number; }

private:
    // A link is a row plus 1, so that the zero pages of a new array are no rows.
    using Link = std::uint32_t;

    struct Node {
        double number;
        std::uint64_t turn;  // counts what was added; 0: not here
        Link low, high, parent;
    };

    Node& at(Link link) { return nodes_[link - 1]; }
    const Node& at(Link link) const { return nodes_[link - 1]; }
    bool before(Link a, Link b) const {
        return at(a).number < at(b).number || (at(a).number == at(b).number && at(a).turn < at(b).turn);
    }
    // Fixed for a row and as good as random: whoever has the higher one is nearer to the root.
    static std::uint64_t rank(Link link) { return mixed_key(link); }

    std::int64_t lowest(Link link) const;
    void lift(Link child);
    void replace(Link parent, Link old, Link with);

    MappedArray<Node> nodes_;
    Link root_ = 0;
    std::uint64_t turns_ = 0;
    std::size_t size_ = 0;
};

}  // namespace kvstore
