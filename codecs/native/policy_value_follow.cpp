// Of `value`: the order of a simpler policy, while that does better.
#include "policy_value.hpp"

#include "policy_value_cursor.hpp"

#include <algorithm>

namespace kvstore {

namespace {

constexpr std::uint32_t kMostHits = 4;  // told of a chunk that was used often: enough for every policy to see that

}  // namespace

void ValuePolicy::set_capacity(std::uint64_t bytes) {
    capacity_ = bytes;
    if (order_) order_->set_capacity(bytes);
}

// Begins or ends to follow another policy, if the shadows say so.
void ValuePolicy::follow() {
    const std::size_t before = shadows_.chosen();
    const std::size_t now = shadows_.choose(clock_.uses(), size_);
    if (now == before) return;
    for (const auto& cursor : cursors_) cursor->unfollows();
    order_.reset();
    ordered_ = false;
    if (now == Shadows::kNone) return;
    order_ = Shadows::make(now, max_rows_);
    order_->set_capacity(capacity_);
    ordering_at_ = clock_.uses();
    known_.begin_visit();
}

// Its order is made of what is known of the chunks here, the one used longest ago first, some with each use: all at once
// would be a pause under the store's lock that grows with the chunks. Until it is whole, victims are still `value`'s own.
// What is used meanwhile is met at the end; so the first age is gone through in one go, which is a few uses long.
void ValuePolicy::make_order(std::int64_t now_ms) {
    std::uint64_t left = kOrderedPerUse * (clock_.uses() - ordering_at_);
    ordering_at_ = clock_.uses();
    for (; left > 0 || known_.visited_age() == 0; left -= left > 0) {
        const std::uint32_t node = known_.next_visited();
        if (node == 0) {
            ordered_ = true;
            return;
        }
        put_in_order(node, now_ms);
    }
}

void ValuePolicy::put_in_order(std::uint32_t node, std::int64_t now_ms) {
    const Known& known = known_[node];
    const std::uint32_t row = known.row;
    if (order_->contains(row)) {  // it was used since it was met
        order_->hit(&row, 1, now_ms);
        return;
    }
    order_->admit(row, {known.key, 0, 0, 0, rows_[row].size.bytes}, now_ms);
    for (std::uint32_t hit = 1; hit < std::min<std::uint32_t>(known.uses, kMostHits); ++hit) order_->hit(&row, 1, now_ms);
}

// One that grows older into a list that has been gone through.
void ValuePolicy::pass_by(std::uint32_t node) {
    if (!order_->contains(known_[node].row)) put_in_order(node, clock_.now_ms());
}

}  // namespace kvstore
