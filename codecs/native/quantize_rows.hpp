// Steps over rows of float32 that the quantizers share. Included as quantize_tile.hpp is.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions alone
#endif

namespace kvstore::quantize {

namespace {

using Floats8 = float __attribute__((vector_size(32)));

// Adding this leaves the nearest even integer in the low bits of the sum, for magnitudes below 2^22.
inline constexpr float kRound = 0x1.8p23F;

inline float from_bf16(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

// The largest bfloat16 that is not above a value; 0 for -0.
inline std::uint16_t bf16_below(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value + 0.0F);
    return static_cast<std::uint16_t>((bits + (bits >> 31) * 0xFFFFU) >> 16);
}

// The scale for a span in steps of `part` of it: bfloat16, 2^-120 at least.
inline std::uint16_t scale_bits(float span, float part) {
    const float scaled = span * part;
    const auto bits = std::bit_cast<std::uint32_t>(scaled < 0x1p-120F ? 0x1p-120F : scaled);
    return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

inline bool sound_scale(std::uint16_t bits) { return bits >= 0x0380 && bits < 0x7780; }  // 2^-120, 2^112
inline bool sound_zero(std::uint16_t bits) { return (bits & 0x7FFF) < 0x7780; }

inline std::uint16_t get_word(const std::uint8_t* from) {
    std::uint16_t word;
    std::memcpy(&word, from, 2);
    return word;
}

inline void put_word(std::uint8_t* to, std::uint16_t word) { std::memcpy(to, &word, 2); }

inline std::uint32_t magnitude(float value) { return std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFU; }

inline float largest_magnitude(const float* row, std::size_t dim) {
    std::int32_t largest = 0;
    for (std::size_t i = 0; i < dim; ++i) largest = std::max(largest, static_cast<std::int32_t>(magnitude(row[i])));
    return std::bit_cast<float>(largest);
}

inline void extremes(const float* row, std::size_t dim, float& lowest, float& highest) {
    std::size_t i = 0;
    lowest = highest = row[0];
    if (dim >= 8) {
        Floats8 low, high;
        std::memcpy(&low, row, sizeof low);
        high = low;
        for (i = 8; i + 8 <= dim; i += 8) {
            Floats8 value;
            std::memcpy(&value, row + i, sizeof value);
            low = value < low ? value : low;
            high = value > high ? value : high;
        }
        for (int lane = 0; lane < 8; ++lane) {
            lowest = low[lane] < lowest ? low[lane] : lowest;
            highest = high[lane] > highest ? high[lane] : highest;
        }
    }
    for (; i < dim; ++i) {
        lowest = row[i] < lowest ? row[i] : lowest;
        highest = row[i] > highest ? row[i] : highest;
    }
}

// Integers of `bits` bits to rows: byte i holds, from its lowest bits on, elements i, i + n, i + 2n, ... of n = row bytes.
// `levels` has 8 / bits · n bytes, zeros behind the last element.
template <unsigned bits>
void pack_row(const std::uint8_t* __restrict levels, std::uint8_t* __restrict row, std::size_t row_bytes) {
    for (std::size_t i = 0; i < row_bytes; ++i) {
        unsigned byte = 0;
        for (unsigned part = 0; part < 8 / bits; ++part)
            byte |= static_cast<unsigned>(levels[part * row_bytes + i]) << (part * bits);
        row[i] = static_cast<std::uint8_t>(byte);
    }
}

template <unsigned bits>
void unpack_row(const std::uint8_t* __restrict row, std::uint8_t* __restrict levels, std::size_t row_bytes) {
    for (unsigned part = 0; part < 8 / bits; ++part)
        for (std::size_t i = 0; i < row_bytes; ++i)
            levels[part * row_bytes + i] = static_cast<std::uint8_t>(row[i] >> (part * bits) & ((1U << bits) - 1));
}

inline Floats8 load8(const float* from) {
    Floats8 value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline void store8(float* to, Floats8 value) { std::memcpy(to, &value, sizeof value); }

// The last three rounds of a block's butterflies: elements 4, 2 and 1 apart. a + b is the same whichever comes first.
inline Floats8 butterflies8(Floats8 x) {
    const Floats8 halves = {1, 1, 1, 1, -1, -1, -1, -1}, pairs = {1, 1, -1, -1, 1, 1, -1, -1},
                  single = {1, -1, 1, -1, 1, -1, 1, -1};
    x = __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3) + x * halves;
    x = __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5) + x * pairs;
    return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6) + x * single;
}

// Blocks of `size` elements, a power of two, times the Hadamard matrix: see hadamard.py for the order of the sums.
inline void hadamard(float* row, std::size_t dim, std::size_t size) {
    for (float* block = row; block < row + dim; block += size) {
        std::size_t step = size / 2;
        for (; step >= 8; step /= 2)
            for (std::size_t start = 0; start < size; start += 2 * step)
                for (std::size_t i = start; i < start + step; i += 8) {
                    const Floats8 a = load8(block + i), b = load8(block + i + step);
                    store8(block + i, a + b);
                    store8(block + i + step, a - b);
                }
        if (size >= 8) {
            for (std::size_t i = 0; i < size; i += 8) store8(block + i, butterflies8(load8(block + i)));
            continue;
        }
        for (; step > 0; step /= 2)
            for (std::size_t start = 0; start < size; start += 2 * step)
                for (std::size_t i = start; i < start + step; ++i) {
                    const float a = block[i], b = block[i + step];
                    block[i] = a + b;
                    block[i + step] = a - b;
                }
    }
}

}  // namespace

}  // namespace kvstore::quantize
