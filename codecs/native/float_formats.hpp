// float32 to the 16-bit formats, to nearest even.
#pragma once

#include <bit>
#include <cstdint>

namespace kvstore {

// Infinity stays; a NaN stays a NaN.
inline std::uint16_t bf16_bits(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>(bits >> 16 | 0x40U);
    return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

inline std::uint16_t fp16_bits(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000U);
    const std::uint32_t size = bits & 0x7FFFFFFFU;
    if (size > 0x7F800000U) return static_cast<std::uint16_t>(sign | 0x7E00U | (size >> 13 & 0x3FFU));
    if (size >= 0x47800000U) return sign | 0x7C00U;  // 65536 and more, infinity
    if (size < 0x38800000U) {                        // below 2^-14: counted in steps of 2^-24
        // Adding 0.5 leaves exactly those steps in the mantissa, rounded as the processor rounds.
        const float shifted = std::bit_cast<float>(size) + 0.5F;
        return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3F000000U));
    }
    const std::uint32_t rounded = size + 0xFFFU + (size >> 13 & 1U);
    return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

}  // namespace kvstore
