#include "policy_value_cursor.hpp"

#include <algorithm>

namespace kvstore {

std::int64_t ValuePolicy::victim() { return ordered_ ? order_->victim() : queues_.first(); }

std::shared_ptr<Victims> ValuePolicy::victims() {
    drop_cursors();
    return cursors_.emplace_back(std::make_shared<Cursor>(*this));
}

// Those that nobody holds any more. Whoever lets go of one need not have the lock.
void ValuePolicy::drop_cursors() {
    std::erase_if(cursors_, [](const std::shared_ptr<Cursor>& cursor) { return cursor.use_count() == 1; });
}

std::int64_t ValuePolicy::Cursor::next() {
    if (policy_.ordered_) return followed();
    for (;;) {
        const std::int64_t row = in_queues();
        while (!freed_.empty() && !is_free(freed_.front().node)) {
            std::pop_heap(freed_.begin(), freed_.end());
            freed_.pop_back();
        }
        std::int64_t found = row;
        if (!freed_.empty() &&
            (row < 0 || freed_.front().rank <= policy_.queues_.rank_of(static_cast<std::size_t>(queue_))))
            found = policy_.known_[freed_.front().node].row;
        if (found >= 0) {
            tell(static_cast<std::uint32_t>(found));
            return found;
        }
        if (!stirred_) return -1;
        stirred_ = false;
        queue_ = -1;
    }
}

// The next row in queues that it has not told of; -1: none.
std::int64_t ValuePolicy::Cursor::in_queues() {
    for (;;) {
        if (next_ < 0) {
            const std::size_t rank = queue_ < 0 ? 0 : policy_.queues_.rank_of(static_cast<std::size_t>(queue_)) + 1;
            next_ = policy_.queues_.first(rank);
            if (next_ < 0) return -1;
            queue_ = static_cast<std::int64_t>(queue_of(policy_.known_at(static_cast<std::uint32_t>(next_))));
        }
        if (!is_told(static_cast<std::uint32_t>(next_))) return next_;
        next_ = policy_.queues_.newer(static_cast<std::uint32_t>(next_));
    }
}

std::int64_t ValuePolicy::Cursor::followed() {
    if (!order_) order_ = policy_.order_->victims();
    std::int64_t row;
    do row = order_->next();
    while (row >= 0 && is_told(static_cast<std::uint32_t>(row)));
    if (row >= 0) tell(static_cast<std::uint32_t>(row));
    return row;
}

void ValuePolicy::Cursor::tell(std::uint32_t row) {
    told_[row / 64] |= std::uint64_t{1} << row % 64;
    untold_.erase(policy_.rows_[row].node);
    const std::uint32_t parent = policy_.known_at(row).parent;
    if (parent == 0) return;
    untold_.try_emplace(parent, policy_.known_[parent].children);
    count_down(parent);
}

// One child fewer that it has not told of.
void ValuePolicy::Cursor::count_down(std::uint32_t parent) {
    const auto found = untold_.find(parent);
    if (found != untold_.end() && found->second > 0 && --found->second == 0) free(parent);
}

void ValuePolicy::Cursor::free(std::uint32_t node) {
    if (!is_free(node)) return;
    freed_.push_back({policy_.queues_.rank_of(queue_of(policy_.known_[node])), turns_++, node});
    std::push_heap(freed_.begin(), freed_.end());
}

bool ValuePolicy::Cursor::is_free(std::uint32_t node) const {
    const Known& known = policy_.known_[node];
    if (!known.here || is_told(known.row)) return false;
    const auto found = untold_.find(node);
    return found != untold_.end() && found->second == 0;
}

void ValuePolicy::Cursor::came(std::uint32_t node) {
    const Known& known = policy_.known_[node];
    const auto told = told_.find(known.row / 64);
    if (told != told_.end()) told->second &= ~(std::uint64_t{1} << known.row % 64);
    if (const auto found = untold_.find(known.parent); found != untold_.end()) ++found->second;
    free(node);
}

void ValuePolicy::Cursor::leaves(std::uint32_t node) {
    const Known& known = policy_.known_[node];
    if (!is_told(known.row)) count_down(known.parent);
}

}  // namespace kvstore
