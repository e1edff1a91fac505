#include "lossless_choice.hpp"

#include <algorithm>
#include <memory>

namespace kvstore::lossless {

namespace {

inline constexpr std::size_t kWays = kTables * kShifts;

// Cost of an exponent so far below the largest, for every table and shift.
struct Costs {
    Costs() {
        for (std::size_t depth = 0; depth <= kDepth; ++depth)
            for (std::size_t way = 0; way < kWays; ++way) {
                const std::size_t shift = way % kShifts, kept = kEscape - shift;
                of[depth][way] = kCosts[way / kShifts][depth < kept ? kept - 1 - depth : kEscape];
            }
    }
    alignas(64) std::uint32_t of[kDepth + 1][kWays];
};

const Costs& costs() {
    static const Costs made;
    return made;
}

// Counts are at most 65,535 tokens × span: sums in 32 bits would do for a channel, not for a head.
template <typename Sum>
std::size_t cheapest(const std::uint32_t* counts, std::uint64_t& cost) {
    Sum sums[kWays] = {};
    for (std::size_t depth = 0; depth <= kDepth; ++depth) {
        const Sum count = counts[depth];
        if (count == 0) continue;
        const std::uint32_t* const each = costs().of[depth];
        for (std::size_t way = 0; way < kWays; ++way) sums[way] += count * each[way];
    }
    const Sum* const least = std::min_element(sums, sums + kWays);
    cost += *least;
    return static_cast<std::size_t>(least - sums);
}

}  // namespace

std::vector<Choice> choose(const std::uint8_t* exponents, std::size_t tokens, std::size_t columns, std::size_t span,
                           std::uint64_t& cost) {
    constexpr std::size_t kRow = 48;
    std::vector<std::uint8_t> largest(columns, 0);
    for (std::size_t token = 0; token < tokens; ++token) {
        const std::uint8_t* const row = exponents + token * columns;
        for (std::size_t i = 0; i < columns; ++i) largest[i] = std::max(largest[i], row[i]);
    }
    const std::size_t groups = columns / span;
    if (span > 1)
        for (std::size_t group = 0; group < groups; ++group) {
            const auto first = largest.begin() + static_cast<std::ptrdiff_t>(group * span);
            const auto end = first + static_cast<std::ptrdiff_t>(span);
            std::fill(first, end, *std::max_element(first, end));
        }
    std::vector<std::uint32_t> counts(groups * kRow, 0);
    std::vector<std::uint8_t> depths(columns);
    for (std::size_t token = 0; token < tokens; ++token) {
        const std::uint8_t* const row = exponents + token * columns;
        for (std::size_t i = 0; i < columns; ++i)
            depths[i] = std::min<std::uint8_t>(static_cast<std::uint8_t>(largest[i] - row[i]), kDepth);
        if (span == 1) {
            for (std::size_t i = 0; i < columns; ++i) ++counts[i * kRow + depths[i]];
        } else {
            for (std::size_t i = 0; i < columns; ++i) ++counts[i / span * kRow + depths[i]];
        }
    }
    std::vector<Choice> choices(groups);
    cost = 0;
    const bool fits = tokens * span < 1U << 19;  // a symbol costs less than 2^13
    for (std::size_t group = 0; group < groups; ++group) {
        const std::uint32_t* const each = counts.data() + group * kRow;
        const std::size_t way = fits ? cheapest<std::uint32_t>(each, cost) : cheapest<std::uint64_t>(each, cost);
        choices[group] = {static_cast<std::int16_t>(largest[group * span] - (kEscape - 1) + static_cast<int>(way % kShifts)),
                          static_cast<std::uint8_t>(way / kShifts)};
    }
    return choices;
}

}  // namespace kvstore::lossless
