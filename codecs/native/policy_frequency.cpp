#include "policy_frequency.hpp"

namespace kvstore {

void RankedPolicy::admit(std::uint32_t row, const Arrival& chunk, std::int64_t) {
    order_.check(row);
    std::uint32_t uses = 1;
    if (order_.contains(row)) {
        uses = known_[row].uses;
        order_.remove(row);
    }
    known_[row] = {chunk.bytes, chunk.tokens, uses};
    order_.add(row, rank(known_[row]));
}

void RankedPolicy::hit(const std::uint32_t* rows, std::size_t count, std::int64_t) {
    while (count-- > 0) {
        const std::uint32_t row = rows[count];
        if (!order_.contains(row)) continue;
        Known& known = known_[row];
        if (known.uses + 1 != 0) ++known.uses;
        order_.remove(row);
        order_.add(row, rank(known));
    }
}

void RankedPolicy::remove(std::uint32_t row, bool evicted, std::int64_t) {
    if (!order_.contains(row)) return;
    if (evicted) evicted_at(order_.number(row));
    order_.remove(row);
}

std::int64_t RankedPolicy::following(std::int64_t row) {
    return row >= 0 && order_.contains(static_cast<std::uint64_t>(row))
               ? order_.next(static_cast<std::uint32_t>(row))
               : order_.first();
}

}  // namespace kvstore
