// Puts from memory that a client has staged, taken without Python where nothing is special about them; docs/channels.md.
#pragma once

#include "holdings.hpp"
#include "index.hpp"
#include "mutex.hpp"
#include "policy.hpp"
#include "record_header.hpp"

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <vector>

namespace kvstore {

// Where a store takes puts in.
struct Intake {
    Index& index;
    Mutex& lock;  // the store's, which guards the index, the orders of use and the tallies
    bool closed = false;                // needs the lock
    std::atomic<bool> watched = false;  // somebody wants to hear of every put, which Python tells
};

// What was put into a namespace natively, and read from it, by other servers too. Needs the store's lock.
struct Tally {
    std::uint64_t hits_dram = 0;
    std::uint64_t stored = 0;        // parts
    std::uint64_t stored_bytes = 0;  // of payload
    std::uint64_t peer_reads = 0;
    std::uint64_t peer_bytes = 0;
    std::int64_t used = 0;           // bytes of records; Python adds and takes away here, too
};

// What a put of one part of so many tokens becomes.
struct PutShape {
    Intake* intake;
    Holdings* holdings;
    Policy* order;
    Tally* tally;
    std::uint32_t scope;
    std::uint64_t payload;
    std::uint64_t header;
    std::uint64_t total;
    std::array<std::uint8_t, kHeaderFixedBytes> fixed;  // of the header, without key, parent, position and time
    std::vector<Range> groups;
};

// A put as it travels; kvstore/wire.py describes the same bytes.
struct StagedPut {
    SpecDigest spec;
    Key key;
    Key parent;
    PartId part;
    std::uint32_t position;
    std::uint32_t tokens;
    std::uint32_t first_valid;
    std::uint32_t ack;
    std::uint32_t staging;
    std::uint32_t zero;
    std::uint64_t offset;
    std::uint64_t zeros;
};
static_assert(sizeof(StagedPut) == 128);

// The staged memory of one session, and what it has put before. Any thread may call.
class StagedPuts {
public:
    static constexpr std::size_t kMaxShapes = 1024;

    // `prefix` stands before the put in a message.
    explicit StagedPuts(std::span<const std::uint8_t> prefix) : prefix_(prefix.begin(), prefix.end()) {}

    // False for a number that is known. The memory must outlive this.
    bool add_memory(std::uint32_t number, std::span<const std::uint8_t> memory);
    // Has puts of such a part taken from now on. False where there are too many shapes.
    bool add_shape(const SpecDigest& spec, const PartId& part, std::uint32_t tokens, PutShape shape);

    // Takes a put whole: true once it is stored. Where it is false nothing was done, and the general way must see to
    // it: what is not new, malformed, out of bounds, without memory, or was given up by the client on connection `fd`.
    bool take(std::span<const std::uint8_t> message, int fd);

private:
    using ShapeKey = std::array<std::uint8_t, sizeof(SpecDigest) + sizeof(PartId) + sizeof(std::uint32_t)>;

    static ShapeKey shape_key(const SpecDigest& spec, const PartId& part, std::uint32_t tokens);

    std::vector<std::uint8_t> prefix_;
    std::mutex lock_;  // of the maps; what is in them stays
    std::map<std::uint32_t, std::span<const std::uint8_t>> memory_;
    std::map<ShapeKey, PutShape> shapes_;
};

}  // namespace kvstore
