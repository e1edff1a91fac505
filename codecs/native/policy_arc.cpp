#include "policy_arc.hpp"

#include <algorithm>

namespace kvstore {

void ArcPolicy::admit(std::uint32_t row, const Arrival& chunk, std::int64_t) {
    rows_.check(row);
    if (rows_.contains(row)) {
        rows_.resize(row, chunk.bytes);
        return;
    }
    const std::int64_t known = ghosts_.find(chunk.key);
    if (known >= 0) {
        if (ghosts_[known].queue != kAsked) adapt(ghosts_[known]);
        ghosts_.drop(known);
    } else {
        make_room(chunk.bytes);
    }
    asked_often_ = false;
    rows_.add(row, {chunk.key, chunk.bytes, 0, 0, known >= 0 ? kOften : kOnce}, chunk.parent_row);
}

void ArcPolicy::hit(const std::uint32_t* rows, std::size_t count, std::int64_t) {
    while (count-- > 0)
        if (rows_.contains(rows[count])) rows_.move(rows[count], kOften);
}

void ArcPolicy::demand(const std::uint64_t* keys, std::size_t count, std::int64_t) {
    for (std::size_t i = 0; i < count; ++i) {
        asked_often_ = false;
        const std::int64_t known = ghosts_.find(keys[i]);
        if (known < 0 || ghosts_[known].queue == kAsked) continue;
        Ghost ghost = ghosts_[known];
        adapt(ghost);
        asked_often_ = ghost.queue == kOften;
        ghost.queue = kAsked;
        ghosts_.add(ghost);
    }
    ghosts_.shrink(capacity(), kAsked);
}

void ArcPolicy::remove(std::uint32_t row, bool evicted, std::int64_t) {
    if (!rows_.contains(row)) return;
    const HeldRow held = rows_[row];
    rows_.remove(row);
    if (!evicted) return;
    ghosts_.add({held.key, held.bytes, 0, static_cast<std::uint16_t>(held.queue)});
    make_room(0);
}

std::int64_t ArcPolicy::following(std::int64_t row) {
    if (row < 0 || !rows_.contains(static_cast<std::uint64_t>(row))) {
        row = -1;
        const auto once = static_cast<double>(rows_.bytes(kOnce));
        once_first_ = rows_.size(kOften) == 0 || once > target_ || (once == target_ && asked_often_);
    }
    return once_first_ ? rows_.walk(row, {kOnce, kOften}) : rows_.walk(row, {kOften, kOnce});
}

// A ghost is asked for: its queue was too small.
void ArcPolicy::adapt(const Ghost& ghost) {
    const auto once = static_cast<double>(ghosts_.bytes(kOnce)), often = static_cast<double>(ghosts_.bytes(kOften));
    const auto size = static_cast<double>(ghost.bytes);
    if (ghost.queue == kOnce)
        target_ = std::min(target_ + size * std::max(often / std::max(once, 1.0), 1.0), static_cast<double>(capacity()));
    else
        target_ = std::max(target_ - size * std::max(once / std::max(often, 1.0), 1.0), 0.0);
}

// Lets ghosts go until so many bytes more may come into the first queue.
void ArcPolicy::make_room(std::uint64_t bytes) {
    const std::uint64_t most = std::max(capacity(), bytes);
    while (ghosts_.size(kOnce) > 0 && rows_.bytes(kOnce) + ghosts_.bytes(kOnce) + bytes > most)
        ghosts_.drop_oldest(kOnce);
    while (ghosts_.size(kOften) > 0 &&
           rows_.all_bytes() + ghosts_.bytes(kOnce) + ghosts_.bytes(kOften) + bytes > 2 * most)
        ghosts_.drop_oldest(kOften);
}

}  // namespace kvstore
