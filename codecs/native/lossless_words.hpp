// Elements as an exponent and the rest of their bits, for each dtype.
//
// The rest of N elements, [layer, plane, token, head, dim] in C order: bfloat16 N bytes (mantissa, sign on top); float16
// N bytes (the mantissa's low 8 bits), then 3 bits each (mantissa, sign on top), 8 elements in 3 bytes; float32 3 · N
// bytes: the mantissa's low byte of all, the next of all, then its last 7 bits with the sign on top.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace kvstore::lossless {

template <typename Word>
Word word_at(const std::uint8_t* from) {
    Word word;
    std::memcpy(&word, from, sizeof word);
    return word;
}

// `planes` byte planes; those after `whole` hold 3 bits of an element until they are packed.
struct Bf16Words {
    using Word = std::uint16_t;
    static constexpr std::size_t planes = 1, whole = 1;
    static constexpr std::uint8_t highest = 255;
    static std::uint8_t exponent(Word word) { return static_cast<std::uint8_t>(word >> 7); }
    static void rest(Word word, std::uint8_t* to, std::size_t) {
        *to = static_cast<std::uint8_t>((word & 0x7F) | (word >> 8 & 0x80));
    }
    static Word join(std::uint8_t exponent, const std::uint8_t* rest, std::size_t) {
        return static_cast<Word>((*rest & 0x80) << 8 | exponent << 7 | (*rest & 0x7F));
    }
};

struct Fp16Words {
    using Word = std::uint16_t;
    static constexpr std::size_t planes = 2, whole = 1;
    static constexpr std::uint8_t highest = 31;
    static std::uint8_t exponent(Word word) { return static_cast<std::uint8_t>(word >> 10 & 0x1F); }
    static void rest(Word word, std::uint8_t* to, std::size_t plane) {
        to[0] = static_cast<std::uint8_t>(word);
        to[plane] = static_cast<std::uint8_t>((word >> 8 & 3) | (word >> 13 & 4));
    }
    static Word join(std::uint8_t exponent, const std::uint8_t* rest, std::size_t plane) {
        return static_cast<Word>((rest[plane] & 4) << 13 | exponent << 10 | (rest[plane] & 3) << 8 | rest[0]);
    }
};

struct Fp32Words {
    using Word = std::uint32_t;
    static constexpr std::size_t planes = 3, whole = 3;
    static constexpr std::uint8_t highest = 255;
    static std::uint8_t exponent(Word word) { return static_cast<std::uint8_t>(word >> 23); }
    static void rest(Word word, std::uint8_t* to, std::size_t plane) {
        to[0] = static_cast<std::uint8_t>(word);
        to[plane] = static_cast<std::uint8_t>(word >> 8);
        to[2 * plane] = static_cast<std::uint8_t>((word >> 16 & 0x7F) | (word >> 24 & 0x80));
    }
    static Word join(std::uint8_t exponent, const std::uint8_t* rest, std::size_t plane) {
        const auto top = static_cast<Word>(rest[2 * plane]);
        return (top & 0x80) << 24 | static_cast<Word>(exponent) << 23 | (top & 0x7F) << 16 |
               static_cast<Word>(rest[plane]) << 8 | rest[0];
    }
};

// Bytes of the rest of `count` elements.
template <typename Words>
std::size_t rest_bytes(std::size_t count) {
    return Words::whole * count + (Words::planes > Words::whole ? (3 * count + 7) / 8 : 0);
}

// Pieces of 3 bits, one per byte, to 8 in 3 bytes and back. The unpacked ones have zeros up to a multiple of 8.
inline void pack3(const std::uint8_t* __restrict pieces, std::uint8_t* __restrict packed, std::size_t count) {
    for (std::size_t i = 0; i < count; i += 8) {
        std::uint32_t word = 0;
        for (unsigned j = 0; j < 8; ++j) word |= static_cast<std::uint32_t>(pieces[i + j]) << (3 * j);
        const std::size_t length = (3 * count + 7) / 8 - i / 8 * 3;
        std::memcpy(packed + i / 8 * 3, &word, length < 3 ? length : 3);
    }
}

inline void unpack3(const std::uint8_t* __restrict packed, std::uint8_t* __restrict pieces, std::size_t count) {
    for (std::size_t i = 0; i < count; i += 8) {
        std::uint32_t word = 0;
        const std::size_t length = (3 * count + 7) / 8 - i / 8 * 3;
        std::memcpy(&word, packed + i / 8 * 3, length < 3 ? length : 3);
        for (unsigned j = 0; j < 8; ++j) pieces[i + j] = static_cast<std::uint8_t>(word >> (3 * j) & 7);
    }
}

}  // namespace kvstore::lossless
