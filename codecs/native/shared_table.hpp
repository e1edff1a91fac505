// The set of whole chunks of one namespace, in memory that its clients map: whether a chunk is there is then a read
// of their own and no call to the server.
//
// A memfd: one page of header, then buckets of eight 64-bit little-endian tags and eight places, a cache line each.
// A tag stands for a spec and a packed chunk reference (key, position, tokens), 0 for a free slot, in one of two
// buckets, which lie in one page; it never moves. Its place says where in DRAM the chunk's record begins: 44 bits of
// location / 4096 (extent number << 28 | block), then a version of 20 bits that no two stores near each other share.
// A place of 0 says that only the server can tell. To add a chunk is to store its place and then its tag, to remove
// it the other way round. So readers need no lock: who has seen a tag and then the same place twice, with its version,
// knows that they belonged together in between.
#pragma once

#include "index.hpp"
#include "mapped_array.hpp"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvstore {

// The tag of a packed reference, never 0. Keys are SHA-256, so two rounds of multiplication are enough where 64-bit
// XXH3 would take four fifths of a look-up. It stops nobody who looks for two references with one tag; all that one
// can mix up are one's own, in one's own namespace.
inline std::uint64_t chunk_tag(const SpecDigest& spec, const std::uint8_t* ref) {
    const auto fold = [](std::uint64_t a, std::uint64_t b) {
        const auto product = static_cast<unsigned __int128>(a) * b;
        return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
    };
    std::uint64_t s[2];
    std::uint64_t w[5];  // four of the key, then position | tokens << 32
    std::memcpy(s, spec.data(), sizeof s);
    std::memcpy(w, ref, sizeof w);
    const std::uint64_t left = fold(w[0] ^ s[0], w[1] ^ s[1]) ^ w[4];
    const std::uint64_t right = fold(w[2] ^ 0x9E3779B97F4A7C15ULL, w[3] ^ 0xBF58476D1CE4E5B9ULL);
    const std::uint64_t tag = fold(left, right ^ 0x94D049BB133111EBULL);
    return tag != 0 ? tag : 1;
}

enum class TableState : std::uint32_t { filling, open, closed };

// Writer and readers each have a cache line of what they look at: what changes with every chunk lies apart.
struct SharedHeader {
    std::array<char, 8> magic;
    std::uint32_t version;
    std::uint32_t slots;  // per bucket
    std::uint64_t buckets;
    alignas(64) std::atomic<TableState> state;
    std::atomic<std::uint64_t> heartbeat_ms;  // CLOCK_MONOTONIC
    std::atomic<std::uint64_t> overflowed;    // chunks that found no free slot: while there are any, a miss is none
    std::atomic<std::uint64_t> extents;       // another number whenever readers have to hear of extents
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<TableState>::is_always_lock_free);

// A place without its version: what a hazard names. 0 for a location that does not fit, or is none.
inline constexpr unsigned kBlockBits = 12;
inline constexpr unsigned kVersionBits = 20;
inline std::uint64_t block_of(std::uint64_t location) {
    const bool fits = location >> 56 == 0 && location >> 40 != 0 && location % (1U << kBlockBits) == 0;
    return fits ? location >> kBlockBits : 0;
}

// Where tags stand, in memory of either side.
class TagBuckets {
public:
    static constexpr std::size_t kSlots = 8;
    static constexpr std::uint32_t kNoSlot = 0xFFFFFFFFU;
    using Word = std::atomic<std::uint64_t>;
    struct alignas(128) Bucket {
        std::array<Word, kSlots> tags;
        std::array<Word, kSlots> places;
    };

    TagBuckets(Bucket* buckets, std::uint64_t count) : buckets_(buckets), mask_(count - 1) {}

    std::uint64_t first(std::uint64_t tag) const { return tag & mask_; }
    // Another bucket of the same page, so that a look-up waits for one address translation and not for two.
    std::uint64_t second(std::uint64_t tag) const { return (tag & mask_) ^ (((tag >> 59) | 1) & mask_); }
    void prefetch(std::uint64_t tag) const {
        __builtin_prefetch(&buckets_[first(tag)].tags);
        __builtin_prefetch(&buckets_[second(tag)].tags);
    }

    Word& tag(std::uint32_t slot) const { return buckets_[slot / kSlots].tags[slot % kSlots]; }
    Word& place(std::uint32_t slot) const { return buckets_[slot / kSlots].places[slot % kSlots]; }

