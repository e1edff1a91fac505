// Which table and offset code a channel's exponents in the fewest bits.
#pragma once

#include "lossless.hpp"
#include "lossless_tables.hpp"

namespace kvstore::lossless {

inline constexpr std::size_t kDepth = 40;  // exponents further below the largest are escaped whatever is chosen
inline constexpr std::size_t kShifts = 8;
inline constexpr std::uint8_t kEscape = kSymbols - 1;

// A symbol is (exponent − offset) mod 256, or kEscape where that is kEscape and more.
struct Choice {
    std::int16_t offset;
    std::uint8_t table;
};

// For columns [tokens][columns] of exponents, one choice for each `span` columns that follow one another; `cost` is
// the bits that they take, in 1/256.
std::vector<Choice> choose(const std::uint8_t* exponents, std::size_t tokens, std::size_t columns, std::size_t span,
                           std::uint64_t& cost);

}  // namespace kvstore::lossless
