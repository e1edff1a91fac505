// Records striped over the memory of several devices. What is needed to find them (the table of records, the
// allocators) is memory of this process; the devices hold records alone, and the slots of a persistent tier.
#pragma once

#include "allocator.hpp"
#include "copy_pool.hpp"
#include "mapped_array.hpp"
#include "record_slots.hpp"
#include "stripes.hpp"

#include <condition_variable>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

namespace kvstore {

// A location is a number of its own for each record (its life) above the number of its slot.
inline constexpr unsigned kStripedSlotBits = 32;

struct DeviceMemory {
    std::uint8_t* data;
    std::uint64_t bytes;
};

struct DeviceRange {
    std::size_t device;
    std::uint64_t offset;
    std::uint64_t bytes;
};

// What was moved in one direction, and in how many nanoseconds of the threads that moved it.
struct Traffic {
    std::uint64_t bytes = 0;
    std::uint64_t nanoseconds = 0;
    std::uint64_t records = 0;
};

class StripedMemory {
public:
    // Outcomes of a read.
    static constexpr int kDone = 0, kMissing = 1, kBeyond = 2, kShut = 3;
    // Instead of a location.
    static constexpr std::int64_t kNoRoom = -1, kNoSlot = -2, kClosed = -3;

    // Whether helpers are used: never, for every large copy, or while that is measurably faster.
    enum class Help { never, always, measured };

    struct Read {
        std::uint64_t location;
        std::uint64_t offset;
        std::uint8_t* output;
        std::uint64_t length;
    };

    // What `restore` found besides the records that are valid.
    struct Restored {
        std::vector<std::uint32_t> valid;  // slots
        std::vector<DeviceRange> unused;
        std::size_t torn = 0;         // begun and never committed
        std::size_t damaged = 0;      // a slot that no tier writes
        std::size_t overlapping = 0;  // two records claim the same memory
    };

    // Up to `records` records in stripes of `unit` bytes, with so many threads that help to copy. All memory counts as
    // taken until it is released.
    StripedMemory(std::vector<DeviceMemory> devices, std::size_t records, std::uint64_t unit, unsigned helpers,
                  std::optional<RecordSlots> slots);

    // Brings back what the slots hold. Once, before anything else.
    Restored restore();
    // From now on records may lie here.
    void release(const DeviceRange& range);
    // How many units in a row lie on each device, for records that are written from now on; 1 at least.
    void set_units(std::span<const std::uint8_t> units);
    void set_help(Help help) { help_.store(help, std::memory_order_relaxed); }
    bool helped() const;

    // The location of a record: a header of whole blocks, `stored` bytes and zeros up to a whole block.
    std::int64_t write(std::span<const std::uint8_t> header, const std::uint8_t* payload, std::uint64_t stored);
    int read(const Read& read);
    void read_many(std::span<const Read> reads, int* outcomes);
    // False for what is not there. Memory that is being read is given back when it no longer is.
    bool remove(std::uint64_t location);
    // Where a range of a record lies; nothing for a record that is not there.
    std::vector<DeviceRange> where(std::uint64_t location, std::uint64_t offset, std::uint64_t length);
    // Fills `output` from the beginnings of some devices, a unit of each in turn, and returns the nanoseconds.
    std::uint64_t scan(std::uint8_t* output, std::uint64_t length, std::span<const std::size_t> devices);
    // Refuses everything from now on and returns when nothing is under way.
    void close();

    std::uint64_t used();
    std::uint64_t records();
    Traffic reads();
    Traffic writes();
    // Samples of what each device gave or took.
    std::vector<Traffic> samples();
    std::size_t devices() const { return devices_.size(); }

private:
    enum State : std::uint8_t { kFree, kWriting, kLive, kDying };
    struct Entry {
        Stripes stripes;
        std::uint32_t life;
        std::uint32_t blocks;
        std::uint32_t readers;
        State state;
    };
    struct Transfer;

    std::uint64_t unit_share(const Stripes& stripes, std::size_t device, std::uint64_t bytes) const;
    std::int64_t reserve(std::uint64_t bytes);
    bool place(Stripes& stripes, std::uint64_t bytes, std::size_t& full);
    std::size_t least_used(const Stripes& stripes) const;
    void give_back(std::uint32_t slot);
    Entry* find(std::uint64_t location);
    int pin(const Read& read);
    void unpin(const Read& read);
    void add_runs(Transfer& transfer, const Stripes& stripes, std::uint64_t from, std::uint64_t length,
                  std::uint8_t* memory, bool out);
    void carry_out(const Transfer& transfer, std::uint64_t whole, bool out);
    void carry_out_timed(const Transfer& transfer, std::uint64_t whole);
    struct Claim;
    bool adopt(std::uint32_t slot);
    std::vector<std::vector<Claim>> claims_of(std::span<const std::uint32_t> slots) const;
    void drop_overlapping(Restored& restored);
    void count_in(Restored& restored);
    void leave();

    const std::vector<DeviceMemory> devices_;
    const std::uint64_t unit_;
    std::optional<RecordSlots> slots_;
    CopyPool pool_;
    std::atomic<Help> help_ = Help::measured;
    std::atomic<std::uint64_t> transfers_ = 0;
    // Moving averages of large copies, in nanoseconds for 1 MiB; 0 until there was one.
    std::atomic<std::uint64_t> alone_ns_ = 0, helped_ns_ = 0;

    std::mutex mutex_;  // guards what follows
    std::condition_variable left_;
    std::vector<Allocator> allocators_;
    std::vector<std::uint64_t> taken_;  // bytes of records on each device
    std::array<std::uint8_t, kMaxDevices> units_{};
    MappedArray<Entry> entries_;
    std::vector<std::uint32_t> free_;  // entries that were used before
    std::uint32_t fresh_ = 0;          // the first that never was
    std::uint32_t life_ = 0;
    std::uint64_t used_ = 0;
    std::uint64_t records_ = 0;
    std::uint64_t users_ = 0;
    bool closed_ = false;
    Traffic reads_, writes_;
    std::vector<Traffic> samples_;
};

}  // namespace kvstore
