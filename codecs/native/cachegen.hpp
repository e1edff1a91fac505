// The codec cachegen: anchors, differences to them, static tables. No Python here: the fuzzers link it.
// kvstore/codecs/cachegen/reference.py is the definition, which this follows bit for bit; it has the body's bytes.
#pragma once

#include "rans.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvstore::cachegen {

enum class Dtype { fp32, bf16, fp16 };

inline std::size_t bytes_of(Dtype dtype) { return dtype == Dtype::fp32 ? 4 : 2; }

// How anchors, or differences, are coded: a value for each column.
struct Side {
    const float* step;
    const float* inverse;  // 1 / step
    const float* low;      // the least and the greatest code that the column's table has
    const float* high;
    const std::uint8_t* tables;
};

// A layer at a level. Steps are positive and below 2^101, `low` ≥ −127, `high` ≤ 127, and every table has symbol 0.
struct Layer {
    const rans::Bank& bank;
    std::size_t group;  // tokens, at least 1
    const float* mean;
    Side anchors;
    Side deltas;
};

// Elements [plane, token, head, dim] and how many of them lie from one to the next along each. Columns are plane,
// head, dim, in this order. At least one of each.
struct View {
    Dtype dtype;
    std::size_t planes, tokens, heads, dim;
    std::size_t plane_stride, token_stride, head_stride, dim_stride;

    std::size_t columns() const { return planes * heads * dim; }
};

enum class Status {
    ok,
    corrupt,         // a body that no encoder makes
    not_encodable,   // NaN, infinity, 2^100 or more
    no_such_table,   // a column's table is not in the bank, or lacks a symbol that it should have
};

// The body for the elements at `raw`, the first group having `first` tokens (1 to layer.group).
Status encode(const Layer& layer, const View& view, const std::uint8_t* raw, std::size_t first,
              std::vector<std::uint8_t>& body);

// Decodes a body into the elements at `out`. What is there after another status than ok says nothing.
Status decode(const Layer& layer, const View& view, std::span<const std::uint8_t> body, std::uint8_t* out);

}  // namespace kvstore::cachegen
