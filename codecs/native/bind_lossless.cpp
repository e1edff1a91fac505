#include "bind.hpp"
#include "buffer.hpp"
#include "lossless.hpp"
#include "lossless_tables.hpp"

#include <nanobind/stl/array.h>

namespace kvstore {

namespace {

using lossless::Frame;
using quantize::Dtype;
using Axes = std::array<std::size_t, 5>;

Frame frame_of(const std::string& dtype, const Axes& shape, const Axes& steps, std::size_t bytes) {
    Frame frame{Dtype::bf16, shape, steps};
    if (dtype == "float16") {
        frame.dtype = Dtype::fp16;
    } else if (dtype == "float32") {
        frame.dtype = Dtype::fp32;
    } else if (dtype != "bfloat16") {
        throw nb::value_error(("values are bfloat16, float16 or float32, not " + dtype).c_str());
    }
    std::size_t last = 0;
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        if (shape[axis] == 0 || shape[axis] > bytes || steps[axis] > bytes)
            throw nb::value_error("the shape and steps do not fit the elements");
        last += (shape[axis] - 1) * steps[axis];
    }
    if (frame.bytes() != bytes || (last + 1) * quantize::item_bytes(frame.dtype) > bytes)
        throw nb::value_error("the elements have another length than the shape says");
    return frame;
}

nb::bytes encode(const std::string& dtype, const Axes& shape, const Axes& steps, nb::handle raw_object) {
    const BufferView raw(raw_object, "raw");
    const Frame frame = frame_of(dtype, shape, steps, raw.bytes());
    std::vector<std::uint8_t> body;
    {
        const ReleaseGilFor release(raw.bytes());
        body = lossless::encode(frame, {raw.data(), raw.bytes()});
    }
    return nb::bytes(body.data(), body.size());
}

bool decode(const std::string& dtype, const Axes& shape, const Axes& steps, nb::handle body_object,
            nb::handle out_object) {
    const BufferView body(body_object, "body");
    const BufferView out(out_object, "out", true);
    const Frame frame = frame_of(dtype, shape, steps, out.bytes());
    const ReleaseGilFor release(out.bytes());
    return lossless::decode(frame, {body.data(), body.bytes()}, {out.data(), out.bytes()});
}

nb::bytes words(const std::uint16_t (&table)[lossless::kTables][lossless::kSymbols]) {
    return nb::bytes(reinterpret_cast<const char*>(table), sizeof table);
}

}  // namespace

void bind_lossless(nb::module_& m) {
    using namespace nb::literals;
    m.def("lossless_encode", encode, "dtype"_a, "shape"_a, "steps"_a, "raw"_a);
    m.def("lossless_decode", decode, "dtype"_a, "shape"_a, "steps"_a, "body"_a, "out"_a);
    m.def("lossless_freqs", [] { return words(lossless::kFreqs); });
    m.def("lossless_costs", [] { return words(lossless::kCosts); });
}

}  // namespace kvstore
