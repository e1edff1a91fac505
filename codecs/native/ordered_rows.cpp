#include "ordered_rows.hpp"

namespace kvstore {

void OrderedRows::add(std::uint32_t row, double number) {
    const Link added = row + 1;
    at(added) = {number, ++turns_, 0, 0, 0};
    ++size_;
    Link parent = 0;
    for (Link link = root_; link != 0;) {
        parent = link;
        link = before(added, link) ? at(link).low : at(link).high;
    }
    at(added).parent = parent;
    if (parent == 0)
        root_ = added;
    else
        (before(added, parent) ? at(parent).low : at(parent).high) = added;
    while (at(added).parent != 0 && rank(added) > rank(at(added).parent)) lift(added);
}

void OrderedRows::remove(std::uint32_t row) {
    const Link removed = row + 1;
    Node& node = at(removed);
    while (node.low != 0 && node.high != 0) lift(rank(node.low) > rank(node.high) ? node.low : node.high);
    const Link child = node.low != 0 ? node.low : node.high;
    replace(node.parent, removed, child);
    if (child != 0) at(child).parent = node.parent;
    node = Node{};
    --size_;
}

std::int64_t OrderedRows::next(std::uint32_t row) const {
    Link link = row + 1;
    if (at(link).high != 0) return lowest(at(link).high);
    while (at(link).parent != 0 && at(at(link).parent).high == link) link = at(link).parent;
    return std::int64_t{at(link).parent} - 1;
}

std::int64_t OrderedRows::lowest(Link link) const {
    if (link == 0) return -1;
    while (at(link).low != 0) link = at(link).low;
    return std::int64_t{link} - 1;
}

// Makes a child its parent's parent, which leaves the order as it is.
void OrderedRows::lift(Link child) {
    const Link parent = at(child).parent;
    replace(at(parent).parent, parent, child);
    at(child).parent = at(parent).parent;
    Link& inner = at(parent).low == child ? at(child).high : at(child).low;
    (at(parent).low == child ? at(parent).low : at(parent).high) = inner;
    if (inner != 0) at(inner).parent = parent;
    inner = parent;
    at(parent).parent = child;
}

void OrderedRows::replace(Link parent, Link old, Link with) {
    if (parent == 0)
        root_ = with;
    else
        (at(parent).low == old ? at(parent).low : at(parent).high) = with;
}

}  // namespace kvstore
