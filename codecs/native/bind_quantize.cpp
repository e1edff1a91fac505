// Codecs over elements: byte planes, quantizers.
#include "bind.hpp"
#include "buffer.hpp"
#include "bytesplit.hpp"
#include "quantize.hpp"

#include <nanobind/stl/array.h>

namespace kvstore {

namespace {

std::size_t check_planes(const BufferView& dst, const BufferView& src, unsigned width) {
    if (width != 2 && width != 4) throw nb::value_error("an element has 2 or 4 bytes");
    if (dst.bytes() != src.bytes() || src.bytes() % width != 0)
        throw nb::value_error("both must have the same whole number of elements");
    if (dst.data() < src.data() + src.bytes() && src.data() < dst.data() + dst.bytes())
        throw nb::value_error("the buffers overlap");
    return src.bytes() / width;
}

void split(nb::handle dst_object, nb::handle src_object, unsigned width) {
    const BufferView dst(dst_object, "dst", true);
    const BufferView src(src_object, "src");
    const std::size_t count = check_planes(dst, src, width);
    const ReleaseGilFor release(src.bytes());
    split_bytes(dst.data(), src.data(), count, width);
}

void join(nb::handle dst_object, nb::handle src_object, unsigned width) {
    const BufferView dst(dst_object, "dst", true);
    const BufferView src(src_object, "src");
    const std::size_t count = check_planes(dst, src, width);
    const ReleaseGilFor release(src.bytes());
    join_bytes(dst.data(), src.data(), count, width);
}

using quantize::Dtype;
using quantize::Method;
using quantize::Plane;

// [layer, plane, token, head, dim].
using Axes = std::array<std::size_t, 5>;

Dtype dtype_of(const std::string& name) {
    if (name == "bfloat16") return Dtype::bf16;
    if (name == "float16") return Dtype::fp16;
    if (name == "float32") return Dtype::fp32;
    throw nb::value_error(("values are bfloat16, float16 or float32, not " + name).c_str());
}

Method method_of(const std::string& name, bool first_plane) {
    if (name == "int8") return Method::int8;
    if (name == "fp8") return Method::fp8;
    if (name == "int4") return Method::int4;
    if (name == "kivi:4") return first_plane ? Method::kivi4_k : Method::kivi4_v;
    if (name == "kivi:2") return first_plane ? Method::kivi2_k : Method::kivi2_v;
    throw nb::value_error(("no quantizer '" + name + "'").c_str());
}

// A frame's elements and its body: `each(method, plane, bytes from the first element, bytes from the first section)`.
template <typename Each>
bool for_sections(const std::string& name, const std::string& dtype, const Axes& shape, const Axes& steps,
                  std::size_t element_bytes, std::size_t body_bytes, Each each) {
    const Plane plane{dtype_of(dtype), shape[2], shape[3], shape[4], steps[2], steps[3], steps[4]};
    const std::size_t item = quantize::item_bytes(plane.dtype), elements = element_bytes / item;
    std::size_t last = 0;
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        if (shape[axis] == 0 || shape[axis] > elements || steps[axis] > elements)
            throw nb::value_error("the shape and steps do not fit the elements");
        last += (shape[axis] - 1) * steps[axis];
    }
    if (last >= elements) throw nb::value_error("the last element is outside the buffer");
    std::size_t due = 0;
    for (std::size_t i = 0; i < shape[1]; ++i)
        due += shape[0] * quantize::section_bytes(method_of(name, i == 0), shape[2], shape[3], shape[4]);
    if (due != body_bytes) throw nb::value_error("the body has another length than the shape says");
    const ReleaseGilFor release(element_bytes);
    std::size_t at = 0;
    for (std::size_t layer = 0; layer < shape[0]; ++layer)
        for (std::size_t i = 0; i < shape[1]; ++i) {
            const Method method = method_of(name, i == 0);
            if (!each(method, plane, (layer * steps[0] + i * steps[1]) * item, at)) return false;
            at += quantize::section_bytes(method, shape[2], shape[3], shape[4]);
        }
    return true;
}

bool quantize_frame(const std::string& name, const std::string& dtype, const Axes& shape, const Axes& steps,
                    nb::handle raw_object, nb::handle body_object) {
    const BufferView raw(raw_object, "raw");
    const BufferView body(body_object, "body", true);
    return for_sections(name, dtype, shape, steps, raw.bytes(), body.bytes(),
                        [&](Method method, const Plane& plane, std::size_t from, std::size_t to) {
                            return quantize::encode(method, plane, raw.data() + from, body.data() + to);
                        });
}

bool dequantize_frame(const std::string& name, const std::string& dtype, const Axes& shape, const Axes& steps,
                      nb::handle body_object, nb::handle out_object) {
    const BufferView body(body_object, "body");
    const BufferView out(out_object, "out", true);
    return for_sections(name, dtype, shape, steps, out.bytes(), body.bytes(),
                        [&](Method method, const Plane& plane, std::size_t to, std::size_t from) {
                            return quantize::decode(method, plane, body.data() + from, out.data() + to);
                        });
}

}  // namespace

void bind_quantize(nb::module_& m) {
    using namespace nb::literals;
    m.def("split_bytes", split, "dst"_a, "src"_a, "width"_a);
    m.def("join_bytes", join, "dst"_a, "src"_a, "width"_a);
    m.def("quantize", quantize_frame, "method"_a, "dtype"_a, "shape"_a, "steps"_a, "raw"_a, "body"_a);
    m.def("dequantize", dequantize_frame, "method"_a, "dtype"_a, "shape"_a, "steps"_a, "body"_a, "out"_a);
}

}  // namespace kvstore
