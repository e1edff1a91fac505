// The priors of the codec `lossless`: how exponents are distributed in a channel of KV. codecs/lossless_priors.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvstore::lossless {

inline constexpr std::size_t kTables = 16;
inline constexpr std::size_t kSymbols = 32;

// Frequencies, each table's sum 4096; and the cost of a symbol in 1/256 bit, an escaped exponent's byte included.
extern const std::uint16_t kFreqs[kTables][kSymbols];
extern const std::uint16_t kCosts[kTables][kSymbols];

}  // namespace kvstore::lossless
