#include "policy_value_shadows.hpp"

#include "mixed_key.hpp"
#include "policy_arc.hpp"
#include "policy_lru.hpp"
#include "policy_mq.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

namespace kvstore {

namespace {

constexpr std::uint32_t kSpan = 128;  // sampled uses that make one observation, of several requests

}  // namespace

Shadows::Shadows(std::uint32_t max_rows)
    : entries_(max_rows / 8 + kLeastRows), table_(entries_) {
    for (std::size_t cache = 0; cache < kNone; ++cache)
        policies_[cache] = make(cache, static_cast<std::uint32_t>(entries_.size()));
}

std::unique_ptr<Policy> Shadows::make(std::size_t which, std::uint32_t max_rows) {
    if (kNames[which] == "lru") return std::make_unique<LruPolicy>(max_rows);
    if (kNames[which] == "arc") return std::make_unique<ArcPolicy>(max_rows);
    return std::make_unique<MqPolicy>(max_rows);
}

// By other bits than tables use: these take the lower half.
bool Shadows::samples(std::uint64_t key) { return (mixed_key(key) >> 32) % kSample == 0; }

void Shadows::asked(std::span<const std::uint64_t> keys, std::int64_t now_ms) {
    end_request();
    touch(keys, true, now_ms);
}

void Shadows::used(std::span<const std::uint64_t> keys, bool first, std::int64_t now_ms) {
    if (keys.empty()) return;
    if (first && began_) end_request();
    began_ |= first;
    touch(keys, false, now_ms);
    tip_ = keys.back();
    tip_row_ = kNoRow;
    std::uint32_t deepest = kNoRow;
    for (std::size_t i = sampled_.size(); i-- > 0;) {  // it is there, so that it would be here
        if (sampled_[i].row < 0) continue;
        const auto row = static_cast<std::uint32_t>(sampled_[i].row);
        if (deepest == kNoRow) deepest = row;
        for (std::size_t cache = 0; cache < kNone; ++cache) take(cache, row, now_ms);
    }
    tip_row_ = deepest;
}

// What shadows have is hit, what they lack is asked for. A chunk that neither they nor the real cache have counts when
// it comes.
void Shadows::touch(std::span<const std::uint64_t> keys, bool told, std::int64_t now_ms) {
    sampled_.clear();
    for (const std::uint64_t key : keys) {
        if (!samples(key)) continue;
        const std::int64_t row = find(key);
        sampled_.push_back({key, row});
        if (row < 0) continue;
        Entry& entry = entries_[static_cast<std::size_t>(row)];
        request_.push_back({entry.position, entry.tokens, entry.held, entry.linked});
        entry.told = told;
        ++seen_;
    }
    for (std::size_t cache = 0; cache < kNone; ++cache) {
        rows_.clear();
        for (const auto& [key, row] : sampled_) {
            if (row >= 0 && (entries_[static_cast<std::size_t>(row)].held >> cache & 1U) != 0)
                rows_.push_back(static_cast<std::uint32_t>(row));
            else
                policies_[cache]->demand(&key, 1, now_ms);
        }
        if (!rows_.empty()) policies_[cache]->hit(rows_.data(), rows_.size(), now_ms);
    }
}

void Shadows::came(const Arrival& chunk, bool linked, std::int64_t now_ms) {
    // A prompt that is put root first: the chunk goes just before the nearest one before it that is in the sample.
    if (chunk.parent_row == kNoRow || chunk.parent != tip_) tip_row_ = kNoRow;
    tip_ = chunk.key;
    if (!samples(chunk.key)) return;
    std::int64_t found = find(chunk.key);
    if (found < 0 && (found = add(chunk, linked)) < 0) return;
    const auto row = static_cast<std::uint32_t>(found);
    Entry& entry = entries_[row];
    resize(entry, chunk.bytes);
    if ((entry.held & kReal) == 0) bytes_[kNone] += entry.bytes;
    entry.held |= kReal;
    for (std::size_t cache = 0; cache < kNone; ++cache) {
        const bool here = (entry.held >> cache & 1U) != 0;
        if (here && !entry.told) policies_[cache]->hit(&row, 1, now_ms);
        if (!here) take(cache, row, now_ms);
    }
    entry.told = false;
    tip_row_ = row;
}

// -1 if there is no room: more than its share of all chunks is in the sample.
std::int64_t Shadows::add(const Arrival& chunk, bool linked) {
    if (free_.empty() && made_ == entries_.size()) return -1;
    std::uint32_t row = made_;
    if (free_.empty()) {
        ++made_;
    } else {
        row = free_.back();
        free_.pop_back();
    }
    entries_[row] = {chunk.key, chunk.bytes, chunk.position, chunk.tokens, 0, 0, linked, true};
    table_.insert(row);
    asked_ += chunk.tokens;
    ++seen_;
    return row;
}

void Shadows::resized(const Arrival& chunk) {
    const std::int64_t row = samples(chunk.key) ? find(chunk.key) : -1;
    if (row >= 0) resize(entries_[static_cast<std::size_t>(row)], chunk.bytes);
}

// The policies of shadows keep the bytes that it came with: they are told when it comes again.
void Shadows::resize(Entry& entry, std::uint64_t bytes) {
    for (std::size_t cache = 0; cache <= kNone; ++cache)
        if ((entry.held >> cache & 1U) != 0) bytes_[cache] += bytes - entry.bytes;
    entry.bytes = bytes;
}

// Into a shadow, unless it is there.
void Shadows::take(std::size_t cache, std::uint32_t row, std::int64_t now_ms) {
    Entry& entry = entries_[row];
    if ((entry.held >> cache & 1U) != 0) return;
    Policy& policy = *policies_[cache];
    const std::uint64_t capacity = std::max(bytes_[kNone], entry.bytes);
    policy.set_capacity(capacity);
    while (bytes_[cache] + entry.bytes > capacity) {
        const std::int64_t victim = policy.victim();
        if (victim < 0) break;
        policy.remove(static_cast<std::uint32_t>(victim), true, now_ms);
        release(static_cast<std::uint32_t>(victim), static_cast<std::uint8_t>(1U << cache));
    }
    entry.held = static_cast<std::uint8_t>(entry.held | 1U << cache);
    bytes_[cache] += entry.bytes;
    policy.admit(row, {entry.key, 0, entry.position, entry.tokens, entry.bytes, tip_row_}, now_ms);
}

void Shadows::left(std::uint64_t key, bool evicted, std::int64_t now_ms) {
    const std::int64_t found = samples(key) ? find(key) : -1;
    if (found < 0) return;
    const auto row = static_cast<std::uint32_t>(found);
    const std::uint8_t held = entries_[row].held;
    for (std::size_t cache = 0; cache < kNone && !evicted; ++cache) {
        if ((held >> cache & 1U) == 0) continue;
        policies_[cache]->remove(row, false, now_ms);
        release(row, static_cast<std::uint8_t>(1U << cache));
    }
    if ((held & kReal) != 0) release(row, kReal);
}

// One cache has it no longer.
void Shadows::release(std::uint32_t row, std::uint8_t cache) {
    Entry& entry = entries_[row];
    entry.held = static_cast<std::uint8_t>(entry.held & ~cache);
    bytes_[static_cast<std::size_t>(std::countr_zero(cache))] -= entry.bytes;
    if (entry.held != 0) return;
    table_.remove(row);
    if (tip_row_ == row) tip_row_ = kNoRow;
    free_.push_back(row);
}

void Shadows::end_request() {
    std::array<std::uint32_t, kNone + 1> gap;
    gap.fill(std::numeric_limits<std::uint32_t>::max());
    for (const Asked& chunk : request_)
        for (std::size_t cache = 0; cache <= kNone; ++cache)
            if (chunk.linked && (chunk.held >> cache & 1U) == 0) gap[cache] = std::min(gap[cache], chunk.position);
    for (const Asked& chunk : request_) {
        asked_ += chunk.tokens;
        for (std::size_t cache = 0; cache <= kNone; ++cache)
            if ((chunk.held >> cache & 1U) != 0 && (!chunk.linked || chunk.position < gap[cache]))
                hits_[cache] += chunk.tokens;
    }
    request_.clear();
    began_ = false;
}

std::size_t Shadows::choose(std::uint64_t uses, std::size_t size) {
    end_request();
    if (seen_ < kSpan) return verdict_.chosen();
    seen_ = 0;
    return verdict_.choose(std::exchange(asked_, 0), std::exchange(hits_, {}), uses, size);
}

}  // namespace kvstore
