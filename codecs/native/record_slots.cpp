#include "record_slots.hpp"

#include "persist.hpp"
#include "xxh3.hpp"

#include <cstring>

namespace kvstore {

namespace {

template <typename T>
T field(const RecordSlot& slot, std::size_t at) {
    T value;
    std::memcpy(&value, slot.row + at, sizeof value);
    return value;
}

struct Field {
    std::size_t from;  // in a header
    std::size_t to;    // in a row
    std::size_t bytes;
};

// Key, parent, namespace, spec, part, position to first valid token, form to exactness, header's blocks, logical and
// stored length, time.
constexpr Field kFields[] = {{32, 0, 32},   {64, 32, 32},  {112, 64, 16}, {96, 80, 16},
                             {144, 96, 8},  {152, 104, 12}, {184, 116, 5}, {kHeaderBlocksAt, kRowHeaderBlocksAt, 2},
                             {168, 124, 8}, {kHeaderStoredAt, kRowStoredAt, 8}, {192, 148, 8}};

}  // namespace

std::uint64_t RecordSlots::checksum(const RecordSlot& slot) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(&slot);
    const std::uint64_t hash = xxh3_64(bytes + sizeof slot.mark, sizeof slot - sizeof slot.mark);
    return hash > kBegun ? hash : ~hash;
}

void RecordSlots::mark(std::size_t slot, std::uint64_t value) {
    drain();
    __atomic_store_n(&slots_[slot].mark, value, __ATOMIC_RELEASE);
    if (flush_) write_back(reinterpret_cast<const std::uint8_t*>(&slots_[slot].mark), sizeof value);
    drain();
}

void RecordSlots::begin(std::size_t slot, const std::uint8_t* header, std::uint64_t location,
                        const Stripes& stripes) {
    mark(slot, kBegun);
    RecordSlot& to = slots_[slot];
    std::memset(to.row, 0, kRowBytes);
    for (const Field& each : kFields) std::memcpy(to.row + each.to, header + each.from, each.bytes);
    std::memcpy(to.row + kRowLocationAt, &location, sizeof location);
    std::memcpy(to.starts, stripes.starts.data(), sizeof to.starts);
    std::memcpy(to.units, stripes.units.data(), sizeof to.units);
    to.first = stripes.first;
    std::memset(to.unused, 0, sizeof to.unused);
    if (flush_) write_back(reinterpret_cast<const std::uint8_t*>(&to), sizeof to);
}

void RecordSlots::commit(std::size_t slot) { mark(slot, checksum(slots_[slot])); }

Stripes RecordSlots::stripes_of(std::size_t slot) const {
    const RecordSlot& from = slots_[slot];
    Stripes stripes;
    std::memcpy(stripes.starts.data(), from.starts, sizeof from.starts);
    std::memcpy(stripes.units.data(), from.units, sizeof from.units);
    stripes.first = from.first;
    return stripes;
}

std::uint64_t RecordSlots::location_of(std::size_t slot) const {
    return field<std::uint64_t>(slots_[slot], kRowLocationAt);
}

std::uint64_t RecordSlots::blocks_of(std::size_t slot) const {
    const auto stored = field<std::uint64_t>(slots_[slot], kRowStoredAt);
    return field<std::uint16_t>(slots_[slot], kRowHeaderBlocksAt) + stored / kStripeBlock + (stored % kStripeBlock != 0);
}

}  // namespace kvstore
