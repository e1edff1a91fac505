// The header of a record; kvstore/record.py describes the format.
#pragma once

#include "copy.hpp"

#include <cstdint>
#include <span>

namespace kvstore {

inline constexpr std::size_t kHeaderChecksumAt = 8;
inline constexpr std::size_t kHeaderEntryBytes = 32;
// Fields of the fixed part that differ between records of one shape.
inline constexpr std::size_t kHeaderFixedBytes = 256;
inline constexpr std::size_t kHeaderKeyAt = 32;
inline constexpr std::size_t kHeaderParentAt = 64;
inline constexpr std::size_t kHeaderPositionAt = 152;
inline constexpr std::size_t kHeaderCreatedAt = 192;

// Writes a whole header: the fixed part, an entry for each layer group, zeros, and its checksum. All of it must fit.
void write_record_header(std::span<std::uint8_t> header, std::span<const std::uint8_t> fixed,
                         std::span<const Range> groups, const std::uint8_t* digests);

}  // namespace kvstore
