// What stays: the one interface of eviction policies, in the store and in the simulator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace kvstore {

inline constexpr std::uint32_t kNoRow = 0xFFFFFFFFU;
inline constexpr std::int64_t kMomentMs = 10'000;  // a prompt is put, after its prefix was looked up, in such a time

// What a policy is told of a chunk when it comes.
struct Arrival {
    std::uint64_t key;       // a hash of the chunk's identity; ghosts know a chunk by it
    std::uint64_t parent;    // the same of the chunk before it in its prompt; 0: none
    std::uint32_t position;  // tokens before it in its prompt
    std::uint32_t tokens;
    std::uint64_t bytes;     // stored in this tier, all its parts together
    // The row of its parent, where that was used a moment ago. Prompts are put root first: such a chunk goes just before
    // its parent, as if both had been touched leaf to root. A simulator that admits leaf to root leaves it out.
    std::uint32_t parent_row = kNoRow;
};

// For how long a chunk lay that is here after a restart, as far as is known.
struct Idle {
    std::int64_t ms;
    std::uint64_t uses;  // of other chunks since
};

// What the time of a chunk is worth: recompute(a..b) = flops_per_token·(b−a) + flops_per_token2·(b²−a²)/2 FLOPs.
struct Costs {
    double flops_per_token = 0;
    double flops_per_token2 = 0;
    double prefill_flops_per_s = 0;
    double load_bytes_per_s = 0;
    double load_latency_s = 0;
    double decode_bytes_per_s = 0;  // 0: nothing is decoded
};

// Rows in the order in which they should go, as if each had gone that it has told of. It is held by whoever asks, and
// needs the policy and its lock; to let go of it needs neither. Asking does not evict. Rows may go meanwhile, those that it
// has told of too. Whoever asks on and on is told of every row once, as long as nothing else happens.
class Victims {
public:
    virtual ~Victims() = default;
    // The next row; -1: that was all.
    virtual std::int64_t next() = 0;
};

// The order in which one namespace's chunks leave one tier. It sees rows and never bytes; a row is the number of a chunk
// while it is here, below `max_rows`, and is used again after `remove`. Not thread-safe: the store's lock guards it.
// `now_ms` is by a clock that nobody sets: in the store CLOCK_MONOTONIC, in the simulator the trace's.
// Sizes are in bytes throughout: capacities, shares of queues, bounds of ghosts. Memory is columns of `max_rows` that
// cost nothing until they are used.
class Policy {
public:
    virtual ~Policy() = default;

    // A chunk has come. Of one that is here already: another part of it, or another form, and `bytes` is what it has
    // now. That is no use of it: it may make a chunk more recent, never more frequent. What was a ghost counts as asked
    // for, unless `demand` has told. std::out_of_range for a row of `max_rows` or more.
    virtual void admit(std::uint32_t row, const Arrival& chunk, std::int64_t now_ms) = 0;
    // A chunk is here that has outlived the process: told before all else, what was used longest ago first. Nobody has used
    // it now, so that a policy that learns learns nothing.
    virtual void restore(std::uint32_t row, const Arrival& chunk, const Idle& idle, std::int64_t now_ms) {
        (void)idle;
        admit(row, chunk, now_ms);
    }
    // Chunks of one prefix were used, root first. They are touched leaf to root, so that the tail of a prefix goes before
    // its head. Rows that are not here are skipped.
    virtual void hit(const std::uint32_t* rows, std::size_t count, std::int64_t now_ms) = 0;
    // Chunks were asked for that are not in this tier (their keys, root first).
    virtual void demand(const std::uint64_t* keys, std::size_t count, std::int64_t now_ms) {
        (void)keys, (void)count, (void)now_ms;
    }
    // Hints of clients about a prompt, whose chunks in the store are `rows`, root first; those that are not here are
    // skipped. Each ends with the chunk's next use. They are advice, and a policy may make nothing of them. `ended`: nobody
    // will go on with this prompt.
    virtual void ended(const std::uint32_t* rows, std::size_t count, std::int64_t now_ms) {
        (void)rows, (void)count, (void)now_ms;
    }
    // It comes back at about `until_ms`, and if it has not by then, it has ended.
    virtual void awaited(const std::uint32_t* rows, std::size_t count, std::int64_t now_ms, std::int64_t until_ms) {
        (void)rows, (void)count, (void)now_ms, (void)until_ms;
    }
    // Whether `demand` is worth the time that it takes a store to tell.
    virtual bool wants_demand() const { return false; }
    // A chunk is gone: evicted to make room (it may become a ghost), or deleted, expired, quarantined (it must not). One
    // that is not here is ignored.
    virtual void remove(std::uint32_t row, bool evicted, std::int64_t now_ms) = 0;
    // The row that should go first; -1: none. Asking does not evict.
    virtual std::int64_t victim() = 0;
    // All of them, one after the other.
    virtual std::shared_ptr<Victims> victims() = 0;
    // The bytes that this order may fill; it may change. Until it is told they are what is here.
    virtual void set_capacity(std::uint64_t bytes) { (void)bytes; }
    virtual void set_costs(const Costs& costs) { (void)costs; }
    virtual std::size_t size() const = 0;
    virtual bool contains(std::uint32_t row) const = 0;
};

// std::invalid_argument for a name that is not among `policy_names` and for too many rows.
std::unique_ptr<Policy> make_policy(std::string_view name, std::uint32_t max_rows);
const std::vector<std::string_view>& policy_names();

}  // namespace kvstore
