#include "policy_s3fifo.hpp"

#include <algorithm>

namespace kvstore {

void S3FifoPolicy::admit(std::uint32_t row, const Arrival& chunk, std::int64_t now_ms) {
    rows_.check(row);
    if (rows_.contains(row)) {
        rows_.resize(row, chunk.bytes);
        return;
    }
    const std::int64_t known = ghosts_.find(chunk.key);
    ghosts_.drop(known);
    // While nothing has been evicted there is room for everything: the main queue takes what the small one cannot.
    const bool overflow = !has_evicted_ && capacity_ != 0 && rows_.bytes(kSmall) >= small_most();
    // Where its parent came long ago it stands at the end of its queue, however much it was used since.
    const bool together = rows_.contains(chunk.parent_row) && now_ms - rows_[chunk.parent_row].time <= kMomentMs;
    rows_.add(row, {chunk.key, chunk.bytes, now_ms, 0, known >= 0 || overflow ? kMain : kSmall},
              together ? chunk.parent_row : kNoRow);
}

void S3FifoPolicy::hit(const std::uint32_t* rows, std::size_t count, std::int64_t) {
    while (count-- > 0)
        if (rows_.contains(rows[count]) && rows_[rows[count]].uses < kMostUses) ++rows_[rows[count]].uses;
}

void S3FifoPolicy::demand(const std::uint64_t* keys, std::size_t count, std::int64_t) {
    for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t known = ghosts_.find(keys[i]);
        if (known < 0) continue;
        Ghost ghost = ghosts_[known];
        ghost.queue = kAsked;
        ghosts_.add(ghost);
    }
    ghosts_.shrink(ghosts_most(), kAsked);
}

void S3FifoPolicy::remove(std::uint32_t row, bool evicted, std::int64_t) {
    if (!rows_.contains(row)) return;
    const HeldRow held = rows_[row];
    rows_.remove(row);
    if (!evicted) return;
    has_evicted_ = true;
    if (held.queue != kSmall) return;
    ghosts_.add({held.key, held.bytes, 0, kGhost});
    ghosts_.shrink(ghosts_most(), kGhost);
}

std::int64_t S3FifoPolicy::following(std::int64_t row) {
    if (row < 0 || !rows_.contains(static_cast<std::uint64_t>(row))) {
        row = -1;
        // A tier is full before its last byte: the share of the main queue is one of what is here.
        const std::uint64_t full = std::min(capacity(), rows_.all_bytes());
        main_first_ = rows_.size(kSmall) == 0 || rows_.bytes(kMain) > full - full / 10;
        if (!main_first_) {
            settle_small();
            main_first_ = rows_.size(kSmall) == 0;
        }
        if (main_first_) settle_main();
    }
    return main_first_ ? rows_.walk(row, {kMain, kSmall}) : rows_.walk(row, {kSmall, kMain});
}

// Until the oldest of the small queue is one that goes: others are passed on.
void S3FifoPolicy::settle_small() {
    for (std::int64_t row = rows_.oldest(kSmall); row >= 0; row = rows_.oldest(kSmall)) {
        HeldRow& held = rows_[static_cast<std::uint32_t>(row)];
        if (held.uses < kPassOn) return;
        held.uses = 0;
        rows_.move(static_cast<std::uint32_t>(row), kMain);
    }
}

// Until the oldest of the main queue is one that goes: others go round.
void S3FifoPolicy::settle_main() {
    for (std::int64_t row = rows_.oldest(kMain); row >= 0; row = rows_.oldest(kMain)) {
        HeldRow& held = rows_[static_cast<std::uint32_t>(row)];
        if (held.uses == 0) return;
        --held.uses;
        rows_.move(static_cast<std::uint32_t>(row), kMain);
    }
}

}  // namespace kvstore
