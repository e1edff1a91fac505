// How old chunks grow.
#pragma once

#include <cstdint>

namespace kvstore {

// Two clocks. What stands alone (a document, a tool's description) is used by whoever asks for it, so its age is the
// number of uses of any chunk since its own. What follows others in a prompt comes back when one user or one tool is
// ready, and that takes as long on a busy day as on a quiet one: its age is the time since, in milliseconds; a use counts
// as one too, so that there is an order where more than one falls into a millisecond, or where time stands still.
class ValueClock {
public:
    void tell(std::int64_t now_ms) {
        if (now_ms > now_ms_ && now_ms_ != kNever) pass(static_cast<std::uint64_t>(now_ms - now_ms_));
        if (now_ms > now_ms_) now_ms_ = now_ms;
    }

    void use() {
        ++uses_;
        recent_ *= kForget;
        ++recent_;
        passed_ *= kForget;
        pass(1);
    }

    std::uint64_t uses() const { return uses_; }
    std::int64_t now_ms() const { return now_ms_; }
    // Of a chunk that stands alone, or follows others.
    std::uint64_t read(bool alone) const { return alone ? uses_ : time_; }
    // What a use takes of the time of those that follow others, of late.
    double per_use() const { return recent_ > 0 ? passed_ / recent_ : 1; }

private:
    static constexpr std::int64_t kNever = INT64_MIN;
    static constexpr double kForget = 1 - 1.0 / 8192;  // uses

    void pass(std::uint64_t time) {
        time_ += time;
        passed_ += static_cast<double>(time);
    }

    std::uint64_t uses_ = 0, time_ = 0;
    double recent_ = 0, passed_ = 0;
    std::int64_t now_ms_ = kNever;
};

}  // namespace kvstore
