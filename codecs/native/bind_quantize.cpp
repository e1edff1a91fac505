// Codecs over elements: byte planes, quantizers.
#include "bind.hpp"
#include "buffer.hpp"
#include "bytesplit.hpp"

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

}  // namespace

void bind_quantize(nb::module_& m) {
    using namespace nb::literals;
    m.def("split_bytes", split, "dst"_a, "src"_a, "width"_a);
    m.def("join_bytes", join, "dst"_a, "src"_a, "width"_a);
}

}  // namespace kvstore
