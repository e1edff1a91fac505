// The header of a record, written where it stays; kvstore/record.py describes the format.
#include "bind.hpp"
#include "buffer.hpp"
#include "xxh3.hpp"

#include <cstring>

namespace kvstore {

namespace {

constexpr std::size_t kChecksumAt = 8;
constexpr std::size_t kDigestBytes = 16;
constexpr std::size_t kEntryBytes = 32;

void refuse(const std::string& reason) { throw nb::value_error(reason.c_str()); }

void put_word(std::uint8_t* at, std::uint64_t value) {
    for (int i = 0; i < 8; ++i) at[i] = static_cast<std::uint8_t>(value >> (8 * i));
}

void write_header(nb::handle header_object, nb::handle fixed_object, nb::handle offsets_object,
                  nb::handle lengths_object, nb::handle digests_object) {
    const BufferView header(header_object, "header", true);
    const BufferView fixed(fixed_object, "fixed");
    const Words offsets(offsets_object, "offsets");
    const Words lengths(lengths_object, "lengths");
    const BufferView digests(digests_object, "digests");
    const std::size_t count = offsets.size();
    if (lengths.size() != count || digests.bytes() != count * kDigestBytes)
        refuse(std::to_string(count) + " offsets, " + std::to_string(lengths.size()) + " lengths and " +
               std::to_string(digests.bytes()) + " bytes of digests are no layer groups");
    const std::size_t end = fixed.bytes() + count * kEntryBytes;
    if (fixed.bytes() < kChecksumAt + sizeof(std::uint64_t) || end > header.bytes())
        refuse(std::to_string(fixed.bytes()) + " bytes and " + std::to_string(count) +
               " layer groups do not fit a header of " + std::to_string(header.bytes()) + " bytes");
    std::memcpy(header.data(), fixed.data(), fixed.bytes());
    put_word(header.data() + kChecksumAt, 0);
    std::uint8_t* entry = header.data() + fixed.bytes();
    for (std::size_t i = 0; i < count; ++i, entry += kEntryBytes) {
        put_word(entry, offsets[i]);
        put_word(entry + 8, lengths[i]);
        std::memcpy(entry + 16, digests.data() + i * kDigestBytes, kDigestBytes);
    }
    std::memset(header.data() + end, 0, header.bytes() - end);
    put_word(header.data() + kChecksumAt, xxh3_64(header.data(), header.bytes()));
}

}  // namespace

void bind_record(nb::module_& m) {
    using namespace nb::literals;
    m.def("write_header", write_header, "header"_a, "fixed"_a, "offsets"_a, "lengths"_a, "digests"_a);
}

}  // namespace kvstore
