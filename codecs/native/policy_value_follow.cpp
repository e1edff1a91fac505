// Of `value`: the order of a simpler policy, while that does better.
#include "policy_value.hpp"

#include <algorithm>

namespace kvstore {

namespace {

constexpr std::uint32_t kMostHits = 4;  // told of a chunk that was used often: enough for every policy to see that

}  // namespace

void ValuePolicy::set_capacity(std::uint64_t bytes) {
    capacity_ = bytes;
    if (order_) order_->set_capacity(bytes);
}

// Begins or ends to follow another policy, if the shadows say so. Its order is made of what is known of the chunks here,
// the one used longest ago first: memory is taken for one policy, and only meanwhile. O(chunks), and seldom: terms become
// longer each time.
void ValuePolicy::follow(std::int64_t now_ms) {
    const std::size_t before = shadows_.chosen();
    const std::size_t now = shadows_.choose(clock_.uses(), size_);
    if (now == before) return;
    order_.reset();
    if (now == Shadows::kNone) return;
    order_ = Shadows::make(now, max_rows_);
    order_->set_capacity(capacity_);
    for (std::size_t age = kAges; age-- > 0;)
        for (const bool alone : {false, true})
            for (std::uint32_t node = known_.oldest(age, false, alone); node != 0; node = known_[node].newer) {
                const Known& known = known_[node];
                const std::uint32_t row = known.row - 1;
                order_->admit(row, {known.key, 0, 0, 0, rows_[row].bytes}, now_ms);
                for (std::uint32_t hit = 1; hit < std::min<std::uint32_t>(known.uses, kMostHits); ++hit)
                    order_->hit(&row, 1, now_ms);
            }
}

}  // namespace kvstore
