// Victims one after the other, and hints.
#include "policy_value.hpp"

#include <algorithm>

namespace kvstore {

// A row that a walk has given counts as gone until the walk ends, so that what comes next is what would be the victim
// if it did go: its parent, perhaps. Whatever else happens ends the walk and puts back what has not gone.
std::int64_t ValuePolicy::victim(std::int64_t after) {
    if (ordered_) return order_->victim(after);
    const bool here = after >= 0 && contains(static_cast<std::uint32_t>(std::min<std::int64_t>(after, max_rows_)));
    // Who goes on after a pause has asked for one or two more than were looked at.
    for (std::size_t i = walk_.size(), looks = kAskedAhead; here && i > 1 && looks > 0; --i, --looks)
        if (walk_[i - 2].row == after && known_at(walk_[i - 1].row).given) return walk_[i - 1].row;
    if (!here || walk_.empty() || walk_.back().row != after) {
        end_walk();
        freed_.clear();
        walk_from_ = 0;
        resumed_ = -1;
        resumed_at_ = after;
        if (here) resume(static_cast<std::uint32_t>(after));
    }
    std::int64_t found;
    do found = give_next();  // `after` comes once more if others followed it, which have been given now
    while (found >= 0 && found == resumed_at_);
    return found;
}

// Behind this row, and not at the head of its queue: of what is held the same would be given again and again, and never
// what is beyond it. One that others follow again stands in no queue, but behind the last of these that was given.
void ValuePolicy::resume(std::uint32_t row) {
    const bool queued = known_at(row).queued;
    const bool followed = !queued && row == last_given_ && last_leaf_ >= 0 &&
                          contains(static_cast<std::uint32_t>(last_leaf_)) && known_at(static_cast<std::uint32_t>(last_leaf_)).queued;
    std::uint32_t leaf = followed ? static_cast<std::uint32_t>(last_leaf_) : row;
    walk_from_ = queues_.rank_of(queue_of(leaf));
    if (!queued && !followed) return;
    ++walk_from_;
    resumed_ = queues_.newer(leaf);
    give(leaf, true);
    while (leaf != row && known_at(leaf).parent != 0 && known_[known_at(leaf).parent].here) {
        leaf = known_[known_at(leaf).parent].row;
        if (!known_at(leaf).queued) break;
        give(leaf);
        std::erase(freed_, leaf);
    }
}

std::int64_t ValuePolicy::give_next() {
    std::int64_t next = resumed_;
    const bool in_order = next >= 0;
    if (in_order) {
        resumed_ = queues_.newer(static_cast<std::uint32_t>(next));
    } else if (!freed_.empty()) {
        next = freed_.back();
        freed_.pop_back();
    } else {
        next = queues_.first(walk_from_);
    }
    if (next >= 0) give(static_cast<std::uint32_t>(next), in_order);
    return next;
}

void ValuePolicy::give(std::uint32_t row, bool in_order) {
    dequeue(row);
    Known& given = known_at(row);
    given.given = true;
    walk_.push_back({row, in_order});
    if (given.parent == 0) return;
    Known& parent = known_[given.parent];
    if (--parent.children > 0 || !parent.here) return;
    enqueue(parent.row, true);
    if (queues_.rank_of(queue_of(parent.row)) < walk_from_) freed_.push_back(parent.row);
}

// Puts back what the walk has given and nobody removed, the last one first: everything is then where it was.
void ValuePolicy::end_walk() {
    if (walk_.empty() && unsettled_.empty()) return;
    std::int64_t next = resumed_;
    for (std::size_t i = walk_.size(); i-- > 0;) {
        const auto [row, in_order] = walk_[i];
        if (!contains(row) || !known_at(row).given) continue;
        Known& known = known_at(row);
        known.given = false;
        if (in_order && next >= 0)
            enqueue_before(row, static_cast<std::uint32_t>(next));
        else
            enqueue(row, !in_order);
        if (in_order) next = row;
        if (known.parent == 0) continue;
        Known& parent = known_[known.parent];
        if (++parent.children == 1 && parent.here) dequeue(parent.row);
    }
    if (!walk_.empty()) remember_walk();
    walk_.clear();
    for (const std::uint32_t node : unsettled_) settle(node);
    unsettled_.clear();
    limit_ghosts();
}

void ValuePolicy::remember_walk() {
    const auto stands = [&](const Given& each) { return contains(each.row) && known_at(each.row).queued; };
    const auto leaf = std::find_if(walk_.rbegin(), walk_.rend(), stands);
    last_given_ = walk_.back().row;
    last_leaf_ = leaf == walk_.rend() ? -1 : std::int64_t{leaf->row};
}

void ValuePolicy::ended(const std::uint32_t* rows, std::size_t count, std::int64_t now_ms) {
    begin_event(now_ms);
    while (count-- > 0)
        if (contains(rows[count])) end(rows[count]);
}

void ValuePolicy::awaited(const std::uint32_t* rows, std::size_t count, std::int64_t now_ms, std::int64_t until_ms) {
    begin_event(now_ms);
    while (count > 0 && !contains(rows[count - 1])) --count;
    if (count == 0) return;
    const std::uint32_t row = rows[count - 1];
    hint(row, Hint::awaited);
    waits_.set(row, until_ms, place_of(known_at(row).position) + std::size_t{1});
}

void ValuePolicy::hint(std::uint32_t row, Hint hint) {
    Known& known = known_at(row);
    if (known.hint == Hint::awaited) waits_.drop(row);
    if (known.hint == hint) return;
    const bool queued = dequeue(row);
    known.hint = hint;
    if (queued) enqueue(row);
}

// From this chunk up to the root. What others share of that stays behind chunks that follow it, and its next use, by them,
// ends the hint. If this stopped at the first branch, the partial chunks that end a conversation's earlier turns would keep
// the rest of it here. Where it was said already it is not said again, so that repeating it costs nothing and parents that
// follow each other, which a client may name, do no harm.
void ValuePolicy::end(std::uint32_t row) {
    while (known_at(row).hint != Hint::ended) {
        hint(row, Hint::ended);
        const std::uint32_t parent = known_at(row).parent;
        if (parent == 0 || !known_[parent].here) return;
        row = known_[parent].row;
    }
}

// Those whose time has come; and where there is no room for all, those that are awaited the latest.
void ValuePolicy::end_waits(std::int64_t now_ms) {
    for (std::int64_t row = waits_.due(now_ms); row >= 0; row = waits_.due(now_ms)) end(static_cast<std::uint32_t>(row));
    while (evicted_ && waits_.chunks() > size_ / kAwaitedPart) hint(waits_.last(), Hint::none);
    evicted_ = false;
}

}  // namespace kvstore
