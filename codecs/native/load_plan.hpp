// Load or recompute: which part of a run of stored chunks is worth loading, for the least time to the first token.
#pragma once

#include "policy.hpp"

#include <cstddef>
#include <cstdint>

namespace kvstore {

// What a tier does just now.
struct TierSpeed {
    double latency_s = 0;           // before the first byte
    double bytes_per_s = 0;         // 0: nothing can be loaded from it
    double decode_bytes_per_s = 0;  // of stored bytes; 0: nothing is decoded
    double queue_s = 0;             // until it has served what was asked of it before
};

// What prefill does. recompute(a..b) = flops_per_token·(b−a) + flops_per_token2·(b²−a²)/2 FLOPs.
struct Prefill {
    double flops_per_token = 0;
    double flops_per_token2 = 0;
    double flops_per_s = 0;
    double step_s = 0;  // of the scheduler, which a request waits for once more when something is loaded

    double flops(double from, double to) const {
        return flops_per_token * (to - from) + flops_per_token2 * (to * to - from * from) / 2;
    }
    double seconds(double from, double to) const { return flops(from, to) / flops_per_s; }
};

// One chunk of a run, in the fastest tier that has it.
struct StoredChunk {
    std::uint64_t bytes;
    std::uint32_t tokens;
    std::uint32_t tier;
};

enum class PlanReason : int { nothing_stored, slower, all, cut, meet };

// Tokens [from, to) of the prompt are loaded and the rest is computed: what lies before `from` meanwhile, what follows
// `to` afterwards. Seconds until the whole prompt has KV; `recompute_s` if nothing were loaded.
struct LoadPlan {
    std::uint64_t from = 0;
    std::uint64_t to = 0;
    double seconds = 0;
    double recompute_s = 0;
    PlanReason reason = PlanReason::nothing_stored;
};

// How long it takes to load some chunks: tiers work side by side, what is read is decoded after it.
class LoadTime {
public:
    static constexpr std::size_t kTiers = 8;  // at most

    explicit LoadTime(const TierSpeed* speeds) : speeds_(speeds) {}
    void add(const StoredChunk& chunk) {
        const TierSpeed& speed = speeds_[chunk.tier];
        double& busy = busy_[chunk.tier];
        const auto bytes = static_cast<double>(chunk.bytes);
        if (busy == 0) busy = speed.queue_s + speed.latency_s;
        busy += bytes / speed.bytes_per_s;
        if (busy > longest_) longest_ = busy;
        if (speed.decode_bytes_per_s > 0) decoding_ += bytes / speed.decode_bytes_per_s;
    }
    double seconds() const { return longest_ + decoding_; }

private:
    const TierSpeed* speeds_;
    double busy_[kTiers] = {};
    double longest_ = 0;
    double decoding_ = 0;
};

// The best plan for a run of `count` chunks that begins at token `start` of a prompt of `prompt` tokens, at a cut
// between two chunks. With `overlap` the engine can compute from the front while the back is loaded.
LoadPlan plan_load(const StoredChunk* chunks, std::size_t count, std::uint64_t start, std::uint64_t prompt,
                   const Prefill& prefill, const TierSpeed* speeds, bool overlap);

}  // namespace kvstore
