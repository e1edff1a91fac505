// The codec `lossless`: exponents by rANS with built-in tables, sign and mantissa as they are. codecs/lossless.py has
// the format and the reference. No Python here.
#pragma once

#include "quantize.hpp"

#include <array>
#include <span>
#include <vector>

namespace kvstore::lossless {

using quantize::Dtype;

// A frame's elements: [layer, plane, token, head, dim] and the steps of these axes in elements.
struct Frame {
    Dtype dtype;
    std::array<std::size_t, 5> shape;
    std::array<std::size_t, 5> steps;

    std::size_t sections() const { return shape[0] * shape[1]; }
    std::size_t tokens() const { return shape[2]; }
    std::size_t channels() const { return shape[3] * shape[4]; }  // of a section
    std::size_t columns() const { return sections() * channels(); }
    std::size_t elements() const { return tokens() * columns(); }
    std::size_t bytes() const { return elements() * quantize::item_bytes(dtype); }
};

// The body. `raw` holds frame.bytes().
std::vector<std::uint8_t> encode(const Frame& frame, std::span<const std::uint8_t> raw);

// False: a body that no encoder makes; what is in `raw` then says nothing.
bool decode(const Frame& frame, std::span<const std::uint8_t> body, std::span<std::uint8_t> raw);

}  // namespace kvstore::lossless
