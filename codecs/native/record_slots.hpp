// The table of a persistent tier: a slot for each record, on the device itself. It is written when a record comes or
// goes, and read when the tier is opened, never in between.
#pragma once

#include "stripes.hpp"

#include <span>
#include <vector>

namespace kvstore {

// tiers/cxl/superblock.py describes the same format.
inline constexpr std::size_t kRowBytes = 156;  // RECOVERED_DTYPE of tiers/base.py
inline constexpr std::size_t kRowHeaderBlocksAt = 122;
inline constexpr std::size_t kRowStoredAt = 132;
inline constexpr std::size_t kRowLocationAt = 140;
// kvstore/record.py has the format that these two are of.
inline constexpr std::size_t kHeaderBlocksAt = 6;
inline constexpr std::size_t kHeaderStoredAt = 176;

// The mark makes a record valid: it is written last, after everything that it stands for.
struct RecordSlot {
    std::uint64_t mark;  // kNoRecord, kBegun, or the checksum of what follows
    std::uint8_t row[kRowBytes];
    std::uint32_t starts[kMaxDevices];
    std::uint8_t units[kMaxDevices];
    std::uint8_t first;
    std::uint8_t unused[31];
};
static_assert(sizeof(RecordSlot) == 256);

inline constexpr std::uint64_t kNoRecord = 0;
inline constexpr std::uint64_t kBegun = 1;

class RecordSlots {
public:
    // `flush`: what is written must be written back to survive, as on a device that is mapped with MAP_SYNC.
    RecordSlots(RecordSlot* slots, std::size_t count, bool flush) : slots_(slots), count_(count), flush_(flush) {}

    std::size_t count() const { return count_; }
    bool flushes() const { return flush_; }

    // Before a record's bytes are written: says that they are not to be trusted. `header` is the record's.
    void begin(std::size_t slot, const std::uint8_t* header, std::uint64_t location, const Stripes& stripes);
    // After they have been.
    void commit(std::size_t slot);
    void clear(std::size_t slot) { mark(slot, kNoRecord); }

    std::uint64_t mark_of(std::size_t slot) const { return slots_[slot].mark; }
    bool intact(std::size_t slot) const { return checksum(slots_[slot]) == slots_[slot].mark; }
    Stripes stripes_of(std::size_t slot) const;
    std::uint64_t location_of(std::size_t slot) const;
    // Of the whole record, as its row says.
    std::uint64_t blocks_of(std::size_t slot) const;

private:
    static std::uint64_t checksum(const RecordSlot& slot);
    void mark(std::size_t slot, std::uint64_t value);

    RecordSlot* slots_;
    std::size_t count_;
    bool flush_;
};

}  // namespace kvstore
