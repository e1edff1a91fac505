// Rows, their nodes and their queues.
#include "policy_value.hpp"

#include "policy_value_cursor.hpp"

#include <algorithm>

namespace kvstore {

// A chunk that is known has come. `moved`: what `place` has said of it.
void ValuePolicy::seat(std::uint32_t row, std::uint32_t node, const Arrival& chunk, bool moved, std::int64_t now_ms) {
    rows_[row] = {size_of(chunk), node};
    ++size_;
    Known& known = known_[node];
    known.severed = is_severed(chunk.parent);
    known.parent = 0;
    if (!moved) adopt(node, chunk);
    appraise(row);
    if (known.children == 0) enqueue(known);
    for (const auto& cursor : cursors_) cursor->came(node);
    shadows_.came(chunk, !known_.is_alone(node), now_ms);
}

std::uint32_t ValuePolicy::make_node(std::uint64_t key) {
    // Chunks here and parents that only they know take less than all nodes, so that there is a ghost if there is no room.
    while (known_.size() == known_.capacity()) drop_ghost();
    return known_.make(key);
}

// A parent stands before its child, whatever a client says: rows that followed each other in a circle would never be
// leaves, and never go.
void ValuePolicy::adopt(std::uint32_t node, const Arrival& chunk) {
    const std::uint32_t position = chunk.position;
    if (chunk.parent == 0 || position == 0) return;
    std::uint32_t parent = known_.find(chunk.parent);
    if (parent == 0) known_[parent = make_node(chunk.parent)].position = position - 1;
    Known& known = known_[parent];
    if (!known.here && known.uses == 0) known.position = std::min(known.position, position - 1);
    if (known.position >= position) return;
    known_[node].parent = parent;
    ++known.children;
    if (!known.here) return;
    known.young = false;
    dequeue(known);
}

void ValuePolicy::release_parent(std::uint32_t node) {
    const std::uint32_t parent = known_[node].parent;
    if (parent == 0) return;
    Known& known = known_[parent];
    if (--known.children == 0 && known.here) enqueue(known, true);
    settle(parent);
}

void ValuePolicy::remove(std::uint32_t row, bool evicted, std::int64_t now_ms) {
    if (!contains(row)) return;
    const std::uint32_t node = rows_[row].node;
    Known& known = known_[node];
    if (order_) order_->remove(row, evicted, now_ms);
    shadows_.left(known.key, evicted, now_ms);
    waits_.drop(row);
    for (const auto& cursor : cursors_) cursor->leaves(node);
    dequeue(known);
    release_parent(node);
    rows_[row] = {};
    --size_;
    known_.unlink(node);
    known.here = false;
    known.hint = Hint::none;
    if (evicted) {
        evicted_ = true;
        if (known.young) severed_[severed_at_++ % kSevered] = known.key;
        known_.append(node);
        known_.bury(node);
    } else {
        known.uses = 0;
        known.flags = 0;
    }
    settle(node);
    limit_ghosts();
}

// Forgets a node that nobody needs.
void ValuePolicy::settle(std::uint32_t node) {
    const Known& known = known_[node];
    if (known.here || known.uses > 0 || known.children > 0 || known_.is_free(node)) return;
    for (const auto& cursor : cursors_) cursor->forgets(node);
    known_.forget(node);
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

std::size_t ValuePolicy::queue_of(const Known& known) {
    if (known.hint == Hint::awaited) return Queues::in_class(kAwaited, Queues::kNeutral);
    if (known.hint == Hint::ended || known.worthless || known.severed)
        return Queues::in_class(kWorthless, Queues::kNeutral);
    return Queues::in_class(std::size_t{known.kind} * kAges + known.age, known.worth);
}

void ValuePolicy::enqueue(Known& known, bool first) {
    const std::size_t queue = queue_of(known);
    known.queued = true;
    first ? queues_.prepend(queue, known.row) : queues_.append(queue, known.row);
    for (const auto& cursor : cursors_) cursor->stir();
}

// Before anything changes that `queue_of` goes by. Whether it was in a queue.
bool ValuePolicy::dequeue(Known& known) {
    if (!known.queued) return false;
    for (const auto& cursor : cursors_) cursor->dequeues(known.row);
    queues_.unlink(queue_of(known), known.row);
    known.queued = false;
    return true;
}

}  // namespace kvstore
