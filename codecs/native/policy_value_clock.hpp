// How old chunks grow, in uses of the cache.
#pragma once

#include <algorithm>
#include <cstdint>

namespace kvstore {

// Two clocks. What stands alone (a document, a tool's description) is used by whoever asks for it, so its age is the
// number of uses of any chunk since its own. What follows others in a prompt comes back when one user or tool is ready,
// and a second of theirs is as long on a busy day as on a quiet one: its age is the time since, in the uses that the
// average of that time has. A pause in which nobody asks for anything makes nothing older than `kLongestPause` requests
// would: after a night a cache is what it was in the evening. Where time stands still (a trace without one), uses are
// the time.
class ValueClock {
public:
    // `request`: the mean length of requests, in chunks.
    void tell(std::int64_t now_ms, double request) {
        if (now_ms <= now_ms_) return;
        if (now_ms_ != kNever) {
            double passed = static_cast<double>(now_ms - now_ms_);
            if (active_ms_ > 0) passed = std::min(passed, kLongestPause * request * active_ms_ / counted_);
            active_ms_ += passed;
            if (counted_ > 0) time_ += passed * counted_ / active_ms_;
        }
        if (counted_ > kMemory) {
            counted_ /= 2;
            active_ms_ /= 2;
        }
        now_ms_ = now_ms;
        still_ = 0;
    }

    void use() {
        ++uses_;
        ++counted_;
        if (++still_ > kStill || active_ms_ == 0) ++time_;
    }

    std::uint64_t uses() const { return uses_; }
    // Of a chunk that stands alone, or follows others.
    std::uint64_t read(bool alone) const { return alone ? uses_ : static_cast<std::uint64_t>(time_); }

private:
    static constexpr std::int64_t kNever = INT64_MIN;
    static constexpr double kLongestPause = 10;
    static constexpr double kMemory = 131'072;      // uses after which the rate of uses is halfway forgotten
    static constexpr std::uint32_t kStill = 1'024;  // uses without time

    std::uint64_t uses_ = 0;
    double time_ = 0, counted_ = 0, active_ms_ = 0;
    std::int64_t now_ms_ = kNever;
    std::uint32_t still_ = 0;
};

}  // namespace kvstore
