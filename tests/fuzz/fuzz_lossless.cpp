// Bodies of lossless: any bytes as a body; any bytes as elements, which come back as they were.
#include "lossless.hpp"
#include "tables.hpp"

using namespace kvstore::lossless;

namespace {

Frame frame_from(Reader& reader) {
    Frame frame{};
    frame.dtype = static_cast<Dtype>(reader.number(0, 2));
    frame.shape = {reader.number(1, 2), reader.number(1, 2), reader.number(1, 70), reader.number(1, 3), reader.number(1, 40)};
    const auto& [layers, planes, tokens, heads, dim] = frame.shape;
    const std::size_t plane = tokens * heads * dim;
    frame.steps = {planes * plane, plane, heads * dim, dim, 1};
    if (reader.number(0, 1) == 1) frame.steps = {planes * plane, plane, 1, dim * tokens, tokens};
    return frame;
}

}  // namespace

void fuzz_one(Input input) {
    Reader reader(input);
    const Frame frame = frame_from(reader);
    const Bytes body(reader.rest().begin(), reader.rest().end());
    kvstore::set_simd_level(kvstore::SimdLevel::portable);
    Bytes wanted(frame.bytes(), 0xEE);
    const bool sound = decode(frame, body, wanted);
    at_every_level([&](kvstore::SimdLevel) {
        Bytes found(frame.bytes(), 0xEE), raw(body);
        require(decode(frame, body, found) == sound, "all levels judge a body alike");
        require(!sound || found == wanted, "all levels decode alike");
        raw.resize(frame.bytes());
        require(decode(frame, encode(frame, raw), found) && found == raw, "what was encoded comes back");
    });
}

std::vector<Bytes> seeds() {
    std::vector<Bytes> all;
    for (std::uint8_t dtype = 0; dtype < 3; ++dtype)
        for (std::uint8_t kind = 0; kind < 6; ++kind) {
            const std::uint8_t tokens = kind % 3 == 0 ? 60 : 65;
            Bytes seed = {dtype, 0, 1, tokens, static_cast<std::uint8_t>(kind % 2), 19, static_cast<std::uint8_t>(kind % 2)};
            Reader reader(seed);
            const Frame frame = frame_from(reader);
            Bytes raw(frame.bytes());
            std::uint32_t noise = 1;
            for (std::uint8_t& each : raw) each = static_cast<std::uint8_t>((noise = noise * 1664525U + 1013904223U) >> 24);
            // Two in three: exponents that are worth coding, near each other or all over.
            const std::size_t item = kvstore::quantize::item_bytes(frame.dtype);
            for (std::size_t i = item - 1; kind < 4 && i < raw.size(); i += item)
                raw[i] = static_cast<std::uint8_t>((kind < 2 ? 0x3C : 0x20 + i / item % 19 * 2) + raw[i] % 2);
            const Bytes body = encode(frame, raw);
            seed.insert(seed.end(), body.begin(), body.end());
            all.push_back(seed);
        }
    return all;
}
