#include "admission.hpp"

namespace kvstore {

Entry Admission::judge(std::uint64_t key, bool used) const {
    if (is_spent_) return Entry::budget_spent;
    if (has_room() || used || ghosts_.find(key) >= 0) return Entry::open;
    if (is_low_) return Entry::budget_low;
    return second_touch_ && to_let_in_ == 0 ? Entry::used_once : Entry::open;
}

void Admission::begin(std::uint64_t bytes) {
    budget_.promise(bytes);
    kept_out_ -= std::min(kept_out_, kLetIn * bytes);
    to_let_in_ -= std::min(to_let_in_, bytes);
    watch_budget();
}

void Admission::settle(std::uint64_t written, std::int64_t now_ms) {
    budget_.settle(written, now_ms);
    watch_budget();
}

// Chunks are let in one after the other, so that they are whole prompts.
void Admission::refuse(Entry why, std::uint64_t bytes) {
    if (why != Entry::used_once) return;
    kept_out_ += bytes;
    if (kept_out_ < capacity_) return;
    kept_out_ = 0;
    to_let_in_ = std::max<std::uint64_t>(1, capacity_ / kLetIn);
}

void Admission::remember(std::uint64_t key, std::uint64_t bytes) {
    ghosts_.add({key, bytes, 0, 0});
    ghosts_.shrink(kRemembered * capacity_);
}

void Admission::set_capacity(std::uint64_t bytes) {
    capacity_ = bytes;
    ghosts_.shrink(kRemembered * capacity_);
}

void Admission::restore(double left, std::int64_t at_ms) {
    budget_.restore(left, at_ms);
    watch_budget();
}

// Each closes at one level and opens at a higher one. Prompts are let go tail first, and one without its head is worth
// nothing: so many chunks in a row go down, or none. Coding agents hit .79 of their tokens that way and .72 without,
// for the same bytes.
void Admission::watch_budget() {
    if (!budget_.is_bound()) return;
    const double left = budget_.left(), most = budget_.most();
    is_spent_ = left <= 0 || (is_spent_ && left < most / 8);
    is_low_ = left < most / 2 || (is_low_ && left < most * 5 / 8);
}

}  // namespace kvstore
