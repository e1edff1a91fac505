// The request at hand, as far as what a policy is told shows it.
#pragma once

#include "policy_value_reuse.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace kvstore {

// A request is a `demand` of what is missing (root first), then hits and admissions in any order, or hits alone. Where
// nobody tells demands, admissions make requests of themselves: a chunk that begins a prompt, or whose parent was not the
// last one.
class RequestShape {
public:
    // `missing` chunks are asked for, `fresh` of them never seen; `length` of all the prompt if any is known, else 0.
    void begin(std::uint64_t first_key, std::uint64_t last_key, std::size_t missing, std::size_t fresh,
               std::size_t length) {
        if (length_ > 0) {
            const double length = length_;
            length_mean_ += (length - length_mean_) / 100;
            run_mean_ += (length * std::sqrt(length) - run_mean_) / 100;
        }
        first_key_ = first_key;
        last_key_ = last_key;
        missing_ = missing;
        fresh_ = static_cast<std::uint32_t>(fresh);
        length_ = static_cast<std::uint32_t>(length);
        awaits_hits_ = awaits_admissions_ = missing > 0;
    }

    // Chunks up to this place were hit; `key` is the last one's.
    void hit(std::uint64_t key, std::uint32_t place) {
        const bool same = awaits_hits_ && (length_ == 0 || place + 1 + missing_ == length_ || key == head_parent_);
        if (!same) begin(0, 0, 0, 0, 0);
        awaits_hits_ = false;
        last_admitted_ = key;
        length_ = std::max<std::uint32_t>(length_, place + 1 + static_cast<std::uint32_t>(missing_));
    }

    // A chunk comes.
    void admit(std::uint64_t key, std::uint64_t parent, std::uint32_t place, bool fresh) {
        if (!awaits_admissions_) {
            if (parent == 0 || parent != last_admitted_) begin(0, 0, 0, 0, 0);
            fresh_ += fresh;
        }
        last_admitted_ = key;
        if (key == first_key_) head_parent_ = parent;
        const std::uint32_t behind = key == first_key_ ? static_cast<std::uint32_t>(missing_) : 1;
        length_ = std::max(length_, place + behind);
    }

    std::size_t missing() const { return missing_; }
    bool is_last(std::uint64_t key) const { return missing_ > 0 && key == last_key_; }
    // What the chunks that share a request with a chunk weigh in all, on average over chunks, where each weighs one over
    // the root of the request's length.
    double run() const { return run_mean_ / length_mean_; }
    UseTraits traits(std::uint32_t place, std::uint32_t gap_age) const {
        return {fresh_, std::max(length_, place + 1), place, gap_age};
    }

private:
    std::uint64_t first_key_ = 0, last_key_ = 0, head_parent_ = 0, last_admitted_ = 0;
    std::size_t missing_ = 0;
    std::uint32_t fresh_ = 0, length_ = 0;
    double length_mean_ = 1, run_mean_ = 1;
    bool awaits_hits_ = false, awaits_admissions_ = false;
};

}  // namespace kvstore
