// The body of a transform frame, taken apart. The layout is in docs/codecs.md and codecs/transform/body.py.
#pragma once

#include "transform_kernels.hpp"

#include <algorithm>
#include <cstring>

namespace kvstore::transform {

inline constexpr std::size_t kHeadBytes = 12;
inline constexpr std::uint8_t kVersion = 1;
inline constexpr std::size_t kStreamTokens = 256;  // what the encoder writes
inline constexpr std::size_t kStreamColumns = 512;

inline std::size_t pad4(std::size_t bytes) { return (bytes + 3) & ~std::size_t{3}; }

struct Body {
    std::size_t stream_tokens;
    std::size_t stream_columns;
    std::span<const std::uint8_t> sinks;
    std::span<const std::uint8_t> bits;
    std::span<const std::uint8_t> escapes;
    std::vector<std::span<const std::uint8_t>> streams;  // by tokens, then by columns

    std::size_t escape_count() const { return escapes.size() / sizeof(Escape); }
    Escape escape(std::size_t i) const {
        Escape found;
        std::memcpy(&found, escapes.data() + i * sizeof found, sizeof found);
        return found;
    }
};

// Nothing for a body that does not have exactly the bytes that its head and the plan ask for. Allocates a few bytes per
// stream, of which the body holds at least 128 each.
std::optional<Body> take_apart(std::span<const std::uint8_t> data, const Plan& plan, std::size_t sinks,
                               std::size_t sink_bytes, std::size_t tokens);

}  // namespace kvstore::transform