    // The first slot with a tag that `good` takes too, kNoSlot if there is none.
    template <typename Good>
    std::uint32_t find(std::uint64_t tag, const Good& good) const {
        const std::uint32_t found = find_in(first(tag), tag, good);
        return found != kNoSlot ? found : find_in(second(tag), tag, good);
    }
    std::uint32_t find(std::uint64_t tag) const {
        return find(tag, [](std::uint32_t) { return true; });
    }
    std::uint32_t free_in(std::uint64_t bucket) const {
        return find_in(bucket, 0, [](std::uint32_t) { return true; });
    }
    std::size_t used(std::uint64_t bucket) const {
        std::size_t count = 0;
        for (const Word& each : buckets_[bucket].tags) count += each.load(std::memory_order_relaxed) != 0;
        return count;
    }

private:
    template <typename Good>
    std::uint32_t find_in(std::uint64_t bucket, std::uint64_t tag, const Good& good) const {
        for (std::size_t i = 0; i < kSlots; ++i) {
            const auto slot = static_cast<std::uint32_t>(bucket * kSlots + i);
            if (buckets_[bucket].tags[i].load(std::memory_order_acquire) == tag && good(slot)) return slot;
        }
        return kNoSlot;
    }

    Bucket* buckets_;
    std::uint64_t mask_;
};

// The side of the server, which alone writes, from one thread at a time.
class SharedTable {
public:
    // Room for so many chunks at half load. std::system_error where the system refuses.
    explicit SharedTable(std::size_t entries);
    ~SharedTable();
    SharedTable(const SharedTable&) = delete;
    SharedTable& operator=(const SharedTable&) = delete;

    void prefetch(std::uint64_t tag) const { buckets_.prefetch(tag); }
    // `block` as block_of gives it. Each is for one chunk: `row` tells two apart that have one tag.
    void insert(std::uint64_t tag, std::uint32_t row, std::uint64_t block);
    void update(std::uint64_t tag, std::uint32_t row, std::uint64_t block);
    void remove(std::uint64_t tag, std::uint32_t row);
    // The row of the chunk in a slot, kNone for none; for any number that a client may name.
    std::uint32_t row_in(std::uint32_t slot) const;
    void beat();
    void set_extents(std::uint64_t epoch) { header_->extents.store(epoch, std::memory_order_release); }
    void set_state(TableState state);

    int fd() const { return fd_; }
    std::size_t bytes() const { return bytes_; }
    std::uint64_t overflowed() const { return header_->overflowed.load(std::memory_order_relaxed); }

private:
    void map();
    std::uint32_t slot_of(std::uint64_t tag, std::uint32_t row) const;
    std::uint64_t next_place(std::uint64_t block);

    std::size_t bytes_;
    int fd_ = -1;
    SharedHeader* header_ = nullptr;
    TagBuckets buckets_{nullptr, 1};
    MappedArray<std::uint32_t> rows_;  // by slot: the row + 1
    std::uint64_t version_ = 0;
};

// A chunk as a reader found it: `place` is 0 where the table does not say.
struct Sighting {
    std::uint64_t tag;
    std::uint64_t place;
    std::uint32_t slot;
};

// The side of a client. All that it takes from the header it has checked against the size of the file.
class SharedTableReader {
public:
    // std::invalid_argument for a descriptor that is no such table, std::system_error where it cannot be mapped.
    SharedTableReader(int fd, std::size_t bytes);
    ~SharedTableReader();
    SharedTableReader(const SharedTableReader&) = delete;
    SharedTableReader& operator=(const SharedTableReader&) = delete;

    // Which of `count` packed references are there, and where; false where only the server can say.
    bool lookup(const SpecDigest& spec, const std::uint8_t* refs, std::size_t count, std::uint8_t* present,
                Sighting* seen = nullptr) const;
    // Whether a chunk was where it was seen, at a moment since this was called.
    bool is_still(const Sighting& seen) const;
    std::uint64_t extents() const { return header_->extents.load(std::memory_order_acquire); }
    // Whether the server is there and the table says all.
    bool is_live() const;

private:

    std::size_t bytes_;
    SharedHeader* header_ = nullptr;
    TagBuckets buckets_{nullptr, 1};
};

// How far a prompt reaches, as kvstore/walk.py says it: the references used, and the token after the last.
struct SharedReach {
    std::uint32_t tokens;
    bool first_ones;  // what is used are the first `count` references; else those in `used`
    std::size_t count;
    std::vector<std::uint32_t> used;
};
SharedReach reach_of(const std::uint8_t* refs, std::size_t count, const std::uint8_t* present);

}  // namespace kvstore
