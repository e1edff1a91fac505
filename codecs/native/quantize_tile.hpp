// 32 tokens of one head as float32: elements of any dtype and layout to a tile and back. Included where everything is
// compiled for one SIMD level; in an unnamed namespace, so that no level's code is linked in place of another's.
#pragma once

#include "quantize.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <type_traits>

namespace kvstore::quantize {

namespace {

inline constexpr std::size_t kTileTokens = 32;

struct Bf16 {
    using Word = std::uint16_t;
    static constexpr Word kLimit = 0x7180;  // 2^100
    static float widen(Word word) { return std::bit_cast<float>(static_cast<std::uint32_t>(word) << 16); }
    static Word narrow(float value) {
        const auto bits = std::bit_cast<std::uint32_t>(value);
        return static_cast<Word>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
    }
};

struct Fp16 {
    using Word = std::uint16_t;
    static constexpr Word kLimit = 0x7C00;  // infinity
    static float widen(Word word) {
        const std::uint32_t size = word & 0x7FFFU;
        const float normal = std::bit_cast<float>((size << 13) + 0x38000000U);
        const float small = static_cast<float>(static_cast<std::int32_t>(size)) * 0x1p-24F;
        const float value = size < 0x400U ? small : normal;
        return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | static_cast<std::uint32_t>(word & 0x8000U) << 16);
    }
    static Word narrow(float value) {
        const auto bits = std::bit_cast<std::uint32_t>(value);
        const std::uint32_t size = std::min<std::uint32_t>(bits & 0x7FFFFFFFU, 0x477FE000U);  // 65504
        const std::uint32_t normal = (size + 0xFFFU + (size >> 13 & 1U) - 0x38000000U) >> 13;
        // Below 2^-14, adding 0.5 leaves the steps of 2^-24 in the mantissa, rounded as the processor rounds.
        const std::uint32_t small = std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) + 0.5F) - 0x3F000000U;
        return static_cast<Word>((size < 0x38800000U ? small : normal) | (bits >> 16 & 0x8000U));
    }
};

struct Fp32 {
    using Word = std::uint32_t;
    static constexpr Word kLimit = 0x71800000;  // 2^100
    static float widen(Word word) { return std::bit_cast<float>(word); }
    static Word narrow(float value) { return std::bit_cast<Word>(value); }
};

// Floats [kTileTokens][width], rows of whole cache lines.
class Tile {
public:
    explicit Tile(std::size_t dim)
        : width_((dim + 15) / 16 * 16), memory_(std::make_unique_for_overwrite<float[]>(width_ * kTileTokens + 16)) {}
    float* row(std::size_t token) const { return aligned() + token * width_; }

private:
    float* aligned() const {
        const auto at = reinterpret_cast<std::uintptr_t>(memory_.get());
        return reinterpret_cast<float*>((at + 63) / 64 * 64);
    }
    std::size_t width_;
    std::unique_ptr<float[]> memory_;
};

template <typename Word>
Word load_word(const std::uint8_t* from) {
    Word word;
    std::memcpy(&word, from, sizeof word);
    return word;
}

template <typename Word>
void store_word(std::uint8_t* to, Word word) {
    std::memcpy(to, &word, sizeof word);
}

// The largest magnitude, as bits.
template <typename Float>
std::uint32_t load_row(const std::uint8_t* __restrict from, std::size_t step, float* __restrict row, std::size_t dim) {
    using Word = typename Float::Word;
    using Signed = std::make_signed_t<Word>;
    constexpr auto kMagnitude = static_cast<Word>(static_cast<Word>(~Word{0}) >> 1);
    Signed largest = 0;
    if (step == 1) {
        for (std::size_t i = 0; i < dim; ++i) {
            const Word word = load_word<Word>(from + i * sizeof(Word));
            largest = std::max(largest, static_cast<Signed>(word & kMagnitude));
            row[i] = Float::widen(word);
        }
    } else {
        for (std::size_t i = 0; i < dim; ++i) {
            const Word word = load_word<Word>(from + i * step * sizeof(Word));
            largest = std::max(largest, static_cast<Signed>(word & kMagnitude));
            row[i] = Float::widen(word);
        }
    }
    return static_cast<std::uint32_t>(largest);
}

// False: a value is not finite or too large.
template <typename Float>
bool load_tile(const Plane& plane, const std::uint8_t* elements, std::size_t first, std::size_t tokens,
               std::size_t head, const Tile& tile) {
    constexpr std::size_t kItem = sizeof(typename Float::Word);
    std::uint32_t largest = 0;
    for (std::size_t token = 0; token < tokens; ++token) {
        const std::uint8_t* const from =
            elements + ((first + token) * plane.token_step + head * plane.head_step) * kItem;
        largest = std::max(largest, load_row<Float>(from, plane.dim_step, tile.row(token), plane.dim));
    }
    return largest < Float::kLimit;
}

template <typename Float>
void store_tile(const Plane& plane, std::uint8_t* elements, std::size_t first, std::size_t tokens, std::size_t head,
                const Tile& tile) {
    using Word = typename Float::Word;
    const std::size_t dim = plane.dim, step = plane.dim_step;
    for (std::size_t token = 0; token < tokens; ++token) {
        std::uint8_t* __restrict const to =
            elements + ((first + token) * plane.token_step + head * plane.head_step) * sizeof(Word);
        const float* __restrict const row = tile.row(token);
        if (step == 1) {
            for (std::size_t i = 0; i < dim; ++i) store_word<Word>(to + i * sizeof(Word), Float::narrow(row[i]));
        } else {
            for (std::size_t i = 0; i < dim; ++i)
                store_word<Word>(to + i * step * sizeof(Word), Float::narrow(row[i]));
        }
    }
}

}  // namespace

}  // namespace kvstore::quantize
