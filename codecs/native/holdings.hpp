// The extents of DRAM that one namespace owns, as what allocates from them without Python sees them.
#pragma once

#include "allocator.hpp"
#include "mutex.hpp"

#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

namespace kvstore {

// A location is `extent number << kExtentShift | offset`; kvstore/places.py says the same.
inline constexpr unsigned kExtentShift = 40;
inline constexpr std::uint64_t kOffsetMask = (std::uint64_t{1} << kExtentShift) - 1;

struct Plot {
    std::uint64_t location;
    std::uint8_t* data;
};

class Holdings {
public:
    // `lock` guards the allocators and the list of extents.
    explicit Holdings(Mutex& lock) : lock_(lock) {}

    // These need the lock. An extent must outlive its place in here, and whoever uses it (`wait_for_users`).
    void add(std::uint64_t number, std::uint8_t* data, Allocator& allocator);
    void remove(std::uint64_t number);
    // The location of free memory, -1 where there is none.
    std::int64_t alloc(std::uint64_t bytes);
    // From now on nothing is handed out.
    void end() { ended_ = true; }

    // These take the lock. What `take` gives is being written until it is kept or given back.
    std::optional<Plot> take(std::uint64_t bytes);
    void keep() { used(); }
    void give_back(const Plot& plot, std::uint64_t bytes);

    // Where a location lies, nullptr where there is no such extent: for what has a reader on it.
    const std::uint8_t* at(std::uint64_t location);

    // Around reading, without the lock: extents are not given back meanwhile.
    void begin_reading() { users_.fetch_add(1, std::memory_order_relaxed); }
    void end_reading() { used(); }

    // After `end`, without the lock: returns when nobody reads or writes any more.
    void wait_for_users() const;

private:
    struct Extent {
        std::uint64_t number;
        std::uint8_t* data;
        Allocator* allocator;
    };

    std::optional<Plot> find(std::uint64_t bytes);
    void used();

    Mutex& lock_;
    std::vector<Extent> extents_;
    bool ended_ = false;
    std::atomic<std::uint32_t> users_ = 0;
};

}  // namespace kvstore
