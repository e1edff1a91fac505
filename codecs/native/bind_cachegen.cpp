// cachegen for Python; kvstore/codecs/cachegen/native.py says what the arrays mean.
#include "bind.hpp"
#include "buffer.hpp"
#include "cachegen.hpp"

#include <nanobind/stl/array.h>

#include <array>
#include <limits>
#include <utility>

namespace kvstore {

namespace {

using cachegen::Dtype;
using cachegen::Layer;
using cachegen::Side;
using cachegen::Status;
using cachegen::View;

constexpr std::size_t kFloatRows = 9;
constexpr std::size_t kMostElements = std::size_t{1} << 40;

using Four = std::array<std::size_t, 4>;

[[noreturn]] void refuse(const char* reason) { throw nb::value_error(reason); }

Dtype dtype_of(const std::string& name) {
    if (name == "bfloat16") return Dtype::bf16;
    if (name == "float16") return Dtype::fp16;
    if (name == "float32") return Dtype::fp32;
    refuse("values are bfloat16, float16 or float32");
}

// The view, all of it inside `bytes`.
View view_of(const std::string& dtype, const Four& shape, const Four& strides, std::size_t bytes) {
    View view{dtype_of(dtype), shape[0], shape[1], shape[2], shape[3], strides[0], strides[1], strides[2], strides[3]};
    const std::size_t elements = bytes / cachegen::bytes_of(view.dtype);
    std::size_t count = 1, last = 0;
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (shape[i] == 0 || shape[i] > kMostElements / count || strides[i] > kMostElements) refuse("no such shape");
        count *= shape[i];
        if (shape[i] > 1 && strides[i] > elements / (shape[i] - 1)) refuse("the shape goes outside the buffer");
        last += (shape[i] - 1) * strides[i];
    }
    if (last >= elements) refuse("the shape goes outside the buffer");
    return view;
}

// A layer's arrays at a level: float32 [9, columns] and uint8 [2, columns].
class Arrays {
public:
    Arrays(nb::handle floats, nb::handle tables, std::size_t columns)
        : floats_(floats, "floats"), tables_(tables, "tables"), columns_(columns) {
        if (floats_.bytes() != kFloatRows * columns * sizeof(float) || tables_.bytes() != 2 * columns)
            refuse("floats are float32 [9, columns] and tables uint8 [2, columns]");
    }
    Layer layer(const rans::Bank& bank, std::size_t group) const {
        return {bank, group, row(0), side(0), side(1)};
    }

private:
    const float* row(std::size_t i) const { return reinterpret_cast<const float*>(floats_.data()) + i * columns_; }
    Side side(std::size_t i) const {
        const std::size_t at = 1 + 4 * i;
        return {row(at), row(at + 1), row(at + 2), row(at + 3), tables_.data() + i * columns_};
    }

    BufferView floats_, tables_;
    std::size_t columns_;
};

class CacheGenBank {
public:
    explicit CacheGenBank(nb::handle freqs_object) : bank_(made(freqs_object)) {}

    nb::object encode(nb::handle raw_object, const std::string& dtype, const Four& shape, const Four& strides,
                      std::size_t group, std::size_t first, nb::handle floats, nb::handle tables) const {
        const BufferView raw(raw_object, "raw");
        const View view = view_of(dtype, shape, strides, raw.bytes());
        const Arrays arrays(floats, tables, view.columns());
        if (group < 1 || first < 1 || first > group) refuse("the first group has 1 to `group` tokens");
        std::vector<std::uint8_t> body;
        Status status;
        {
            const ReleaseGilFor release(raw.bytes());
            status = cachegen::encode(arrays.layer(bank_, group), view, raw.data(), first, body);
        }
        if (status == Status::not_encodable) return nb::none();
        if (status != Status::ok) refuse("a column's table is not in the bank");
        return nb::bytes(body.data(), body.size());
    }

    bool decode(nb::handle body_object, nb::handle out_object, const std::string& dtype, const Four& shape,
                const Four& strides, std::size_t group, nb::handle floats, nb::handle tables) const {
        const BufferView body(body_object, "body");
        const BufferView out(out_object, "out", true);
        const View view = view_of(dtype, shape, strides, out.bytes());
        const Arrays arrays(floats, tables, view.columns());
        const ReleaseGilFor release(out.bytes());
        return cachegen::decode(arrays.layer(bank_, group), view, {body.data(), body.bytes()}, out.data()) == Status::ok;
    }

private:
    static rans::Bank made(nb::handle freqs_object) {
        const BufferView freqs(freqs_object, "freqs");
        std::optional<rans::Bank> bank =
            rans::Bank::make({reinterpret_cast<const std::uint16_t*>(freqs.data()), freqs.bytes() / 2});
        if (!bank) refuse("a bank is uint16 [1 to 256 tables, 256 symbols], each table summing to 4096");
        return std::move(*bank);
    }

    rans::Bank bank_;
};

}  // namespace

void bind_cachegen(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<CacheGenBank>(m, "CacheGenBank")
        .def(nb::init<nb::handle>(), "freqs"_a)
        .def("encode", &CacheGenBank::encode, "raw"_a, "dtype"_a, "shape"_a, "strides"_a, "group"_a, "first"_a,
             "floats"_a, "tables"_a)
        .def("decode", &CacheGenBank::decode, "body"_a, "out"_a, "dtype"_a, "shape"_a, "strides"_a, "group"_a,
             "floats"_a, "tables"_a);
}

}  // namespace kvstore
