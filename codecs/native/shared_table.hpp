// The set of whole chunks of one namespace, in memory that its clients map: whether a chunk is there is then a read
// of their own and no call to the server.
//
// A memfd: one page of header, then buckets of eight 64-bit little-endian tags, 0 for a free slot. A tag stands for
// a spec and a packed chunk reference (key, position, tokens), in one of two buckets, which lie in one page. To add a
// chunk is one store, and so is to remove it; a tag never moves. So readers need no lock, and there is nothing that
// could be seen half done.
#pragma once

#include "index.hpp"

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
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<TableState>::is_always_lock_free);

// Where tags stand, in memory of either side.
class TagBuckets {
public:
    static constexpr std::size_t kSlots = 8;
    using Slot = std::atomic<std::uint64_t>;
    struct alignas(64) Bucket {
        std::array<Slot, kSlots> slots;
    };

    TagBuckets(Bucket* buckets, std::uint64_t count) : buckets_(buckets), mask_(count - 1) {}

    Bucket& first(std::uint64_t tag) const { return buckets_[tag & mask_]; }
    // Another bucket of the same page, so that a look-up waits for one address translation and not for two.
    Bucket& second(std::uint64_t tag) const { return buckets_[(tag & mask_) ^ (((tag >> 58) | 1) & mask_)]; }
    void prefetch(std::uint64_t tag) const {
        __builtin_prefetch(&first(tag));
        __builtin_prefetch(&second(tag));
    }
    bool contains(std::uint64_t tag) const { return find(first(tag), tag) || find(second(tag), tag); }

    static Slot* find(Bucket& bucket, std::uint64_t tag) {
        for (Slot& slot : bucket.slots)
            if (slot.load(std::memory_order_acquire) == tag) return &slot;
        return nullptr;
    }

private:
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
    void insert(std::uint64_t tag);
    void remove(std::uint64_t tag);
    void beat();
    void set_state(TableState state);

    int fd() const { return fd_; }
    std::size_t bytes() const { return bytes_; }
    std::uint64_t overflowed() const { return header_->overflowed.load(std::memory_order_relaxed); }

private:
    void map();

    std::size_t bytes_;
    int fd_ = -1;
    SharedHeader* header_ = nullptr;
    TagBuckets buckets_{nullptr, 1};
};

// The side of a client. All that it takes from the header it has checked against the size of the file.
class SharedTableReader {
public:
    // std::invalid_argument for a descriptor that is no such table, std::system_error where it cannot be mapped.
    SharedTableReader(int fd, std::size_t bytes);
    ~SharedTableReader();
    SharedTableReader(const SharedTableReader&) = delete;
    SharedTableReader& operator=(const SharedTableReader&) = delete;

    // Which of `count` packed references are there; false where only the server can say.
    bool lookup(const SpecDigest& spec, const std::uint8_t* refs, std::size_t count, std::uint8_t* present) const;

private:
    bool is_live() const;

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
