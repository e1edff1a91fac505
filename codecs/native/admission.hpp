// What may be written down to a slow or wearing tier: the one filter, in the store and in the simulator.
#pragma once

#include "ghosts.hpp"
#include "write_budget.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace kvstore {

enum class Entry : std::uint8_t {
    open,
    used_once,     // and it is to be used twice
    budget_low,    // what is left is for what was used twice
    budget_spent,  // nothing is left
};
inline constexpr std::array<std::string_view, 4> kEntryNames{"open", "used_once", "budget_low", "budget_spent"};

// A chunk may go down if it was used since it came, or left all tiers not long ago and came back; any chunk may while
// the tier has room, and, without `second_touch`, while the budget is not low. Chunks that left are remembered by key,
// four times the capacity of them: as long as the tier would take to turn over four times if everything went down. A
// filter that sees nothing come back lets a sixteenth in all the same: what comes back later than it remembers would
// else never be hit. Not thread-safe: the store's lock guards it.
class Admission {
public:
    // `capacity` of the tier. `bytes_per_day` 0: no bound. Ghosts take some 44 bytes each as they come.
    Admission(bool second_touch, std::uint64_t bytes_per_day, std::uint64_t capacity, std::uint32_t max_ghosts)
        : second_touch_(second_touch), budget_(bytes_per_day), ghosts_(max_ghosts), capacity_(capacity) {}

    // What becomes of a chunk that is offered; asking changes nothing. `used`: since it came.
    Entry judge(std::uint64_t key, bool used) const;
    // Writing a chunk begins, or has ended; so many bytes have been written to the tier in all.
    void begin(std::uint64_t bytes);
    void end(std::uint64_t bytes) { budget_.redeem(bytes); }
    void settle(std::uint64_t written, std::int64_t now_ms);
    // A chunk was let go instead.
    void refuse(Entry why, std::uint64_t bytes);
    // A chunk was evicted and is in no tier any more: it is known if it comes back.
    void remember(std::uint64_t key, std::uint64_t bytes);

    // Bytes came to the tier; left it, for whatever reason; or it was full, and something there had to go.
    void came(std::uint64_t bytes) { room_ -= std::min(room_, bytes); }
    void left(std::uint64_t bytes) { room_ += bytes; }
    void was_full() {
        has_been_full_ = true;
        room_ = 0;
    }
    void set_capacity(std::uint64_t bytes);
    // The budget as it was put aside at some time; see `WriteBudget`.
    void restore(double left, std::int64_t at_ms);

    const WriteBudget& budget() const { return budget_; }
    bool has_room() const { return !has_been_full_ || room_ > 0; }
    // What chunks that were used once, and others, find just now.
    Entry state() const { return is_spent_ ? Entry::budget_spent : is_low_ ? Entry::budget_low : Entry::open; }
    std::size_t ghosts() const { return ghosts_.size(); }

private:
    static constexpr std::uint64_t kRemembered = 4;  // capacities
    static constexpr std::uint64_t kLetIn = 16;      // one byte in so many, where nothing comes back

    void watch_budget();

    bool second_touch_;
    WriteBudget budget_;
    Ghosts<1> ghosts_;
    std::uint64_t capacity_;
    bool has_been_full_ = false;
    std::uint64_t room_ = 0;      // bytes that left since it was full, and whose place is free
    std::uint64_t kept_out_ = 0;  // bytes, less kLetIn times what came in meanwhile
    std::uint64_t to_let_in_ = 0;
    bool is_low_ = false, is_spent_ = false;
};

}  // namespace kvstore
