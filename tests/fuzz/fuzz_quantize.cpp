// Sections of the quantizers: any bytes, any strides; levels agree, and what is not refused is written within bounds.
#include "quantize.hpp"
#include "tables.hpp"

#include <algorithm>

using namespace kvstore::quantize;

namespace {

struct Case {
    Method method;
    Plane plane;
    std::size_t elements;
};

Case case_from(Reader& reader) {
    const auto method = static_cast<Method>(reader.number(0, 6));
    Plane plane{};
    plane.dtype = static_cast<Dtype>(reader.number(0, 2));
    plane.tokens = reader.number(1, 70), plane.heads = reader.number(1, 3), plane.dim = reader.number(1, 100);
    switch (reader.number(0, 2)) {
        case 0: plane.dim_step = 1, plane.head_step = plane.dim, plane.token_step = plane.dim * plane.heads; break;
        case 1: plane.dim_step = 1, plane.token_step = plane.dim, plane.head_step = plane.dim * plane.tokens; break;
        default: plane.token_step = 1, plane.dim_step = plane.tokens, plane.head_step = plane.dim * plane.tokens;
    }
    return {method, plane, plane.tokens * plane.heads * plane.dim};
}

}  // namespace

void fuzz_one(Input input) {
    Reader reader(input);
    const Case chosen = case_from(reader);
    const Method method = chosen.method;
    const Plane& plane = chosen.plane;
    Bytes section(reader.rest().begin(), reader.rest().end());
    section.resize(section_bytes(method, plane.tokens, plane.heads, plane.dim));
    const std::size_t bytes = chosen.elements * item_bytes(plane.dtype);
    kvstore::set_simd_level(kvstore::SimdLevel::portable);
    Bytes wanted(bytes, 0xEE);
    const bool sound = decode(method, plane, section.data(), wanted.data());
    at_every_level([&](kvstore::SimdLevel) {
        Bytes found(bytes, 0xEE), again(section.size());
        require(decode(method, plane, section.data(), found.data()) == sound, "all levels judge a section alike");
        require(!sound || found == wanted, "all levels decode alike");
        // Any bytes are elements to encode too; what they say matters not here.
        Bytes raw(reader.rest().begin(), reader.rest().end());
        raw.resize(bytes);
        if (encode(method, plane, raw.data(), again.data()))
            require(decode(method, plane, again.data(), found.data()), "what was encoded decodes");
    });
}

std::vector<Bytes> seeds() {
    std::vector<Bytes> all;
    for (std::uint8_t method = 0; method < 7; ++method)
        for (std::uint8_t dtype = 0; dtype < 3; ++dtype) {
            Bytes seed = {method, dtype, 33, 1, 37, static_cast<std::uint8_t>((method + dtype) % 3)};
            Reader reader(seed);
            const auto [of, plane, elements] = case_from(reader);
            Bytes raw(elements * item_bytes(plane.dtype)), section(section_bytes(of, plane.tokens, plane.heads, plane.dim));
            // Exponents near that of 1, mantissas that vary.
            for (std::size_t i = 0; i < raw.size(); ++i)
                raw[i] = static_cast<std::uint8_t>(i % item_bytes(plane.dtype) + 1 == item_bytes(plane.dtype) ? 0x3C + i % 3 : i * 37);
            require(encode(of, plane, raw.data(), section.data()), "finite values are encoded");
            seed.insert(seed.end(), section.begin(), section.end());
            all.push_back(seed);
        }
    return all;
}
