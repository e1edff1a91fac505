// One token's columns at a time: loops that the compiler vectorizes for whichever target they are inlined into.
#pragma once

#include "cachegen.hpp"

#include <bit>
#include <cstddef>
#include <cstdint>

namespace kvstore::cachegen {

// Inlined into functions of another target; a lambda or a library call in here would not be.
#define KVSTORE_INLINE [[gnu::always_inline]] inline

inline constexpr float kZero = 128.0F;          // the symbol of code 0
inline constexpr float kToInteger = 12582912.0F;  // 1.5 · 2^23: a sum with it has no fraction left

// Elements as float32. An fp16 infinity or NaN comes out as 65536 or more.
KVSTORE_INLINE float value_of(float element) { return element; }

struct Bf16 {
    std::uint16_t bits;
};
struct Fp16 {
    std::uint16_t bits;
};

KVSTORE_INLINE float value_of(Bf16 element) { return std::bit_cast<float>(std::uint32_t{element.bits} << 16); }

KVSTORE_INLINE float value_of(Fp16 element) {
    const std::uint32_t bits = element.bits;
    const float size = std::bit_cast<float>((bits & 0x7FFFU) << 13) * 0x1p112F;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(size) | (bits & 0x8000U) << 16);
}

// To nearest even; what fp16 cannot reach becomes its largest number.
template <typename Element>
Element element_of(float value);

template <>
KVSTORE_INLINE float element_of<float>(float value) {
    return value;
}

template <>
KVSTORE_INLINE Bf16 element_of<Bf16>(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    return {static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16)};
}

template <>
KVSTORE_INLINE Fp16 element_of<Fp16>(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    std::uint32_t size = bits & 0x7FFFFFFFU;
    size = size < 0x477FE000U ? size : 0x477FE000U;  // 65504
    const std::uint32_t small = std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) + 0.5F) - 0x3F000000U;
    const std::uint32_t usual = (size + 0xFFFU + (size >> 13 & 1U) - 0x38000000U) >> 13;
    return {static_cast<std::uint16_t>((bits >> 16 & 0x8000U) | (size < 0x38800000U ? small : usual))};
}

// Magnitudes from here on are not coded. As bits, so that NaN is above.
template <typename Element>
inline constexpr std::uint32_t kLimit = 0x71800000U;  // 2^100
template <>
inline constexpr std::uint32_t kLimit<Fp16> = 0x47800000U;  // 65536

// The values of `count` elements `stride` apart; returns the largest magnitude's bits.
template <typename Element>
KVSTORE_INLINE std::uint32_t load_run(const Element* from, std::size_t stride, std::size_t count, float* values) {
    std::uint32_t most = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const float value = value_of(from[i * stride]);
        values[i] = value;
        const std::uint32_t size = std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFU;
        most = size > most ? size : most;
    }
    return most;
}

// Symbols of values, and what they decode to (the value itself where it is written out). Returns how many are.
KVSTORE_INLINE std::size_t quantize_run(const float* values, const float* base, const Side& side, std::size_t count,
                                        std::uint8_t* symbols, float* decoded) {
    std::uint32_t written = 0;
    for (std::size_t i = 0; i < count; ++i) {
        float code = (values[i] - base[i]) * side.inverse[i];
        code = code < kZero ? code : kZero;
        code = code > -kZero ? code : -kZero;
        code = (code + kToInteger) - kToInteger;
        const bool has = (code >= side.low[i]) & (code <= side.high[i]);
        code = has ? code : -kZero;
        written += has ? 0U : 1U;
        symbols[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(code) + 128);
        decoded[i] = has ? code * side.step[i] + base[i] : values[i];
    }
    return written;
}

// The values that symbols stand for; returns how many symbols are 0.
KVSTORE_INLINE std::size_t dequantize_run(const std::uint8_t* symbols, const float* base, const float* step,
                                          std::size_t count, float* values) {
    std::uint32_t written = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const std::int32_t symbol = symbols[i];
        written += symbol == 0 ? 1U : 0U;
        values[i] = static_cast<float>(symbol - 128) * step[i] + base[i];
    }
    return written;
}

template <typename Element>
KVSTORE_INLINE void store_run(const float* values, std::size_t stride, std::size_t count, Element* to) {
    for (std::size_t i = 0; i < count; ++i) to[i * stride] = element_of<Element>(values[i]);
}

// The four for one target. Strides and counts are in elements; `load` is false for a magnitude that is not coded.
struct Rows {
    bool (*load)(Dtype dtype, const std::uint8_t* from, std::size_t stride, std::size_t count, float* values);
    std::size_t (*quantize)(const float* values, const float* base, const Side& side, std::size_t count,
                            std::uint8_t* symbols, float* decoded);
    std::size_t (*dequantize)(const std::uint8_t* symbols, const float* base, const float* step, std::size_t count,
                              float* values);
    void (*store)(Dtype dtype, const float* values, std::size_t stride, std::size_t count, std::uint8_t* to);
};

extern const Rows kPortableRows;
#if defined(__x86_64__)
extern const Rows kAvx2Rows;
#endif

}  // namespace kvstore::cachegen
