// What clients say of prompts.
#include "policy_value.hpp"

namespace kvstore {

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
    const bool queued = dequeue(known);
    known.hint = hint;
    if (queued) enqueue(known);
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
