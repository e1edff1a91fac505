// Streams of the entropy coder: no level reads or writes out of bounds, all agree, and what was encoded decodes.
#include "tables.hpp"

namespace rans = kvstore::rans;
using rans::Format;
using rans::Status;

namespace {

struct Decoded {
    Status status;
    Bytes data;
};

Decoded decode(Input stream, const Bytes& tables, std::size_t tokens, Format format, std::size_t gap) {
    const std::size_t item = format == Format::symbols ? 1 : format == Format::fp32 ? 4 : 2;
    const std::size_t stride = tables.size() + gap;
    const std::vector<float> scale(tables.size(), 1.37e3F), mean(tables.size(), -0.11F);
    // Not a byte more than what may be written: the last row has no gap behind it.
    Bytes data(((tokens - 1) * stride + tables.size()) * item, 0xEE);
    const Status status =
        rans::decode(fuzz_bank(), stream, tables, tokens, {format, data.data(), stride, scale.data(), mean.data()});
    return {status, data};
}

Bytes encode(const Bytes& symbols, const Bytes& tables, std::size_t tokens) {
    Bytes room(rans::encode_bound(tokens, tables.size()));
    Input stream;
    require(rans::encode(fuzz_bank(), symbols.data(), tables.size(), tables, tokens, room, stream) == Status::ok,
            "symbols of the tables are encoded");
    return {stream.begin(), stream.end()};
}

}  // namespace

void fuzz_one(Input input) {
    Reader reader(input);
    const auto format = static_cast<Format>(reader.number(0, 4));
    const std::size_t columns = reader.number(1, 100), tokens = reader.number(1, 64), gap = reader.number(0, 3);
    const Bytes tables = alternating_tables(columns, reader.number(0, 3));
    const bool mend = reader.number(0, 1) == 1, round_trip = reader.number(0, 3) == 3;
    // In memory of its own, so that reading past either end shows.
    Bytes stream(reader.rest().begin(), reader.rest().end());
    if (round_trip) {
        const Bytes symbols = symbols_from(stream, tables, tokens);
        const Decoded decoded = decode(encode(symbols, tables, tokens), tables, tokens, Format::symbols, 0);
        require(decoded.status == Status::ok && decoded.data == symbols, "what was encoded decodes");
        return;
    }
    if (mend && stream.size() >= rans::kStateBytes)
        for (std::size_t lane = 0; lane < rans::kLanes; ++lane) {
            stream[4 * lane + 3] &= 0x7F;
            stream[4 * lane + 1] |= 0x80;
        }
    kvstore::set_simd_level(kvstore::SimdLevel::portable);
    const Decoded wanted = decode(stream, tables, tokens, format, gap);
    at_every_level([&](kvstore::SimdLevel) {
        const Decoded found = decode(stream, tables, tokens, format, gap);
        require(found.status == wanted.status, "all levels judge a stream alike");
        require(found.status != Status::ok || found.data == wanted.data, "all levels decode alike");
    });
    if (wanted.status == Status::ok && format == Format::symbols && gap == 0)
        require(encode(wanted.data, tables, tokens) == stream, "a sound stream is the one that the encoder makes");
}

std::vector<Bytes> seeds() {
    std::vector<Bytes> all;
    for (const std::uint8_t columns : {0, 31, 32, 70})
        for (const std::uint8_t format : {0, 1, 2, 3, 4}) {
            const std::uint8_t tokens = 12;
            const Bytes tables = alternating_tables(columns + 1U, format % 4U);
            const Bytes noise = {3, 141, 59, 26, 53, 58, 97, 93, 238, 46, 26, 43, 38, 32, 79, 50, 28, 84, 197};
            Bytes seed = {format, columns, tokens, 0, static_cast<std::uint8_t>(format % 4), 0, 0};
            const Bytes stream = encode(symbols_from(noise, tables, tokens + 1U), tables, tokens + 1U);
            seed.insert(seed.end(), stream.begin(), stream.end());
            all.push_back(seed);
        }
    return all;
}
