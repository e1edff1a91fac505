// What `value` knows of a chunk, whether it is here or was: one node of 48 bytes, found by key.
#pragma once

#include "key_chains.hpp"
#include "mapped_array.hpp"

#include <array>
#include <cstdint>

namespace kvstore {

inline constexpr std::size_t kAges = 48;

// A step of age is a half octave of ValueClock's time; the first ends at 16 and the last is open.
struct Ages {
    Ages() {
        double edge = 16;
        for (std::size_t age = 1; age <= kAges; ++age, edge *= 1.4142135623730951) begin[age] = edge;
    }
    // The age of a chunk of at least `age` that lay for so long.
    std::uint8_t at(std::uint64_t time, std::size_t age = 0) const {
        while (age + 1 < kAges && static_cast<double>(time) >= begin[age + 1]) ++age;
        return static_cast<std::uint8_t>(age);
    }
    std::array<double, kAges + 1> begin{};
};

enum class Hint : std::uint8_t { none, ended, awaited };

// Nodes name each other by number; 0 is none.
struct Known {
    std::uint64_t key;
    std::uint32_t chain;         // KeyChains'
    std::uint32_t older, newer;  // of the same age
    std::uint32_t last;          // its clock (ValueClock) at its last use
    union {
        std::uint32_t row;           // of one that is here
        std::uint32_t older_ghost;   // of one that was
    };
    union {
        std::uint32_t parent;
        std::uint32_t newer_ghost;
    };
    std::uint32_t children;  // chunks here that follow it, whether it is here or not
    std::uint32_t position;  // tokens before it; of one known as a parent only, at most so many
    std::uint16_t traits;    // of its last use: ReuseModel's
    std::uint8_t uses;       // at most 255; 0: known as a parent only, and in no list
    std::uint8_t age;
    std::uint8_t kind;  // the row of the table of hazards that it is counted in
    std::uint8_t flags;
    // Of one that is here.
    std::uint8_t worth : 3;  // its class
    Hint hint : 2;
    bool queued : 1;
    bool worthless : 1;  // loading it takes longer than computing it
    bool severed : 1;    // nobody gets to it
    bool here : 1;
    bool young : 1;  // it came, and has not been used or followed since
};
static_assert(sizeof(Known) == 48);

// All nodes, in a list for each age, those of chunks that are here apart from the ghosts, those that stand alone apart
// from those that follow others. The lists are nearly in the
// order of last use: a chunk that becomes a ghost goes to the end of its age, and comes to the next one late, by less than
// the width of this.
class KnownChunks {
public:
    static constexpr std::uint8_t kUnresolved = 1;  // of its last use nobody knows yet whether another follows soon
    static constexpr std::uint8_t kTold = 2;        // `demand` has counted the use that brings it
    static constexpr std::uint8_t kTail = 4;        // the end of the prompt that used it last
    static constexpr std::uint8_t kAlone = 8;       // of no prompt: it can be used at any place
    static constexpr std::uint8_t kFree = 16;       // no node
    static constexpr std::uint8_t kRestored = 32;   // at its age already when it was first told of

    // At most `max_rows` nodes are ghosts or parents only.
    explicit KnownChunks(std::uint32_t max_rows)
        : nodes_(std::size_t{2} * max_rows + 1), table_(nodes_) {}

    // A node's number, from 1 on; 0: none.
    std::uint32_t find(std::uint64_t key) const { return static_cast<std::uint32_t>(table_.find(key) + 1); }
    Known& operator[](std::uint32_t node) { return nodes_[node - 1]; }
    const Known& operator[](std::uint32_t node) const { return nodes_[node - 1]; }

    // The caller has made room.
    std::uint32_t make(std::uint64_t key) {
        std::uint32_t node = free_;
        if (node != 0)
            free_ = (*this)[node].newer;
        else
            node = ++made_;
        (*this)[node] = Known{};
        (*this)[node].key = key;
        table_.insert(node - 1);
        ++size_;
        return node;
    }

