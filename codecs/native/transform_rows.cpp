#include "transform_rows.hpp"

#include "xxh3.hpp"

#include <cstring>

namespace kvstore::transform {

const Kernels& kernels() {
#if defined(__x86_64__)
    static const bool avx2 = avx2_usable();
    if (avx2 && simd_level() != SimdLevel::portable) return kAvx2;
#endif
    return kPortable;
}

namespace {

// Elements `dim_step` and `token_step` apart, to or from rows of `dim` next to one another.
template <typename Item, bool to_elements>
void spread(std::uint8_t* elements, std::size_t token_step, std::size_t dim_step, std::uint8_t* row, std::size_t tokens,
            std::size_t dim) {
    for (std::size_t d = 0; d < dim; ++d) {
        for (std::size_t t = 0; t < tokens; ++t) {
            std::uint8_t* there = elements + (t * token_step + d * dim_step) * sizeof(Item);
            std::uint8_t* here = row + (t * dim + d) * sizeof(Item);
            std::memcpy(to_elements ? there : here, to_elements ? here : there, sizeof(Item));
        }
    }
}

}  // namespace

HeadRows::HeadRows(const Plan& plan, const Elements& elements)
    : plan_(plan), elements_(elements), spare_(elements.strides[4] == 1 ? 0 : kTile * plan.dim * elements.item()) {}

std::uint8_t* HeadRows::at(const HeadPlace& place, std::size_t token) const {
    const auto& [layer, plane, step, head, dim] = elements_.strides;
    return elements_.data + (place.layer * layer + place.plane * plane + token * step + place.head * head) * elements_.item();
}

RowsJob HeadRows::rows(const HeadPlace& place, std::size_t first, std::size_t tokens, std::size_t stride) {
    const std::size_t item = elements_.item();
    if (!spare_.empty()) return {spare_.data(), plan_.dim * item, tokens, plan_.dim, elements_.dtype, stride};
    return {at(place, first), elements_.strides[2] * item, tokens, plan_.dim, elements_.dtype, stride};
}

void HeadRows::store(const HeadPlace& place, std::size_t first, std::size_t tokens, const float* values,
                     std::size_t stride) {
    kernels().store(values, rows(place, first, tokens, stride));
    if (spare_.empty()) return;
    const auto move = elements_.item() == 2 ? spread<std::uint16_t, true> : spread<std::uint32_t, true>;
    move(at(place, first), elements_.strides[2], elements_.strides[4], spare_.data(), tokens, plan_.dim);
}

bool HeadRows::load(const HeadPlace& place, std::size_t first, std::size_t tokens, float* values, std::size_t stride) {
    if (!spare_.empty()) {
        const auto move = elements_.item() == 2 ? spread<std::uint16_t, false> : spread<std::uint32_t, false>;
        move(at(place, first), elements_.strides[2], elements_.strides[4], spare_.data(), tokens, plan_.dim);
    }
    return kernels().load(rows(place, first, tokens, stride), values);
}

void HeadRows::turn(const HeadPlace& place, std::size_t coded, std::size_t tokens, float* values,
                    std::size_t stride) const {
    const Rotary& rotary = plan_.rotary[place.layer];
    const std::size_t skip = coded * rotary.pairs;
    kernels().turn({values, stride, tokens, rotary, elements_.cos[place.layer] + skip, elements_.sin[place.layer] + skip});
}

template <typename Move>
void HeadRows::each_sink_row(const Move& move) const {
    const std::size_t dim_step = elements_.strides[4] * elements_.item();
    for (std::size_t layer = 0; layer < plan_.layers(); ++layer)
        for (std::size_t plane = 0; plane < plan_.planes; ++plane)
            for (std::size_t token = 0; token < elements_.sinks; ++token)
                for (std::size_t head = 0; head < plan_.heads; ++head)
                    for (std::size_t d = 0; d < plan_.dim; ++d)
                        move(at({layer, plane, head}, token) + d * dim_step);
}

void HeadRows::put_sinks(const std::uint8_t* raw) {
    each_sink_row([&raw, item = elements_.item()](std::uint8_t* element) {
        std::memcpy(element, raw, item);
        raw += item;
    });
}

void HeadRows::take_sinks(std::uint8_t* raw) const {
    each_sink_row([&raw, item = elements_.item()](const std::uint8_t* element) {
        std::memcpy(raw, element, item);
        raw += item;
    });
}

}  // namespace kvstore::transform
