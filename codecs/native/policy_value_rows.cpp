// Rows, their nodes and their queues.
#include "policy_value.hpp"

#include <algorithm>

namespace kvstore {

// A chunk that is known has come.
void ValuePolicy::seat(std::uint32_t row, std::uint32_t node, const Arrival& chunk, bool young, std::int64_t now_ms) {
    rows_[row] = Row{.bytes = chunk.bytes, .node = node, .parent = 0, .tokens = chunk.tokens, .queue = 0, .worth = 0,
                     .hint = Hint::none, .worthless = false, .severed = is_severed(chunk.parent), .young = young,
                     .given = false};
    ++size_;
    adopt(row, chunk.parent, chunk.position);
    appraise(row);
    if (is_leaf(row)) enqueue(row);
    shadows_.came(chunk, !known_.is_alone(node), now_ms);
}

std::uint32_t ValuePolicy::make_node(std::uint64_t key) {
    // Chunks here and parents that only they know take less than all nodes, so that there is a ghost if there is no room.
    while (known_.size() == known_.capacity()) drop_ghost();
    return known_.make(key);
}

// A parent stands before its child, whatever a client says: rows that followed each other in a circle would never be
// leaves, and never go.
void ValuePolicy::adopt(std::uint32_t row, std::uint64_t parent, std::uint32_t position) {
    Known& child = known_[rows_[row].node];
    const bool moved = child.children > 0 && position > child.position;  // it may stand behind one that follows it
    child.position = position;
    if (parent == 0 || position == 0 || moved) return;
    std::uint32_t node = known_.find(parent);
    if (node == 0) known_[node = make_node(parent)].position = position - 1;
    Known& known = known_[node];
    if (known.row == 0 && known.uses == 0) known.position = std::min(known.position, position - 1);
    if (known.position >= position) return;
    rows_[row].parent = node;
    if (known.row != 0) rows_[known.row - 1].young = false;
    if (++known.children == 1 && known.row != 0) dequeue(known.row - 1);
}

void ValuePolicy::release_parent(std::uint32_t row) {
    const std::uint32_t node = rows_[row].parent;
    if (node == 0) return;
    Known& known = known_[node];
    if (--known.children == 0 && known.row != 0) enqueue(known.row - 1, true);
    settle(node);
}

void ValuePolicy::remove(std::uint32_t row, bool evicted, std::int64_t now_ms) {
    if (!contains(row)) return;
    Row& gone = rows_[row];
    const std::uint32_t node = gone.node;
    if (order_) order_->remove(row, evicted, now_ms);
    shadows_.left(known_[node].key, evicted, now_ms);
    const bool young = gone.young;
    waits_.drop(row);
    if (gone.given) {  // a walk is on, and its parent is without it already
        if (gone.parent != 0) unsettled_.push_back(gone.parent);
    } else {
        end_walk();
        dequeue(row);
        release_parent(row);
    }
    gone = {};
    --size_;
    known_.unlink(node);
    Known& known = known_[node];
    known.row = 0;
    if (evicted) {
        evicted_ = true;
        if (young) severed_[severed_at_++ % kSevered] = known.key;
        known_.append(node);
        known_.bury(node);
    } else {
        known.uses = 0;
        known.flags = 0;
    }
    if (walk_.empty()) {
        settle(node);
        limit_ghosts();
    } else {
        unsettled_.push_back(node);
    }
}

// Forgets a node that nobody needs.
void ValuePolicy::settle(std::uint32_t node) {
    const Known& known = known_[node];
    if (known.row == 0 && known.uses == 0 && known.children == 0 && !known_.is_free(node)) known_.forget(node);
}

void ValuePolicy::limit_ghosts() {
    const std::size_t most = std::min<std::size_t>(max_rows_, std::max(kLeastGhosts, kGhostsPerRow * size_));
    while (known_.ghosts() > most) drop_ghost();
}

// The oldest. If chunks are here that follow it, they still need its node.
void ValuePolicy::drop_ghost() {
    const std::uint32_t node = known_.oldest_ghost();
    known_.unlink(node);
    known_.exhume(node);
    known_[node].uses = 0;
    known_[node].flags = 0;
    settle(node);
}

std::size_t ValuePolicy::queue_of(std::uint32_t row) const {
    const Row& held = rows_[row];
    if (held.hint == Hint::awaited) return Queues::in_class(kAwaited, Queues::kNeutral);
    if (held.hint == Hint::ended || held.worthless || held.severed) return Queues::in_class(kWorthless, Queues::kNeutral);
    const Known& known = known_[held.node];
    return Queues::in_class(std::size_t{known.kind} * kAges + known.age, held.worth);
}

void ValuePolicy::enqueue(std::uint32_t row, bool first) {
    const std::size_t queue = queue_of(row);
    rows_[row].queue = static_cast<std::uint16_t>(queue + 1);
    first ? queues_.prepend(queue, row) : queues_.append(queue, row);
}

void ValuePolicy::enqueue_before(std::uint32_t row, std::uint32_t next) {
    rows_[row].queue = rows_[next].queue;
    queues_.insert_older(rows_[row].queue - 1U, row, next);
}

void ValuePolicy::dequeue(std::uint32_t row) {
    if (rows_[row].queue == 0) return;
    queues_.unlink(rows_[row].queue - 1U, row);
    rows_[row].queue = 0;
}

}  // namespace kvstore