    // One that is in no list.
    void forget(std::uint32_t node) {
        table_.remove(node - 1);
        (*this)[node].newer = free_;
        (*this)[node].flags = kFree;
        free_ = node;
        --size_;
    }
    bool is_free(std::uint32_t node) const { return (*this)[node].flags == kFree; }

    bool is_ghost(std::uint32_t node) const { return !(*this)[node].here; }
    bool is_alone(std::uint32_t node) const { return ((*this)[node].flags & kAlone) != 0; }

    void append(std::uint32_t node) {
        List& list = list_of(node);
        Known& known = (*this)[node];
        known.older = list.newest;
        known.newer = 0;
        (list.newest != 0 ? (*this)[list.newest].newer : list.oldest) = node;
        list.newest = node;
    }

    void unlink(std::uint32_t node) {
        List& list = list_of(node);
        const Known& known = (*this)[node];
        if (node == visit_) visit_ = known.newer;
        (known.older != 0 ? (*this)[known.older].newer : list.oldest) = known.newer;
        (known.newer != 0 ? (*this)[known.newer].older : list.newest) = known.older;
    }

    std::uint32_t oldest(std::size_t age, bool ghost, bool alone) const { return lists_[ghost][alone][age].oldest; }
    // A visit of all that is here, the oldest first, while lists change. What is used meanwhile comes again; what grows
    // older into a list that was passed does not come.
    void begin_visit() {
        visit_list_ = 2 * kAges;
        visit_ = 0;
    }
    std::size_t visited_age() const { return visit_list_ / 2; }
    bool has_passed(std::size_t age, bool alone) const {
        const std::size_t list = 2 * age + alone;
        return list > visit_list_ || (list == visit_list_ && visit_ == 0);
    }
    // 0: that was all.
    std::uint32_t next_visited() {
        while (visit_ == 0) {
            if (visit_list_ == 0) return 0;
            --visit_list_;
            visit_ = oldest(visit_list_ / 2, false, visit_list_ % 2 != 0);
        }
        const std::uint32_t node = visit_;
        visit_ = (*this)[node].newer;
        return node;
    }

    // Ghosts go in the order in which they came to be, and not in that of use: what was held for long and then let go is
    // known for as long as any other, or nobody would learn that it comes back.
    void bury(std::uint32_t node) {
        Known& known = (*this)[node];
        known.older_ghost = ghosts_.newest;
        known.newer_ghost = 0;
        (ghosts_.newest != 0 ? (*this)[ghosts_.newest].newer_ghost : ghosts_.oldest) = node;
        ghosts_.newest = node;
        ++ghost_count_;
    }
    void exhume(std::uint32_t node) {
        const Known& known = (*this)[node];
        (known.older_ghost != 0 ? (*this)[known.older_ghost].newer_ghost : ghosts_.oldest) = known.newer_ghost;
        (known.newer_ghost != 0 ? (*this)[known.newer_ghost].older_ghost : ghosts_.newest) = known.older_ghost;
        --ghost_count_;
    }
    // 0 if there is none.
    std::uint32_t oldest_ghost() const { return ghosts_.oldest; }
    std::size_t ghosts() const { return ghost_count_; }
    std::size_t size() const { return size_; }
    // Of all nodes.
    std::size_t capacity() const { return nodes_.size(); }

private:
    struct List {
        std::uint32_t oldest = 0, newest = 0;
    };

    List& list_of(std::uint32_t node) { return lists_[is_ghost(node)][is_alone(node)][(*this)[node].age]; }

    MappedArray<Known> nodes_;
    KeyChains<Known> table_;
    std::array<std::array<std::array<List, kAges>, 2>, 2> lists_{};
    List ghosts_;  // in the order in which they came to be
    std::size_t ghost_count_ = 0;
    std::size_t size_ = 0;
    std::uint32_t free_ = 0, made_ = 0;
    std::size_t visit_list_ = 0;  // age and kind of list at hand
    std::uint32_t visit_ = 0;     // the next of it; 0: none
};

}  // namespace kvstore
