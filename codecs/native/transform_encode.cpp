// Encoding: elements to floats tile by tile, these to symbols, and the symbols to streams.
#include "transform_body.hpp"
#include "transform_rows.hpp"

#include <memory>

namespace kvstore::transform {

namespace {

// A whole number is below 2^15 and a matrix's entry at most 127: so many columns cannot reach 2^31 in sum.
constexpr std::size_t kSafeColumns = 516;
constexpr std::int64_t kMostInSum = (std::int64_t{1} << 31) / 127;

class Encoder {
public:
    Encoder(const Plan& plan, const Elements& in)
        : plan_(plan), sinks_(in.sinks), all_(in.tokens - in.sinks), rows_(plan, in) {
        std::size_t widest = 0;
        std::size_t longest = 0;
        for (const Section& section : plan.sections) {
            widest = std::max(widest, section.channels);
            longest = std::max(longest, section.padded_columns());
        }
        const std::size_t coded = all_ * plan.columns();
        values_ = std::make_unique_for_overwrite<float[]>(kTile * widest);
        steps_ = std::make_unique_for_overwrite<float[]>(kTile * longest);
        symbols_ = std::make_unique_for_overwrite<std::uint8_t[]>(coded);
        if (plan.bit_planes > 0) low_ = std::make_unique_for_overwrite<std::uint8_t[]>(coded);
    }

    const HeadRows& rows() const { return rows_; }
    const std::uint8_t* symbols() const { return symbols_.get(); }

    Status tile(std::size_t coded, std::size_t tokens) {
        std::size_t run = 0;
        for (const Section& section : plan_.sections) {
            for (std::size_t channel = 0; channel < section.channels; channel += plan_.dim, ++run) {
                const HeadPlace place = HeadPlace::of(plan_, run);
                float* values = values_.get() + channel;
                if (!rows_.load(place, sinks_ + coded, tokens, values, section.channels)) return Status::not_finite;
                if (place.turns(plan_)) rows_.turn(place, coded, tokens, values, section.channels);
            }
            kernels().forward(section, values_.get(), section.channels, tokens, steps_.get(), section.padded_columns());
            if (!quantize(section, coded, tokens)) return Status::out_of_range;
        }
        pad(coded, tokens);
        return Status::ok;
    }

    std::vector<Escape>& escapes() {
        std::sort(escapes_.begin(), escapes_.end(), [](const Escape& a, const Escape& b) {
            return a.token != b.token ? a.token < b.token : a.column < b.column;
        });
        return escapes_;
    }

    void append_low_bits(std::vector<std::uint8_t>& body) const {
        for (const std::size_t column : plan_.shifted) {
            for (std::int32_t bit = 0; bit < plan_.shift[column]; ++bit) {
                const std::size_t at = body.size();
                body.resize(at + (all_ + 7) / 8);
                for (std::size_t t = 0; t < all_; ++t)
                    body[at + t / 8] |= static_cast<std::uint8_t>((low_[t * plan_.columns() + column] >> bit & 1) << t % 8);
            }
        }
    }

private:
    bool quantize(const Section& section, std::size_t coded, std::size_t tokens) {
        std::array<std::int64_t, kTile> sums{};
        const bool watched = section.live > kSafeColumns;
        const std::size_t at = coded * plan_.columns() + section.column;
        const QuantizeJob job{
            steps_.get(), section.padded_columns(), tokens, (section.live + kSectionPad - 1) / kSectionPad * kSectionPad,
            plan_.shift.data() + section.column, plan_.reach.data() + section.column,
            plan_.rounding.data() + section.column, symbols_.get() + at, low_ ? low_.get() + at : nullptr,
            plan_.columns(), watched ? sums.data() : nullptr, coded, section.column, &escapes_};
        if (!kernels().quantize(job)) return false;
        return *std::max_element(sums.begin(), sums.end()) <= kMostInSum;
    }

