// Decoding: streams to whole numbers, these to floats tile by tile, and to elements while they are in the caches.
#include "transform_body.hpp"
#include "transform_rows.hpp"

#include <memory>

namespace kvstore::transform {

namespace {

using Levels = std::unique_ptr<std::int16_t[]>;

// The whole numbers [tokens][columns] of a band of streams side by side.
bool decode_band(const Plan& plan, const Body& body, std::size_t band, std::size_t tokens, std::int16_t* q) {
    const std::size_t columns = plan.columns();
    const std::size_t across = (columns + body.stream_columns - 1) / body.stream_columns;
    for (std::size_t i = 0; i < across; ++i) {
        const std::size_t first = i * body.stream_columns;
        const std::size_t count = std::min(body.stream_columns, columns - first);
        const rans::Target target{rans::Format::levels, q + first, columns};
        const auto tables = std::span(plan.tables).subspan(first, count);
        if (rans::decode(plan.bank, body.streams[band * across + i], tables, tokens, target) != rans::Status::ok)
            return false;
    }
    return true;
}

// Puts the low bits of shifted columns in place; `all` is the number of coded tokens, of which `first` is the band's.
void add_low_bits(const Plan& plan, const Body& body, std::size_t all, std::size_t first, std::size_t tokens,
                  std::int16_t* q) {
    const std::size_t bytes = (all + 7) / 8;
    const std::uint8_t* bits = body.bits.data();
    for (const std::size_t column : plan.shifted) {
        const auto shift = static_cast<std::size_t>(plan.shift[column]);
        for (std::size_t t = 0; t < tokens; ++t) {
            const std::size_t token = first + t;
            std::int16_t& each = q[t * plan.columns() + column];
            std::int32_t value = each;
            for (std::size_t bit = shift; bit-- > 0;)
                value = value * 2 + (bits[bit * bytes + token / 8] >> token % 8 & 1);
            each = static_cast<std::int16_t>(value);
        }
        bits += shift * bytes;
    }
}

class Decoder {
public:
    Decoder(const Plan& plan, const Elements& out) : plan_(plan), sinks_(out.sinks), rows_(plan, out) {
        std::size_t widest = 0;
        for (const Section& section : plan.sections) widest = std::max(widest, section.padded_channels());
        values_ = std::make_unique_for_overwrite<float[]>(kTile * widest);
    }

    HeadRows& rows() { return rows_; }

    // Tokens `coded` and on of the coded ones.
    void tile(const std::int16_t* q, std::size_t coded, std::size_t tokens) {
        std::size_t run = 0;
        for (const Section& section : plan_.sections) {
            const std::size_t stride = section.padded_channels();
            kernels().inverse(section, q + section.column, plan_.columns(), tokens, values_.get(), stride);
            for (std::size_t channel = 0; channel < section.channels; channel += plan_.dim, ++run) {
                const HeadPlace place = HeadPlace::of(plan_, run);
                float* values = values_.get() + channel;
                if (place.turns(plan_)) rows_.turn(place, coded, tokens, values, stride);
                rows_.store(place, sinks_ + coded, tokens, values, stride);
            }
        }
    }

private:
    const Plan& plan_;
    std::size_t sinks_;
    HeadRows rows_;
    std::unique_ptr<float[]> values_;
};

}  // namespace

Status decode(const Plan& plan, std::span<const std::uint8_t> data, const Elements& out) {
    const std::size_t all = out.tokens - out.sinks;
    const std::size_t sink_bytes = out.sinks * plan.channels() * out.item();
    const std::optional<Body> body = take_apart(data, plan, out.sinks, sink_bytes, all);
    if (!body) return Status::corrupt;
    Decoder decoder(plan, out);
    decoder.rows().put_sinks(body->sinks.data());
    const std::size_t most = std::min(all, body->stream_tokens);
    const auto q = std::make_unique_for_overwrite<std::int16_t[]>(most * plan.columns());
    std::size_t escape = 0;
    for (std::size_t first = 0, band = 0; first < all; first += most, ++band) {
        const std::size_t tokens = std::min(most, all - first);
        if (!decode_band(plan, *body, band, tokens, q.get())) return Status::corrupt;
        add_low_bits(plan, *body, all, first, tokens, q.get());
        for (; escape < body->escape_count(); ++escape) {
            const Escape each = body->escape(escape);
            if (each.token >= first + tokens) break;
            q[(each.token - first) * plan.columns() + each.column] = each.value;
        }
        for (std::size_t t = 0; t < tokens; t += kTile)
            decoder.tile(q.get() + t * plan.columns(), first + t, std::min(kTile, tokens - t));
    }
    return Status::ok;
}

}  // namespace kvstore::transform
