#include "bytesplit.hpp"

#include <bit>
#include <cstring>

namespace kvstore {

namespace {

template <typename Word>
void split(std::uint8_t* planes, const std::uint8_t* elements, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        Word word;
        std::memcpy(&word, elements + i * sizeof(Word), sizeof(Word));
        word = std::rotl(word, 1);
        for (unsigned plane = 0; plane < sizeof(Word); ++plane)
            planes[plane * count + i] = static_cast<std::uint8_t>(word >> (8 * (sizeof(Word) - 1 - plane)));
    }
}

template <typename Word>
void join(std::uint8_t* elements, const std::uint8_t* planes, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        Word word = 0;
        for (unsigned plane = 0; plane < sizeof(Word); ++plane)
            word = static_cast<Word>(word | static_cast<Word>(planes[plane * count + i])
                                                << (8 * (sizeof(Word) - 1 - plane)));
        word = std::rotr(word, 1);
        std::memcpy(elements + i * sizeof(Word), &word, sizeof(Word));
    }
}

}  // namespace

void split_bytes(std::uint8_t* __restrict planes, const std::uint8_t* __restrict elements, std::size_t count,
                 unsigned width) {
    width == 2 ? split<std::uint16_t>(planes, elements, count) : split<std::uint32_t>(planes, elements, count);
}

void join_bytes(std::uint8_t* __restrict elements, const std::uint8_t* __restrict planes, std::size_t count,
                unsigned width) {
    width == 2 ? join<std::uint16_t>(elements, planes, count) : join<std::uint32_t>(elements, planes, count);
}

}  // namespace kvstore