    // The columns behind the last section hold zeros.
    void pad(std::size_t coded, std::size_t tokens) {
        const Section& last = plan_.sections.back();
        const std::size_t used = last.column + (last.live + kSectionPad - 1) / kSectionPad * kSectionPad;
        for (std::size_t t = coded; t < coded + tokens; ++t)
            std::fill(symbols_.get() + t * plan_.columns() + used, symbols_.get() + (t + 1) * plan_.columns(), 128);
    }

    const Plan& plan_;
    std::size_t sinks_;
    std::size_t all_;
    HeadRows rows_;
    std::unique_ptr<float[]> values_;
    std::unique_ptr<float[]> steps_;
    std::unique_ptr<std::uint8_t[]> symbols_;
    std::unique_ptr<std::uint8_t[]> low_;
    std::vector<Escape> escapes_;
};

template <typename T>
void append(std::vector<std::uint8_t>& body, T value) {
    const std::size_t at = body.size();
    body.resize(at + sizeof value);
    std::memcpy(body.data() + at, &value, sizeof value);
}

void append_bytes(std::vector<std::uint8_t>& body, const void* data, std::size_t bytes) {
    const auto* first = static_cast<const std::uint8_t*>(data);
    body.insert(body.end(), first, first + bytes);
    body.resize(pad4(body.size()));
}

Status append_streams(const Plan& plan, const std::uint8_t* symbols, std::size_t all, std::size_t lengths,
                      std::vector<std::uint8_t>& body) {
    const std::size_t columns = plan.columns();
    const std::size_t most =
        rans::encode_bound(std::min(all, kStreamTokens), std::min(columns, kStreamColumns));
    const auto room = std::make_unique_for_overwrite<std::uint8_t[]>(most);
    for (std::size_t t = 0; t < all; t += kStreamTokens) {
        for (std::size_t c = 0; c < columns; c += kStreamColumns) {
            const auto tables = std::span(plan.tables).subspan(c, std::min(kStreamColumns, columns - c));
            std::span<const std::uint8_t> stream;
            const auto status = rans::encode(plan.bank, symbols + t * columns + c, columns, tables,
                                             std::min(kStreamTokens, all - t), {room.get(), most}, stream);
            if (status != rans::Status::ok) return Status::out_of_range;
            const auto length = static_cast<std::uint32_t>(stream.size());
            std::memcpy(body.data() + lengths, &length, sizeof length);
            lengths += sizeof length;
            append_bytes(body, stream.data(), stream.size());
        }
    }
    return Status::ok;
}

}  // namespace

Status encode(const Plan& plan, const Elements& in, std::vector<std::uint8_t>& body) {
    const std::size_t all = in.tokens - in.sinks;
    Encoder encoder(plan, in);
    for (std::size_t t = 0; t < all; t += kTile) {
        const Status status = encoder.tile(t, std::min(kTile, all - t));
        if (status != Status::ok) return status;
    }
    const std::vector<Escape>& escapes = encoder.escapes();
    const std::size_t streams = ((all + kStreamTokens - 1) / kStreamTokens) *
                                ((plan.columns() + kStreamColumns - 1) / kStreamColumns);
    body.clear();
    body.reserve(all * plan.channels() / 2);
    append(body, kVersion);
    append(body, static_cast<std::uint8_t>(in.sinks));
    append(body, static_cast<std::uint16_t>(kStreamTokens));
    append(body, static_cast<std::uint16_t>(kStreamColumns));
    append(body, std::uint16_t{0});
    append(body, static_cast<std::uint32_t>(escapes.size()));
    const std::size_t lengths = body.size();
    const std::size_t sink_bytes = in.sinks * plan.channels() * in.item();
    body.resize(lengths + 4 * streams + pad4(sink_bytes));
    encoder.rows().take_sinks(body.data() + lengths + 4 * streams);
    encoder.append_low_bits(body);
    body.resize(pad4(body.size()));
    append_bytes(body, escapes.data(), escapes.size() * sizeof(Escape));
    return append_streams(plan, encoder.symbols(), all, lengths, body);
}

}  // namespace kvstore::transform
