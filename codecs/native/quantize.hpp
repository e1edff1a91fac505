// The quantizers int8, fp8, int4 and kivi over one plane of one layer, as stored: codecs/quantized.py, hadamard.py and
// kivi.py define what comes out, to the bit. No Python here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvstore::quantize {

enum class Dtype { bf16, fp16, fp32 };

// `kivi4_k` and `kivi2_k` have parameters per channel and group of tokens, `_v` per token and group of channels.
enum class Method { int8, fp8, int4, kivi4_k, kivi4_v, kivi2_k, kivi2_v };

// Where the elements are: [token][head][dim], steps in elements.
struct Plane {
    Dtype dtype;
    std::size_t tokens, heads, dim;
    std::size_t token_step, head_step, dim_step;
};

inline std::size_t item_bytes(Dtype dtype) { return dtype == Dtype::fp32 ? 4 : 2; }

// Length of the section that a plane becomes.
std::size_t section_bytes(Method method, std::size_t tokens, std::size_t heads, std::size_t dim);

// False: a value is not finite or 2^100 and more; what is in the section then says nothing.
bool encode(Method method, const Plane& plane, const std::uint8_t* elements, std::uint8_t* section);

// False: parameters that no encoder writes; what is in the elements then says nothing.
bool decode(Method method, const Plane& plane, const std::uint8_t* section, std::uint8_t* elements);

// The same, compiled for one SIMD level; encode and decode choose by simd_level().
bool encode_portable(Method method, const Plane& plane, const std::uint8_t* elements, std::uint8_t* section);
bool decode_portable(Method method, const Plane& plane, const std::uint8_t* section, std::uint8_t* elements);
#if defined(__x86_64__)
bool encode_avx2(Method method, const Plane& plane, const std::uint8_t* elements, std::uint8_t* section);
bool decode_avx2(Method method, const Plane& plane, const std::uint8_t* section, std::uint8_t* elements);
#endif

}  // namespace kvstore::quantize
