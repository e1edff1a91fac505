#include "quantize.hpp"

#include "xxh3.hpp"

namespace kvstore::quantize {

namespace {

constexpr std::size_t groups(std::size_t length) { return (length + 31) / 32; }

}  // namespace

std::size_t section_bytes(Method method, std::size_t tokens, std::size_t heads, std::size_t dim) {
    const std::size_t rows = tokens * heads;
    switch (method) {
        case Method::int8: return rows * (2 + dim);
        case Method::fp8: return heads * dim * (1 + tokens);
        case Method::int4: return rows * (4 + (dim + 1) / 2);
        case Method::kivi4_k: return 4 * groups(tokens) * heads * dim + rows * ((dim + 1) / 2);
        case Method::kivi4_v: return rows * (4 * groups(dim) + (dim + 1) / 2);
        case Method::kivi2_k: return 4 * groups(tokens) * heads * dim + rows * ((dim + 3) / 4);
        case Method::kivi2_v: return rows * (4 * groups(dim) + (dim + 3) / 4);
    }
    return 0;
}

bool encode(Method method, const Plane& plane, const std::uint8_t* elements, std::uint8_t* section) {
#if defined(__x86_64__)
    if (simd_level() != SimdLevel::portable) return encode_avx2(method, plane, elements, section);
#endif
    return encode_portable(method, plane, elements, section);
}

bool decode(Method method, const Plane& plane, const std::uint8_t* section, std::uint8_t* elements) {
#if defined(__x86_64__)
    if (simd_level() != SimdLevel::portable) return decode_avx2(method, plane, section, elements);
#endif
    return decode_portable(method, plane, section, elements);
}

}  // namespace kvstore::quantize
