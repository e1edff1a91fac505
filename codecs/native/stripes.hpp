// How a record lies over the memory of several devices.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace kvstore {

inline constexpr std::size_t kMaxDevices = 12;
inline constexpr std::uint64_t kStripeBlock = 4096;

// In turns: `units[d]` units of bytes on each device d, from device `first` on, until the record ends. So what lies
// on a device is one range of it, from block `starts[d]` on.
struct Stripes {
    std::array<std::uint32_t, kMaxDevices> starts{};
    std::array<std::uint8_t, kMaxDevices> units{};
    std::uint8_t first = 0;

    std::uint64_t turn_units() const {
        std::uint64_t sum = 0;
        for (const std::uint8_t each : units) sum += each;
        return sum;
    }
};

// The bytes of device `wanted` in a record of `total` bytes.
inline std::uint64_t share_of(const Stripes& stripes, std::size_t devices, std::uint64_t unit, std::size_t wanted,
                              std::uint64_t total) {
    const std::uint64_t turn = stripes.turn_units() * unit, run = stripes.units[wanted] * unit;
    std::uint64_t before = 0;
    for (std::size_t d = stripes.first; d != wanted; d = (d + 1) % devices) before += stripes.units[d] * unit;
    const std::uint64_t rest = total % turn;
    return total / turn * run + (rest > before ? std::min(rest - before, run) : 0);
}

// Calls run(device, offset on it, offset in the record, bytes) for each piece of a range of a record, in order.
template <typename Run>
void each_run(const Stripes& stripes, std::size_t devices, std::uint64_t unit, std::uint64_t from, std::uint64_t length,
              Run&& run) {
    const std::uint64_t turn = stripes.turn_units() * unit, end = from + length;
    std::uint64_t turns = from / turn, within = from % turn;
    std::size_t d = stripes.first;
    while (from < end) {
        const std::uint64_t bytes = stripes.units[d] * unit;
        if (within < bytes) {
            const std::uint64_t piece = std::min(bytes - within, end - from);
            run(d, stripes.starts[d] * kStripeBlock + turns * bytes + within, from, piece);
            from += piece;
            within = 0;
        } else {
            within -= bytes;
        }
        d = (d + 1) % devices;
        if (d == stripes.first) ++turns;
    }
}

}  // namespace kvstore
