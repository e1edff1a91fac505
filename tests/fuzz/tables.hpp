// A bank for fuzzing: one symbol with all slots, two as uneven as can be, all alike, and a peak with thin flanks.
#pragma once

#include "fuzz.hpp"
#include "rans.hpp"
#include "xxh3.hpp"

#include <array>

inline const kvstore::rans::Bank& fuzz_bank() {
    using kvstore::rans::Bank;
    static const Bank bank = [] {
        std::vector<std::uint16_t> freqs(4 * 256);
        freqs[77] = 4096;
        freqs[256] = 1, freqs[256 + 255] = 4095;
        for (std::size_t symbol = 0; symbol < 256; ++symbol) freqs[512 + symbol] = 16, freqs[768 + symbol] = 1;
        freqs[768 + 128] = 4096 - 255;
        return *Bank::make(freqs);
    }();
    return bank;
}

inline Bytes alternating_tables(std::size_t columns, std::size_t first) {
    Bytes tables(columns);
    for (std::size_t column = 0; column < columns; ++column)
        tables[column] = static_cast<std::uint8_t>((first + column) % fuzz_bank().tables());
    return tables;
}

// Symbols that the tables have, from any bytes: those of the slots that the bytes point at.
inline Bytes symbols_from(Input bytes, std::span<const std::uint8_t> tables, std::size_t tokens) {
    Bytes symbols(tokens * tables.size());
    for (std::size_t i = 0; i < symbols.size(); ++i) {
        const std::size_t slot = bytes.empty() ? 0 : bytes[i % bytes.size()] * 16 + i % 16;
        symbols[i] = static_cast<std::uint8_t>(fuzz_bank().slots()[tables[i % tables.size()] * 4096 + slot]);
    }
    return symbols;
}

// Runs `act(level)` once for each SIMD level that this processor has.
template <typename Act>
void at_every_level(Act act) {
    using kvstore::SimdLevel;
    for (const SimdLevel level : {SimdLevel::portable, SimdLevel::avx2, SimdLevel::avx512}) {
        if (!kvstore::simd_supported(level)) continue;
        kvstore::set_simd_level(level);
        act(level);
    }
}
