// Leases without a call: what a client reads in the arena, in memory that it shares with the server.
//
// A memfd that the client makes: one page of header, then hazards of {u64 block, u64 until}, then a ring of u32 marks.
// A hazard says that the record at `block` (see block_of) is being read; `until`, in milliseconds of CLOCK_MONOTONIC,
// is when that ends by itself. The client stores it and then looks whether the shared table still has the chunk there;
// the server takes a chunk out of the table and then, before it gives the memory to another, looks for a hazard. A full
// fence stands between the two steps on either side, so that at least one of them sees the other.
//
// A mark is the slot of a chunk that was used, for the server's least-recently-used order.
#pragma once

#include "shared_table.hpp"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvstore {

inline constexpr std::uint32_t kHazards = 16384;
inline constexpr std::uint32_t kMarks = 16384;  // a power of two
inline constexpr std::uint32_t kReadMark = 0x80000000U;  // of a mark: the chunk was read, not only found

struct HazardHeader {
    std::array<char, 8> magic;
    std::uint32_t version;
    std::uint32_t hazards;
    std::uint32_t marks;
    alignas(64) std::atomic<std::uint32_t> honoured;    // the server's: whether it looks for hazards here
    alignas(64) std::atomic<std::uint32_t> high_water;  // the client's: no hazard from this one on
    alignas(64) std::atomic<std::uint64_t> marked;      // the client's: marks written so far
    std::atomic<std::uint64_t> lost;                    // and marks that found the ring full
    alignas(64) std::atomic<std::uint64_t> drained;     // the server's: marks read so far
};

struct Hazard {
    std::atomic<std::uint64_t> block;  // 0: none
    std::atomic<std::uint64_t> until;
};
static_assert(sizeof(Hazard) == 16);

inline constexpr std::size_t kHazardHeaderBytes = 4096;
inline constexpr std::size_t kHazardTableBytes =
    kHazardHeaderBytes + kHazards * sizeof(Hazard) + kMarks * sizeof(std::uint32_t);

// One mapping of the memory, on either side. std::system_error where it cannot be mapped.
class HazardMemory {
public:
    explicit HazardMemory(int fd);
    ~HazardMemory();
    HazardMemory(const HazardMemory&) = delete;
    HazardMemory& operator=(const HazardMemory&) = delete;

    HazardHeader& header() const { return *static_cast<HazardHeader*>(memory_); }
    Hazard& hazard(std::uint32_t i) const { return hazards_[i]; }
    std::atomic<std::uint32_t>& mark(std::uint64_t i) const { return marks_[i % kMarks]; }

private:
    void* memory_;
    Hazard* hazards_;
    std::atomic<std::uint32_t>* marks_;
};

// The side of a client. Its methods are called by one thread at a time.
class HazardTable {
public:
    // `anchor` is a socket that the server's end of ends with the server; it stays the caller's.
    explicit HazardTable(int anchor);
    ~HazardTable();
    HazardTable(const HazardTable&) = delete;
    HazardTable& operator=(const HazardTable&) = delete;

    int fd() const { return fd_; }
    void close_fd();
    // Whether the server honours what stands here; for after a read, too: nothing read before is later than this.
    bool is_honoured() const;
    // Hazards on chunks as they were seen, whose numbers are appended; nothing, and false, unless all were there still.
    bool take(const SharedTableReader& table, const Sighting* seen, const std::uint32_t* which, std::size_t count,
              std::uint64_t until, std::vector<std::uint32_t>& numbers);
    // Numbers that are not held are passed over.
    void release(const std::uint32_t* numbers, std::size_t count);
    void mark(std::uint32_t mark);
    // Nothing is taken or released any more: the table is another process's now, or the anchor about to be closed.
    void end() { anchor_ = -1; }
    std::size_t held() const { return held_count_; }

private:
    static int make();
    bool is_connected() const;
    std::uint32_t next_free();

    int anchor_;
    int fd_;
    HazardMemory memory_;
    std::vector<bool> held_;
    std::vector<std::uint32_t> free_;
    std::uint32_t unused_ = 0;  // from here on none was ever in use
    std::size_t held_count_ = 0;
};

// The side of the server. What it reads may be anything, at any time: it bounds all of it.
class HazardBoard {
public:
    explicit HazardBoard(int fd) : memory_(fd) {}

    void set_honoured(bool honoured);
    // Whether a record must stay where it is. After the chunk was taken out of the shared table.
    bool holds(std::uint64_t block) const;
    // The locations of all records that must.
    std::vector<std::uint64_t> locations() const;
    // At most `limit` marks, oldest first.
    std::vector<std::uint32_t> drain(std::size_t limit);
    std::uint64_t lost() const { return memory_.header().lost.load(std::memory_order_relaxed); }

private:
    std::uint32_t high_water() const;

    HazardMemory memory_;
    std::uint64_t drained_ = 0;
};

}  // namespace kvstore
