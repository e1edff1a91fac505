// Bodies of the transform codec: any bytes against plans of several shapes, with shifts, escapes, sinks and rotation.
#include "tables.hpp"
#include "transform.hpp"

#include <algorithm>
#include <optional>

using namespace kvstore::transform;

namespace {

std::size_t padded(std::size_t count, std::size_t unit) { return (count + unit - 1) / unit * unit; }

// A section per layer, nearly the identity, whose last channel has no column of its own.
Plan plan_from(Reader& reader) {
    const std::size_t layers = reader.number(1, 2), planes = reader.number(1, 2), heads = reader.number(1, 2);
    const std::size_t dim = 2 * reader.number(1, 12), channels = planes * heads * dim, live = channels - 1;
    const std::vector<float> scale(channels, 0.01F), mean(channels, 0.5F);
    std::vector<std::int8_t> matrix(channels * live, 1);
    std::vector<float> forward(live * channels, 0.0F);
    for (std::size_t c = 0; c < live; ++c) {
        matrix[c * live + c] = 100;
        forward[c * channels + c] = 1.0F;
    }
    std::vector<SectionSource> sections;
    for (std::size_t layer = 0; layer < layers; ++layer)
        sections.push_back({layer * padded(live, kSectionPad), live, channels, matrix.data(), scale.data(), mean.data(),
                            forward.data()});
    const std::size_t columns = padded(layers * padded(live, kSectionPad), kColumnPad);
    Bytes tables(columns, 2), shift(columns, 0);
    for (std::size_t column = 0; column < columns; column += 3) tables[column] = 3;
    for (std::size_t column = 0; column < live; column += 5) shift[column] = static_cast<std::uint8_t>(column % 9);
    const auto style = static_cast<Style>(reader.number(0, 1));
    const std::size_t pairs = reader.number(0, dim / 2);
    const std::vector<Rotary> rotary(layers, {pairs, reader.number(0, dim - 2 * pairs), style});
    const std::vector<float> rounding(columns, 0.4F);
    // The same frequencies as the bank's, which does not keep them.
    std::vector<std::uint16_t> freqs(4 * 256);
    for (std::size_t table = 0; table < 4; ++table)
        for (std::size_t slot = 0; slot < 4096; ++slot)
            ++freqs[table * 256 + (fuzz_bank().slots()[table * 4096 + slot] & 0xFF)];
    std::optional<Plan> made = Plan::make(freqs, tables, shift, rounding, sections, rotary, planes, heads, dim);
    require(made.has_value(), "the parts of a plan fit one another");
    return *std::move(made);
}

struct Block {
    Block(const Plan& plan, Reader& reader) : rotation(64 * plan.dim, 0.6F) {
        elements.dtype = static_cast<Dtype>(reader.number(0, 2));
        elements.tokens = reader.number(1, 40);
        elements.sinks = std::min(reader.number(0, 4), elements.tokens);
        const std::size_t per_plane = elements.tokens * plan.heads * plan.dim;
        if (reader.number(0, 1) == 0) {
            elements.strides = {plan.planes * per_plane, per_plane, plan.heads * plan.dim, plan.dim, 1};
        } else {
            elements.strides = {plan.planes * per_plane, per_plane, 1, plan.dim * elements.tokens, elements.tokens};
        }
        data.assign(plan.layers() * plan.planes * per_plane * elements.item(), 0xEE);
        elements.cos.assign(plan.layers(), rotation.data());
        elements.sin.assign(plan.layers(), rotation.data());
    }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    Elements with(Bytes& memory) const {
        Elements given = elements;
        given.data = memory.data();
        return given;
    }

    Elements elements{};
    std::vector<float> rotation;
    Bytes data;
};

}  // namespace

void fuzz_one(Input input) {
    Reader reader(input);
    const Plan plan = plan_from(reader);
    const Block block(plan, reader);
    const Bytes body(reader.rest().begin(), reader.rest().end());
    kvstore::set_simd_level(kvstore::SimdLevel::portable);
    Bytes wanted = block.data;
    const Status status = decode(plan, body, block.with(wanted));
    at_every_level([&](kvstore::SimdLevel) {
        Bytes found = block.data, raw(body), again;
        require(decode(plan, body, block.with(found)) == status, "all levels judge a body alike");
        require(status != Status::ok || found == wanted, "all levels decode alike");
        raw.resize(found.size());
        if (encode(plan, block.with(raw), again) == Status::ok)
            require(decode(plan, again, block.with(found)) == Status::ok, "what was encoded decodes");
    });
}

std::vector<Bytes> seeds() {
    std::vector<Bytes> all;
    for (std::uint8_t dtype = 0; dtype < 3; ++dtype)
        for (std::uint8_t kind = 0; kind < 4; ++kind) {
            Bytes seed = {kind, 1, static_cast<std::uint8_t>(kind / 2), 7, kind, 3, kind, dtype, 37, 4, kind};
            Reader reader(seed);
            const Plan plan = plan_from(reader);
            const Block block(plan, reader);
            const std::size_t item = block.elements.item();
            Bytes raw(block.data.size()), body;
            for (std::size_t i = 0; i < raw.size(); ++i)
                raw[i] = static_cast<std::uint8_t>(i % item + 1 == item ? 0x3F + i % 3 : i * 37);
            require(encode(plan, block.with(raw), body) == Status::ok, "moderate values are encoded");
            seed.insert(seed.end(), body.begin(), body.end());
            all.push_back(seed);
        }
    return all;
}
