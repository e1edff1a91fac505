#include "transform_body.hpp"

namespace kvstore::transform {

namespace {

template <typename T>
T read(const std::uint8_t* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

// Cuts pieces from the front of the bytes, each padded to four.
class Cutter {
public:
    explicit Cutter(std::span<const std::uint8_t> rest) : rest_(rest) {}

    std::span<const std::uint8_t> cut(std::size_t bytes) {
        const std::size_t whole = pad4(bytes);
        if (whole > rest_.size()) {
            sound_ = false;
            return {};
        }
        const auto piece = rest_.first(bytes);
        rest_ = rest_.subspan(whole);
        return piece;
    }
    bool used_up() const { return sound_ && rest_.empty(); }

private:
    std::span<const std::uint8_t> rest_;
    bool sound_ = true;
};

bool in_order(const Body& body, std::size_t tokens, std::size_t columns) {
    std::int64_t last = -1;
    for (std::size_t i = 0; i < body.escape_count(); ++i) {
        const Escape each = body.escape(i);
        const std::int64_t place = static_cast<std::int64_t>(each.token) << 16 | each.column;
        if (place <= last || each.token >= tokens || each.column >= columns) return false;
        last = place;
    }
    return true;
}

}  // namespace

std::optional<Body> take_apart(std::span<const std::uint8_t> data, const Plan& plan, std::size_t sinks,
                               std::size_t sink_bytes, std::size_t tokens) {
    if (data.size() < kHeadBytes || data[0] != kVersion || data[1] != sinks) return std::nullopt;
    Body body{read<std::uint16_t>(&data[2]), read<std::uint16_t>(&data[4]), {}, {}, {}, {}};
    const std::size_t escapes = read<std::uint32_t>(&data[8]);
    if (read<std::uint16_t>(&data[6]) != 0 || body.stream_tokens == 0) return std::nullopt;
    if (body.stream_columns == 0 || body.stream_columns % kColumnPad != 0) return std::nullopt;
    const std::size_t down = (tokens + body.stream_tokens - 1) / body.stream_tokens;
    const std::size_t across = (plan.columns() + body.stream_columns - 1) / body.stream_columns;
    const std::size_t streams = down * across;  // at most 2^16 · 2^11
    if (kHeadBytes + streams * (4 + rans::kStateBytes) > data.size()) return std::nullopt;
    const std::uint8_t* lengths = &data[kHeadBytes];
    Cutter cutter(data.subspan(kHeadBytes + 4 * streams));
    body.sinks = cutter.cut(sink_bytes);
    body.bits = cutter.cut(plan.bit_planes * ((tokens + 7) / 8));
    body.escapes = cutter.cut(escapes * sizeof(Escape));
    body.streams.reserve(streams);
    for (std::size_t i = 0; i < streams; ++i) {
        const std::size_t length = read<std::uint32_t>(lengths + 4 * i);
        if (length < rans::kStateBytes) return std::nullopt;
        body.streams.push_back(cutter.cut(length));
    }
    if (!cutter.used_up() || !in_order(body, tokens, plan.columns())) return std::nullopt;
    return body;
}

}  // namespace kvstore::transform
