// Victims one after the other, and hints.
#include "policy_value.hpp"

#include <algorithm>

namespace kvstore {

// A row that a walk has given counts as gone until the walk ends, so that what comes next is what would be the victim
// if it did go: its parent, perhaps. Whatever else happens ends the walk and puts back what has not gone.
std::int64_t ValuePolicy::victim(std::int64_t after) {
    if (order_) return order_->victim(after);
    const bool here = after >= 0 && contains(static_cast<std::uint32_t>(std::min<std::int64_t>(after, max_rows_)));
    if (!here || walk_.empty() || walk_.back() != after) {
        end_walk();
        walk_from_ = 0;
        resumed_at_ = after;
        if (here) {  // it goes on from the queue of `after`
            const auto row = static_cast<std::uint32_t>(after);
            walk_from_ = queues_.rank_of(queue_of(row));
            if (rows_[row].queue != 0) give(row);
        }
    }
    std::int64_t found;
    do {  // `after` comes once more if others followed it, which have been given now
        found = queues_.first(walk_from_);
        if (found >= 0) give(static_cast<std::uint32_t>(found));
    } while (found >= 0 && found == resumed_at_);
    return found;
}

void ValuePolicy::give(std::uint32_t row) {
    dequeue(row);
    Row& given = rows_[row];
    given.given = true;
    walk_.push_back(row);
    if (given.parent == 0) return;
    Known& parent = known_[given.parent];
    if (--parent.children == 0 && parent.row != 0) enqueue(parent.row - 1, true);
}

// Puts back what the walk has given and nobody removed, the last one first: everything is then where it was.
void ValuePolicy::end_walk() {
    if (walk_.empty() && unsettled_.empty()) return;
    for (std::size_t i = walk_.size(); i-- > 0;) {
        const std::uint32_t row = walk_[i];
        if (!rows_[row].given) continue;
        rows_[row].given = false;
        enqueue(row, true);
        if (rows_[row].parent == 0) continue;
        Known& parent = known_[rows_[row].parent];
        if (++parent.children == 1 && parent.row != 0) dequeue(parent.row - 1);
    }
    walk_.clear();
    for (const std::uint32_t node : unsettled_) settle(node);
    unsettled_.clear();
    limit_ghosts();
}

void ValuePolicy::ended(std::uint32_t row) {
    end_walk();
    if (contains(row) && is_leaf(row)) hint(row, Hint::ended);
}

void ValuePolicy::awaited(std::uint32_t row, std::int64_t until_ms) {
    end_walk();
    if (!contains(row) || !is_leaf(row)) return;
    const std::uint64_t key = known_[rows_[row].node].key;
    const auto same = std::find_if(waits_.begin(), waits_.end(), [&](const Wait& wait) { return wait.key == key; });
    if (same != waits_.end())
        same->until_ms = until_ms;
    else
        waits_.push_back({key, until_ms});
    hint(row, Hint::awaited);
}

// Up to where another prompt branches off; an awaited one holds what is before it as a child does.
void ValuePolicy::hint(std::uint32_t row, Hint hint) {
    for (;;) {
        rows_[row].hint = hint;
        if (is_leaf(row)) {
            dequeue(row);
            enqueue(row);
        }
        const std::uint32_t parent = rows_[row].parent;
        if (hint == Hint::awaited || parent == 0 || known_[parent].row == 0 || known_[parent].children > 1) return;
        row = known_[parent].row - 1;
    }
}

void ValuePolicy::end_waits(std::int64_t now_ms) {
    std::erase_if(waits_, [&](const Wait& wait) {
        const std::uint32_t node = known_.find(wait.key);
        const std::uint32_t row = node == 0 ? 0 : known_[node].row;
        if (row == 0 || rows_[row - 1].hint != Hint::awaited) return true;  // used, or gone
        if (now_ms < wait.until_ms) return false;
        if (is_leaf(row - 1)) hint(row - 1, Hint::ended);
        return true;
    });
}

}  // namespace kvstore
