// Bytes that may be written to a tier: so many a day, some at once.
#pragma once

#include <algorithm>
#include <cstdint>

namespace kvstore {

// A token bucket. It holds a quarter of a day's bytes: an hour takes no more than 7/24 of the day's, and what a quiet
// night leaves is there for the morning. Over any time of t days at most t + a quarter days' bytes are let through.
// What is written without being asked about makes `left` negative, and is waited for.
class WriteBudget {
public:
    static constexpr std::int64_t kDayMs = 86'400'000;
    static constexpr double kHeldDays = 0.25;

    // 0 bytes: no bound. Full at first.
    explicit WriteBudget(std::uint64_t bytes_per_day)
        : bytes_per_day_(static_cast<double>(bytes_per_day)), left_(most()) {}

    bool is_bound() const { return bytes_per_day_ > 0; }
    double most() const { return bytes_per_day_ * kHeldDays; }
    // What may be written now, besides what is under way.
    double left() const { return left_ - static_cast<double>(promised_); }

    // A bucket that was put aside at some time, with what was left then.
    void restore(double left, std::int64_t at_ms) {
        left_ = std::min(left, most());
        settled_ms_ = at_ms;
    }
    // Writing so much begins; or has ended, and is part of what `settle` is told from now on.
    void promise(std::uint64_t bytes) { promised_ += bytes; }
    void redeem(std::uint64_t bytes) { promised_ -= std::min(bytes, promised_); }
    // `written`: all bytes so far. A clock that was put back adds nothing.
    void settle(std::uint64_t written, std::int64_t now_ms) {
        if (settled_ms_ >= 0 && now_ms > settled_ms_)
            left_ += bytes_per_day_ * static_cast<double>(now_ms - settled_ms_) / double{kDayMs};
        settled_ms_ = now_ms;
        left_ = std::min(left_, most()) - static_cast<double>(written - std::min(written, written_));
        written_ = std::max(written, written_);
    }

private:
    double bytes_per_day_;
    double left_;
    std::uint64_t promised_ = 0;
    std::uint64_t written_ = 0;
    std::int64_t settled_ms_ = -1;
};

}  // namespace kvstore
