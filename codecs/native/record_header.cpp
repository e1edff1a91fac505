#include "record_header.hpp"

#include "xxh3.hpp"

#include <cstring>

namespace kvstore {

namespace {

void put_word(std::uint8_t* at, std::uint64_t value) {
    for (int i = 0; i < 8; ++i) at[i] = static_cast<std::uint8_t>(value >> (8 * i));
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

}  // namespace kvstore
