// The quantizers compiled for AVX2. What comes from the standard library is declared before, so that it stays code for
// any processor: other files may be linked with it.
#if defined(__x86_64__)

#include "quantize.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

#include "quantize_kernels.hpp"

namespace kvstore::quantize {

bool encode_avx2(Method method, const Plane& plane, const std::uint8_t* elements, std::uint8_t* section) {
    return encode_any(method, plane, elements, section);
}

bool decode_avx2(Method method, const Plane& plane, const std::uint8_t* section, std::uint8_t* elements) {
    return decode_any(method, plane, section, elements);
}

}  // namespace kvstore::quantize

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
