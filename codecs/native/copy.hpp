#pragma once

#include "xxh3.hpp"

#include <span>

namespace kvstore {

// Copies of this many bytes and more go past the cache. Measured over buffers that rotate through 512 MiB on
// Zen 3: 1.4 to 1.5 times memcpy from 256 KiB upwards, since the destination's lines are not read first.
inline constexpr std::size_t kStreamBytes = 256 * 1024;

// How to store `output`, a range of a copy of `copy_bytes` in all.
Store store_for(const std::uint8_t* output, std::size_t copy_bytes);

void copy_bytes(std::uint8_t* output, const std::uint8_t* input, std::size_t length);

// A piece of a copy of `whole` bytes, which decide whether it goes past the cache. Others see it after `end_copy`.
void copy_piece(std::uint8_t* output, const std::uint8_t* input, std::size_t length, std::size_t whole);
void end_copy();

// Asks for the beginning of what is copied next, which nothing else would fetch ahead.
void expect_copy_from(const std::uint8_t* input);

inline constexpr std::size_t kDigestBytes = 16;

// A piece of a buffer, in bytes.
struct Range {
    std::size_t offset;
    std::size_t length;
};

// Copies `length` bytes and writes the xxh3-128 of each range, which ascend and lie inside, to `digests`.
void copy_hash_ranges(std::uint8_t* output, const std::uint8_t* input, std::size_t length,
                      std::span<const Range> ranges, std::uint8_t* digests);

}  // namespace kvstore
