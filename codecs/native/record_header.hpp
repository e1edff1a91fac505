// The header of a record; kvstore/record.py describes the format.
#pragma once

#include "plain_get.hpp"

#include <cstdint>
#include <span>
#include <vector>

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

// A header as it lies in memory, all of it.
class RecordHeader {
public:
    explicit RecordHeader(std::span<const std::uint8_t> header);

    // Whether it matches its checksum, and its layer groups cover the payload; what the rest says holds only then.
    bool intact() const { return intact_; }
    const RecordFields& fields() const { return fields_; }
    const SpecDigest& owner() const { return owner_; }  // the namespace's digest
    std::uint16_t form() const { return form_; }
    // Its entries (GroupEntry), in the memory of the header.
    std::span<const std::uint8_t> groups() const { return groups_; }

private:
    bool has_checksum() const;
    bool covers() const;

    std::span<const std::uint8_t> header_;
    RecordFields fields_{};
    SpecDigest owner_{};
    std::uint16_t form_ = 0;
    std::span<const std::uint8_t> groups_;
    bool intact_ = false;
};

}  // namespace kvstore
