// `value`, the default: what promises the fewest hits for the room and time that it takes goes first.
#pragma once

#include "mapped_array.hpp"
#include "policy.hpp"
#include "policy_value_clock.hpp"
#include "policy_value_hazards.hpp"
#include "policy_value_known.hpp"
#include "policy_value_queues.hpp"
#include "policy_value_request.hpp"
#include "policy_value_reuse.hpp"
#include "policy_value_shadows.hpp"
#include "policy_value_waits.hpp"

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace kvstore {

// A chunk is of a kind: how often it was used, whether it ends a prompt, and what the reuse model expects of it. A kind
// and an age make a queue, once for each class of what a hit saves for the bytes it takes. The queues are ordered by the
// density of hits that Hazards has learned, times that, and the victim is the oldest chunk of the least queue. Only chunks
// that no other here follows are in queues: the tail of a prefix goes before its head, whatever is expected of the head.
// Nothing is set for a workload. Where the shadows say that a simpler policy does better, victims are taken in its order.
// Ghosts, eight to each chunk here but at most `max_rows`, keep how often and when. 52 bytes a known chunk, table of keys
// included, 20 more for a row that is here, and a tenth of all that for shadows. O(kinds · ages²) to rank, once in
// `kRankEvery` uses; O(1) amortised for all else.
class ValuePolicy final : public Policy {
public:
    explicit ValuePolicy(std::uint32_t max_rows);

    void admit(std::uint32_t row, const Arrival& chunk, std::int64_t now_ms) override;
    void restore(std::uint32_t row, const Arrival& chunk, const Idle& idle, std::int64_t now_ms) override;
    void hit(const std::uint32_t* rows, std::size_t count, std::int64_t now_ms) override;
    void demand(const std::uint64_t* keys, std::size_t count, std::int64_t now_ms) override;
    // Chunks of a prompt that has ended go before all else, from the tail on, each when no other here follows it.
    void ended(const std::uint32_t* rows, std::size_t count, std::int64_t now_ms) override;
    // The end of the prompt goes after all else until then, and holds what is before it, as every chunk does.
    void awaited(const std::uint32_t* rows, std::size_t count, std::int64_t now_ms, std::int64_t until_ms) override;
    bool wants_demand() const override { return true; }
    void remove(std::uint32_t row, bool evicted, std::int64_t now_ms) override;
    std::int64_t victim() override;
    std::shared_ptr<Victims> victims() override;
    void set_capacity(std::uint64_t bytes) override;
    void set_costs(const Costs& costs) override { costs_ = costs; }
    std::size_t size() const override { return size_; }
    bool contains(std::uint32_t row) const override { return row < rows_.size() && rows_[row].node != 0; }
    std::size_t ghosts() const { return known_.ghosts(); }
    // Chunks that are awaited.
    std::size_t waits() const { return waits_.size(); }
    // The policy that is followed, of Shadows::kNames, because it does better; Shadows::kNone: none.
    std::size_t followed() const { return shadows_.chosen(); }

private:
    static constexpr std::size_t kWorthless = Hazards::kKinds * kAges;  // of no use, whatever is expected of it
    static constexpr std::size_t kAwaited = kWorthless + 1;
    static constexpr std::size_t kQueues = kAwaited + 1;
    static constexpr std::size_t kClasses = 8;  // of what a hit saves for the room it takes, half an octave each
    using Queues = RankedQueues<kQueues, kClasses>;
    static constexpr std::size_t kGhostsPerRow = 8;
    static constexpr std::size_t kLeastGhosts = 64;
    static constexpr std::uint64_t kRankEvery = 1024;
    static constexpr std::uint64_t kOrderedPerUse = 16;
    static constexpr std::size_t kLists = (kAges - 1) * 4;  // those in which chunks grow older
    static constexpr std::size_t kListsPerUse = kLists / 16;
    static constexpr std::size_t kGrownPerUse = kAges;  // a chunk that is new again grows older less often than that
    static constexpr std::size_t kAwaitedPart = 2;  // the part of the chunks here that is held for who is awaited
    static constexpr std::size_t kSevered = 16;  // so many prompts may be put at a time

    // What a chunk takes, in 8 bytes: up to a TiB, and 16 million tokens.
    struct [[gnu::packed, gnu::aligned(4)]] Size {
        std::uint64_t bytes : 40;
        std::uint64_t tokens : 24;
    };

    struct Row {
        Size size;
        std::uint32_t node;  // 0: not here
    };
    static_assert(sizeof(Row) == 12);

    class Cursor;

    // policy_value.cpp
    void use(std::uint32_t node, bool last);
    void resolve(Known& known, bool reused);
    void begin_event(std::int64_t now_ms);
    void grow_older();
    void grow_older(std::uint32_t node);
    void come_of_age(Known& known);
    void classify(Known& known, bool alone);
    void rank();
    static double weight_of(const Known& known);
    static Size size_of(const Arrival& chunk);
    bool place(Known& known, const Arrival& chunk);
    // In chunks. A tail shorter than the others does not count: it ends its prompt.
    std::uint32_t place_of(std::uint32_t position) const { return position / chunk_tokens_; }
    void appraise(std::uint32_t row);
    bool is_severed(std::uint64_t parent) const;
    void follow();
    void make_order(std::int64_t now_ms);
    void put_in_order(std::uint32_t node, std::int64_t now_ms);
    void pass_by(std::uint32_t node);

    // policy_value_rows.cpp
    void seat(std::uint32_t row, std::uint32_t node, const Arrival& chunk, bool moved, std::int64_t now_ms);
    std::uint32_t make_node(std::uint64_t key);
    void adopt(std::uint32_t node, const Arrival& chunk);
    void release_parent(std::uint32_t node);
    void settle(std::uint32_t node);
    void limit_ghosts();
    void drop_ghost();
    void enqueue(Known& known, bool first = false);
    bool dequeue(Known& known);
    static std::size_t queue_of(const Known& known);
    Known& known_at(std::uint32_t row) { return known_[rows_[row].node]; }
    const Known& known_at(std::uint32_t row) const { return known_[rows_[row].node]; }

    // policy_value_cursor.cpp
    void drop_cursors();

    // policy_value_hints.cpp
    void hint(std::uint32_t row, Hint hint);
    void end(std::uint32_t row);
    void end_waits(std::int64_t now_ms);

    Costs costs_;
    Queues queues_;
    MappedArray<Row> rows_;
    KnownChunks known_;
    Hazards hazards_;
    ReuseModel model_;
    RequestShape request_;
    Shadows shadows_;
    std::unique_ptr<Policy> order_;  // of what is here, by the policy that is followed
    bool ordered_ = false;           // it has all that is here
    std::uint64_t ordering_at_ = 0;  // in uses, how far it was made
    std::vector<std::uint64_t> keys_;
    std::uint64_t capacity_ = 0;
    Ages ages_;
    std::vector<std::shared_ptr<Cursor>> cursors_;  // told of what happens as long as somebody holds them
    Waits waits_;           // one for each row that is awaited
    bool evicted_ = false;  // since the last event
    std::array<std::uint64_t, kSevered> severed_{};  // the keys of young ones that were evicted, the last few
    std::size_t severed_at_ = 0;
    std::size_t size_ = 0;
    std::uint32_t max_rows_;
    int usual_ = 0;  // what a whole chunk saved for its bytes, the first one, in half octaves
    std::uint32_t usual_tokens_ = 0;  // of that
    std::uint32_t chunk_tokens_ = 1;  // of the longest chunk so far
    ValueClock clock_;
    std::uint64_t ranked_at_ = 0;  // in uses
    std::size_t growing_ = 0;      // the list that is looked at next
    std::uint64_t admissions_ = 0;
    std::size_t horizon_ = 6;  // the age at which a use counts as not followed soon
};

}  // namespace kvstore
