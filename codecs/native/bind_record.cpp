// The header of a record, written where it stays; kvstore/record.py describes the format.
#include "bind.hpp"
#include "buffer.hpp"
#include "ranges.hpp"
#include "record_header.hpp"

#include <cstring>
#include <vector>

namespace kvstore {

namespace {

void refuse(const std::string& reason) { throw nb::value_error(reason.c_str()); }

void check_header(std::size_t bytes, std::size_t fixed, std::size_t count) {
    if (fixed < kHeaderChecksumAt + sizeof(std::uint64_t) || fixed + count * kHeaderEntryBytes > bytes)
        refuse(std::to_string(fixed) + " bytes and " + std::to_string(count) +
               " layer groups do not fit a header of " + std::to_string(bytes) + " bytes");
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
    check_header(header.bytes(), fixed.bytes(), count);
    std::vector<Range> groups(count);
    for (std::size_t i = 0; i < count; ++i) groups[i] = {offsets[i], lengths[i]};
    write_record_header({header.data(), header.bytes()}, {fixed.data(), fixed.bytes()}, groups, digests.data());
}

void write_record(nb::handle record_object, std::size_t header_bytes, nb::handle fixed_object, nb::handle data_object,
                  nb::handle offsets_object, nb::handle lengths_object) {
    const BufferView record(record_object, "record", true);
    const BufferView fixed(fixed_object, "fixed");
    const BufferView data(data_object, "data");
    const Ranges ranges(offsets_object, lengths_object, data.bytes());
    ranges.require_ascending();
    if (header_bytes > record.bytes() || data.bytes() > record.bytes() - header_bytes)
        refuse("a header of " + std::to_string(header_bytes) + " bytes and " + std::to_string(data.bytes()) +
               " bytes of payload do not fit a record of " + std::to_string(record.bytes()));
    check_header(header_bytes, fixed.bytes(), ranges.size());
    std::uint8_t* const payload = record.data() + header_bytes;
    check_pair(payload, data.bytes(), data);
    std::vector<std::uint8_t> digests(ranges.size() * kDigestBytes);
    const ReleaseGilFor release(data.bytes());
    copy_hash_ranges(payload, data.data(), data.bytes(), ranges.all(), digests.data());
    std::memset(payload + data.bytes(), 0, record.bytes() - header_bytes - data.bytes());
    write_record_header({record.data(), header_bytes}, {fixed.data(), fixed.bytes()}, ranges.all(), digests.data());
}

// Whether a header is that of a raw part of `item`; an empty owner is anybody.
bool is_of(const RecordHeader& header, const SpecDigest& spec, const nb::bytes& owner, const ItemRef& item) {
    const RecordFields& fields = header.fields();
    if (!header.intact() || header.form() != 0 || fields.spec != spec || fields.key != item.chunk.key) return false;
    if (fields.position != item.chunk.position || fields.tokens != item.chunk.tokens || !(fields.part == item.part))
        return false;
    return owner.size() == 0 || fixed_bytes<SpecDigest>(owner, "owner") == header.owner();
}

bool read_record(nb::handle out_object, nb::handle record_object, std::size_t header_bytes, const nb::bytes& spec,
                 const nb::bytes& owner, const nb::bytes& item) {
    const BufferView out(out_object, "out", true);
    const BufferView record(record_object, "record");
    if (header_bytes > record.bytes()) refuse("the record is shorter than its header");
    // What is read may become another record meanwhile: what is looked at is a copy.
    const std::vector<std::uint8_t> copy(record.data(), record.data() + header_bytes);
    const RecordHeader header(copy);
    if (!is_of(header, fixed_bytes<SpecDigest>(spec, "spec"), owner, record_of<ItemRef>(item, "item"))) return false;
    if (header.fields().stored != out.bytes() || out.bytes() != record.bytes() - header_bytes) return false;
    const std::span<const std::uint8_t> groups = header.groups();
    std::vector<Range> ranges(groups.size() / sizeof(GroupEntry));
    std::vector<std::uint8_t> found(ranges.size() * kDigestBytes);
    std::vector<std::uint8_t> expected(found.size());
    for (std::size_t i = 0; i < ranges.size(); ++i) {
        GroupEntry entry;
        std::memcpy(&entry, groups.data() + i * sizeof entry, sizeof entry);
        ranges[i] = {entry.offset, entry.length};
        std::memcpy(expected.data() + i * kDigestBytes, entry.digest.data(), kDigestBytes);
    }
    const ReleaseGilFor release(out.bytes());
    copy_hash_ranges(out.data(), record.data() + header_bytes, out.bytes(), ranges, found.data());
    return found == expected;
}

}  // namespace

void bind_record(nb::module_& m) {
    using namespace nb::literals;
    m.def("write_header", write_header, "header"_a, "fixed"_a, "offsets"_a, "lengths"_a, "digests"_a);
    m.def("read_record", read_record, "out"_a, "record"_a, "header_bytes"_a, "spec"_a, "owner"_a, "item"_a);
    m.def("write_record", write_record, "record"_a, "header_bytes"_a, "fixed"_a, "data"_a, "offsets"_a, "lengths"_a);
}

}  // namespace kvstore
