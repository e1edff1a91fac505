#include "policy_mq.hpp"

#include <algorithm>
#include <bit>

namespace kvstore {

namespace {

std::uint32_t queue_of(std::uint32_t uses) {
    return std::min<std::uint32_t>(static_cast<std::uint32_t>(std::bit_width(uses)) - 1, 7);
}

}  // namespace

void MqPolicy::admit(std::uint32_t row, const Arrival& chunk, std::int64_t) {
    rows_.check(row);
    if (rows_.contains(row)) {
        rows_.resize(row, chunk.bytes);
        return;
    }
    const std::int64_t known = ghosts_.find(chunk.key);
    const std::uint32_t uses = known < 0 ? 1 : std::min(ghosts_[known].uses + 1U, kMostUses);
    ghosts_.drop(known);
    rows_.add(row, {chunk.key, chunk.bytes, ++accesses_ + life(), uses, queue_of(uses)}, chunk.parent_row);
    adjust();
}

void MqPolicy::hit(const std::uint32_t* rows, std::size_t count, std::int64_t) {
    while (count-- > 0) {
        const std::uint32_t row = rows[count];
        if (!rows_.contains(row)) continue;
        HeldRow& held = rows_[row];
        held.uses = std::min(held.uses + 1, kMostUses);
        held.time = ++accesses_ + life();
        rows_.move(row, queue_of(held.uses));
        adjust();
    }
}

void MqPolicy::remove(std::uint32_t row, bool evicted, std::int64_t) {
    if (!rows_.contains(row)) return;
    const HeldRow held = rows_[row];
    rows_.remove(row);
    if (!evicted) return;
    ghosts_.add({held.key, held.bytes, static_cast<std::uint16_t>(held.uses), 0});
    ghosts_.shrink(kGhostShare * capacity());
}

std::int64_t MqPolicy::following(std::int64_t row) { return rows_.walk(row, kOrder); }

std::int64_t MqPolicy::life() const { return std::max(kLeastLife, static_cast<std::int64_t>(rows_.all() + 1)); }

// The oldest of each queue goes down one if its time is over.
void MqPolicy::adjust() {
    for (std::size_t queue = 1; queue < kQueues; ++queue) {
        const std::int64_t row = rows_.oldest(queue);
        if (row < 0) continue;
        HeldRow& held = rows_[static_cast<std::uint32_t>(row)];
        if (held.time >= accesses_) continue;
        held.time = accesses_ + life();
        rows_.move(static_cast<std::uint32_t>(row), queue - 1);
    }
}

}  // namespace kvstore
