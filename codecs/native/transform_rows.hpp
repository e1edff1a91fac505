// Rows of heads between floats and a block's elements, whatever its strides.
#pragma once

#include "transform_kernels.hpp"

namespace kvstore::transform {

const Kernels& kernels();

// One head of one layer and plane, where it lies among the elements.
struct HeadPlace {
    std::size_t layer;
    std::size_t plane;
    std::size_t head;

    // Of the `index`th run of `dim` channels of a frame.
    static HeadPlace of(const Plan& plan, std::size_t index) {
        return {index / (plan.heads * plan.planes), index / plan.heads % plan.planes, index % plan.heads};
    }
    bool turns(const Plan& plan) const { return plane == 0 && plan.rotary[layer].pairs > 0; }
};

// Moves `tokens` tokens of a head from `first` (counted from the block's first) on. `spare` has room for a tile of a
// head in elements.
class HeadRows {
public:
    HeadRows(const Plan& plan, const Elements& elements);

    void store(const HeadPlace& place, std::size_t first, std::size_t tokens, const float* values, std::size_t stride);
    // False: a value is not finite.
    bool load(const HeadPlace& place, std::size_t first, std::size_t tokens, float* values, std::size_t stride);
    // Rotates keys by the tables of `elements`.
    void turn(const HeadPlace& place, std::size_t coded, std::size_t tokens, float* values, std::size_t stride) const;
    // Bytes of the sinks, [layer][plane][token][head][dim], to or from the elements.
    void put_sinks(const std::uint8_t* raw);
    void take_sinks(std::uint8_t* raw) const;

private:
    std::uint8_t* at(const HeadPlace& place, std::size_t token) const;
    RowsJob rows(const HeadPlace& place, std::size_t first, std::size_t tokens, std::size_t stride);
    template <typename Move>
    void each_sink_row(const Move& move) const;

    const Plan& plan_;
    const Elements& elements_;
    std::vector<std::uint8_t> spare_;
};

}  // namespace kvstore::transform
