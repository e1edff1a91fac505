// What time it is, by the two clocks that the store goes by.
#pragma once

#include <ctime>

#include <cstdint>

namespace kvstore {

inline std::int64_t clock_ms(clockid_t clock) {
    timespec now{};
    clock_gettime(clock, &now);
    return std::int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

// Unix time: what outlives the process (when a record was made, when a chunk was used last) is told by it.
inline std::int64_t unix_ms() { return clock_ms(CLOCK_REALTIME); }
// Nobody sets this one. Policies are told by it how long chunks lie: a step of the other would age them all at once.
inline std::int64_t steady_ms() { return clock_ms(CLOCK_MONOTONIC); }

}  // namespace kvstore
