// Elements of 2 or 4 bytes as byte planes, for general compressors: see codecs/compressed.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvstore {

// Every element is turned left by one bit (sign to the lowest place, a bfloat16's exponent to the highest byte); then
// the highest bytes of all elements stand first, the next ones after them, and so on. `width` is 2 or 4.
void split_bytes(std::uint8_t* planes, const std::uint8_t* elements, std::size_t count, unsigned width);
void join_bytes(std::uint8_t* elements, const std::uint8_t* planes, std::size_t count, unsigned width);

}  // namespace kvstore
