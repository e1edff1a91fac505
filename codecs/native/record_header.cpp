#include "record_header.hpp"

#include "xxh3.hpp"

#include <cstring>

namespace kvstore {

namespace {

void put_word(std::uint8_t* at, std::uint64_t value) {
    for (int i = 0; i < 8; ++i) at[i] = static_cast<std::uint8_t>(value >> (8 * i));
}

constexpr char kMagic[4] = {'K', 'V', 'R', '1'};
constexpr std::uint16_t kVersion = 1;
constexpr std::size_t kBlockBytes = 4096;
constexpr std::size_t kSealedEnd = 32;  // checksum, generation and seal count as zeros

template <typename Value>
void read(std::span<const std::uint8_t> header, std::size_t at, Value& value) {
    std::memcpy(&value, header.data() + at, sizeof value);
}

}  // namespace

void write_record_header(std::span<std::uint8_t> header, std::span<const std::uint8_t> fixed,
                         std::span<const Range> groups, const std::uint8_t* digests) {
    std::memcpy(header.data(), fixed.data(), fixed.size());
    put_word(header.data() + kHeaderChecksumAt, 0);
    std::uint8_t* entry = header.data() + fixed.size();
    for (const auto& [offset, length] : groups) {
        put_word(entry, offset);
        put_word(entry + 8, length);
        std::memcpy(entry + 16, digests, kDigestBytes);
        entry += kHeaderEntryBytes;
        digests += kDigestBytes;
    }
    std::memset(entry, 0, static_cast<std::size_t>(header.data() + header.size() - entry));
    put_word(header.data() + kHeaderChecksumAt, xxh3_64(header.data(), header.size()));
}

RecordHeader::RecordHeader(std::span<const std::uint8_t> header) : header_(header) {
    std::uint16_t version = 0, blocks = 0;
    std::uint32_t count = 0;
    std::uint8_t exact = 0;
    if (header.size() < kHeaderFixedBytes || std::memcmp(header.data(), kMagic, sizeof kMagic) != 0) return;
    read(header, 4, version);
    read(header, 6, blocks);
    read(header, kHeaderKeyAt, fields_.key);
    read(header, kHeaderParentAt, fields_.parent);
    read(header, 96, fields_.spec);
    read(header, 112, owner_);
    read(header, 128, fields_.artefact);
    read(header, 144, fields_.part);
    read(header, kHeaderPositionAt, fields_.position);
    read(header, 156, fields_.tokens);
    read(header, 160, fields_.first_valid);
    read(header, 164, count);
    read(header, 168, fields_.logical);
    read(header, 176, fields_.stored);
    read(header, 184, form_);
    read(header, 186, fields_.level);
    read(header, 188, exact);
    fields_.exact = exact != 0;
    if (version != kVersion || blocks * kBlockBytes != header.size()) return;
    if (count == 0 || count > (header.size() - kHeaderFixedBytes) / kHeaderEntryBytes) return;
    groups_ = header.subspan(kHeaderFixedBytes, count * kHeaderEntryBytes);
    intact_ = covers() && has_checksum();
}

bool RecordHeader::covers() const {
    std::uint64_t end = 0;
    for (std::size_t at = 0; at < groups_.size(); at += sizeof(GroupEntry)) {
        GroupEntry entry;
        read(groups_, at, entry);
        if (entry.offset != end) return false;
        end += entry.length;
    }
    return end == fields_.stored;
}

bool RecordHeader::has_checksum() const {
    std::uint64_t expected = 0;
    read(header_, kHeaderChecksumAt, expected);
    std::vector<std::uint8_t> copy(header_.begin(), header_.end());
    std::memset(copy.data() + kHeaderChecksumAt, 0, kSealedEnd - kHeaderChecksumAt);
    return xxh3_64(copy.data(), copy.size()) == expected;
}

}  // namespace kvstore
