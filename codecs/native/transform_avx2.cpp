// The transform's loops for AVX2. Products of whole numbers by vpmaddwd, six tokens by sixteen channels in registers.
#if defined(__x86_64__)

#include "cpu_features.hpp"
#include "transform_kernels.hpp"

#include <immintrin.h>

#include <cstring>

#define KVSTORE_AVX2 __attribute__((target("avx2,fma,f16c")))
#define KVSTORE_AVX2_INLINE __attribute__((target("avx2,fma,f16c"), always_inline)) inline

namespace kvstore::transform {

namespace {

constexpr std::size_t kTokens = 6;  // of a register block: with two vectors of channels, twelve sums
constexpr std::size_t kWidth = 8;

KVSTORE_AVX2_INLINE __m256i load_int(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

KVSTORE_AVX2_INLINE __m256 scaled(__m256i sum, const float* scale, const float* mean) {
    // Not fused: product and sum are rounded each.
    return _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_loadu_ps(scale)), _mm256_loadu_ps(mean));
}

template <std::size_t tokens>
KVSTORE_AVX2_INLINE void inverse_block(const std::int16_t* panel, std::size_t pairs, const std::int16_t* q,
                                       std::size_t q_stride, const float* scale, const float* mean, float* values,
                                       std::size_t stride) {
    __m256i sums[tokens][2];
    for (auto& row : sums) row[0] = row[1] = _mm256_setzero_si256();
    for (std::size_t pair = 0; pair < pairs; ++pair, panel += 2 * kPanel) {
        const __m256i low = load_int(panel);
        const __m256i high = load_int(panel + kPanel);
#pragma GCC unroll 6
        for (std::size_t t = 0; t < tokens; ++t) {
            std::int32_t both;
            std::memcpy(&both, q + t * q_stride + 2 * pair, sizeof both);
            const __m256i spread = _mm256_set1_epi32(both);
            sums[t][0] = _mm256_add_epi32(sums[t][0], _mm256_madd_epi16(spread, low));
            sums[t][1] = _mm256_add_epi32(sums[t][1], _mm256_madd_epi16(spread, high));
            // Token by token: with all products first, as GCC would have it, the sums do not stay in registers.
            asm volatile("" : "+x"(sums[t][0]), "+x"(sums[t][1]));
        }
    }
#pragma GCC unroll 6
    for (std::size_t t = 0; t < tokens; ++t) {
        _mm256_storeu_ps(values + t * stride, scaled(sums[t][0], scale, mean));
        _mm256_storeu_ps(values + t * stride + kWidth, scaled(sums[t][1], scale + kWidth, mean + kWidth));
    }
}

KVSTORE_AVX2 void inverse(const Section& section, const std::int16_t* q, std::size_t q_stride, std::size_t tokens,
                          float* values, std::size_t stride) {
    const std::size_t pairs = section.pairs();
    for (std::size_t first = 0; first < section.padded_channels(); first += kPanel) {
        const std::int16_t* panel = section.panels.data() + first * 2 * pairs;
        const float* scale = section.scale.data() + first;
        const float* mean = section.mean.data() + first;
        std::size_t t = 0;
        for (; t + kTokens <= tokens; t += kTokens)
            inverse_block<kTokens>(panel, pairs, q + t * q_stride, q_stride, scale, mean, values + t * stride + first,
                                   stride);
        for (; t < tokens; ++t)
            inverse_block<1>(panel, pairs, q + t * q_stride, q_stride, scale, mean, values + t * stride + first, stride);
    }
}

template <std::size_t tokens>
KVSTORE_AVX2_INLINE void forward_block(const float* panel, std::size_t channels, const float* values,
                                       std::size_t values_stride, const float* bias, float* steps,
                                       std::size_t stride) {
    __m256 sums[tokens][2];
    for (auto& row : sums) {
        row[0] = _mm256_loadu_ps(bias);
        row[1] = _mm256_loadu_ps(bias + kWidth);
    }
    for (std::size_t j = 0; j < channels; ++j, panel += kPanel) {
        const __m256 low = _mm256_loadu_ps(panel);
        const __m256 high = _mm256_loadu_ps(panel + kWidth);
#pragma GCC unroll 6
        for (std::size_t t = 0; t < tokens; ++t) {
            const __m256 spread = _mm256_broadcast_ss(values + t * values_stride + j);
            sums[t][0] = _mm256_fmadd_ps(spread, low, sums[t][0]);
            sums[t][1] = _mm256_fmadd_ps(spread, high, sums[t][1]);
        }
    }
#pragma GCC unroll 6
    for (std::size_t t = 0; t < tokens; ++t) {
        _mm256_storeu_ps(steps + t * stride, sums[t][0]);
        _mm256_storeu_ps(steps + t * stride + kWidth, sums[t][1]);
    }
}

KVSTORE_AVX2 void forward(const Section& section, const float* values, std::size_t values_stride, std::size_t tokens,
                          float* steps, std::size_t stride) {
    const std::size_t channels = section.channels;
    const float* panel = section.forward.data();
    const float* bias = section.bias.data();
    for (std::size_t first = 0; first < section.padded_columns(); first += kPanel, panel += channels * kPanel) {
        std::size_t t = 0;
        for (; t + kTokens <= tokens; t += kTokens)
            forward_block<kTokens>(panel, channels, values + t * values_stride, values_stride, bias + first,
                                   steps + t * stride + first, stride);
        for (; t < tokens; ++t)
            forward_block<1>(panel, channels, values + t * values_stride, values_stride, bias + first,
                             steps + t * stride + first, stride);
    }
}

// The low byte of each of eight words.
KVSTORE_AVX2_INLINE void store_bytes(std::uint8_t* out, __m256i words) {
    const __m256i bytes = _mm256_shuffle_epi8(
        words, _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m128i both =
        _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), both);
}

KVSTORE_AVX2 bool quantize(const QuantizeJob& job) {
    const __m256 sign_bit = _mm256_set1_ps(-0.0F);
    const __m256 limit = _mm256_set1_ps(32768.0F);
    const __m256i middle = _mm256_set1_epi32(128);
    __m256 inside = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    for (std::size_t t = 0; t < job.tokens; ++t) {
        const float* row = job.steps + t * job.steps_stride;
        const std::size_t out = t * job.stride;
        __m256i total = _mm256_setzero_si256();
        for (std::size_t c = 0; c < job.columns; c += kWidth) {
            const __m256 value = _mm256_loadu_ps(row + c);
            const __m256 size = _mm256_add_ps(_mm256_andnot_ps(sign_bit, value), _mm256_loadu_ps(job.rounding + c));
            inside = _mm256_and_ps(inside, _mm256_cmp_ps(size, limit, _CMP_LT_OQ));
            const __m256i whole = _mm256_cvttps_epi32(size);
            total = _mm256_add_epi32(total, whole);
            const __m256i negative = _mm256_srai_epi32(_mm256_castps_si256(value), 31);
            const __m256i q = _mm256_sub_epi32(_mm256_xor_si256(whole, negative), negative);
            const __m256i high = _mm256_srav_epi32(q, load_int(job.shift + c));
            const __m256i far = _mm256_cmpgt_epi32(_mm256_abs_epi32(high), load_int(job.reach + c));
            if (_mm256_testz_si256(far, far)) [[likely]] {
                store_bytes(job.symbols + out + c, _mm256_add_epi32(high, middle));
                if (job.low != nullptr) store_bytes(job.low + out + c, q);
                continue;
            }
            if (_mm256_movemask_ps(inside) != 0xFF) return false;
            alignas(32) std::int32_t each[kWidth];
            _mm256_store_si256(reinterpret_cast<__m256i*>(each), q);
            for (std::size_t i = 0; i < kWidth; ++i) put_symbol(job, t, c + i, each[i]);
        }
        if (job.sums != nullptr) {
            alignas(32) std::int32_t each[kWidth];
            _mm256_store_si256(reinterpret_cast<__m256i*>(each), total);
            for (const std::int32_t sum : each) job.sums[t] += sum;
        }
    }
    return _mm256_movemask_ps(inside) == 0xFF;
}

KVSTORE_AVX2_INLINE void turn_halves(float* row, std::size_t pairs, const float* cos_row, const float* sin_row) {
    std::size_t i = 0;
    for (; i + kWidth <= pairs; i += kWidth) {
        const __m256 first = _mm256_loadu_ps(row + i);
        const __m256 second = _mm256_loadu_ps(row + i + pairs);
        const __m256 cos = _mm256_loadu_ps(cos_row + i);
        const __m256 sin = _mm256_loadu_ps(sin_row + i);
        _mm256_storeu_ps(row + i, _mm256_sub_ps(_mm256_mul_ps(first, cos), _mm256_mul_ps(second, sin)));
        _mm256_storeu_ps(row + i + pairs, _mm256_add_ps(_mm256_mul_ps(second, cos), _mm256_mul_ps(first, sin)));
    }
    for (; i < pairs; ++i) {
        const float first = row[i];
        const float second = row[i + pairs];
        row[i] = first * cos_row[i] - second * sin_row[i];
        row[i + pairs] = second * cos_row[i] + first * sin_row[i];
    }
}

KVSTORE_AVX2_INLINE void turn_neighbours(float* row, std::size_t pairs, const float* cos_row, const float* sin_row) {
    std::size_t i = 0;
    for (; i + kWidth / 2 <= pairs; i += kWidth / 2) {
        const __m256 value = _mm256_loadu_ps(row + 2 * i);
        const __m128 cos = _mm_loadu_ps(cos_row + i);
        const __m128 sin = _mm_loadu_ps(sin_row + i);
        const __m256 cos_twice = _mm256_set_m128(_mm_unpackhi_ps(cos, cos), _mm_unpacklo_ps(cos, cos));
        const __m256 sin_twice = _mm256_set_m128(_mm_unpackhi_ps(sin, sin), _mm_unpacklo_ps(sin, sin));
        const __m256 swapped = _mm256_permute_ps(value, _MM_SHUFFLE(2, 3, 0, 1));
        _mm256_storeu_ps(row + 2 * i,
                         _mm256_addsub_ps(_mm256_mul_ps(value, cos_twice), _mm256_mul_ps(swapped, sin_twice)));
    }
    for (; i < pairs; ++i) {
        const float first = row[2 * i];
        const float second = row[2 * i + 1];
        row[2 * i] = first * cos_row[i] - second * sin_row[i];
        row[2 * i + 1] = second * cos_row[i] + first * sin_row[i];
    }
}

KVSTORE_AVX2 void turn(const TurnJob& job) {
    const std::size_t pairs = job.rotary.pairs;
    for (std::size_t t = 0; t < job.tokens; ++t) {
        float* row = job.values + t * job.stride + job.rotary.start;
        if (job.rotary.style == Style::half) {
            turn_halves(row, pairs, job.cos + t * pairs, job.sin + t * pairs);
        } else {
            turn_neighbours(row, pairs, job.cos + t * pairs, job.sin + t * pairs);
        }
    }
}

// Eight floats to bfloat16 in the low halves of words; a NaN stays one.
KVSTORE_AVX2_INLINE __m256i to_bf16(__m256 value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, up), 16);
    const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, nan);
}

KVSTORE_AVX2_INLINE __m128i to_fp16(__m256 value) {
    const __m256 most = _mm256_set1_ps(kLargestHalf);
    const __m256 least = _mm256_set1_ps(-kLargestHalf);
    return _mm256_cvtps_ph(_mm256_max_ps(_mm256_min_ps(value, most), least), _MM_FROUND_TO_NEAREST_INT);
}

KVSTORE_AVX2 void store(const float* values, const RowsJob& rows) {
    RowsJob rest = rows;  // what is left of each row by whole vectors
    rest.count = rows.count % (2 * kWidth);
    const std::size_t whole = rows.dtype == Dtype::fp32 ? 0 : rows.count - rest.count;
    if (whole == 0) return kPortable.store(values, rows);
    for (std::size_t r = 0; r < rows.rows; ++r) {
        const float* row = values + r * rows.stride;
        auto* out = reinterpret_cast<__m256i*>(rows.elements + r * rows.elements_stride);
        for (std::size_t i = 0; i < whole; i += 2 * kWidth, ++out) {
            const __m256 low = _mm256_loadu_ps(row + i);
            const __m256 high = _mm256_loadu_ps(row + i + kWidth);
            if (rows.dtype == Dtype::bf16) {
                const __m256i packed = _mm256_packus_epi32(to_bf16(low), to_bf16(high));
                _mm256_storeu_si256(out, _mm256_permute4x64_epi64(packed, _MM_SHUFFLE(3, 1, 2, 0)));
            } else {
                _mm256_storeu_si256(out, _mm256_set_m128i(to_fp16(high), to_fp16(low)));
            }
        }
    }
    rest.elements += 2 * whole;
    if (rest.count > 0) kPortable.store(values + whole, rest);
}

KVSTORE_AVX2_INLINE __m256 widened(const std::uint8_t* in, Dtype dtype) {
    if (dtype == Dtype::fp32) return _mm256_loadu_ps(reinterpret_cast<const float*>(in));
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in));
    if (dtype == Dtype::fp16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

KVSTORE_AVX2 bool load(const RowsJob& rows, float* values) {
    const std::size_t item = rows.dtype == Dtype::fp32 ? 4 : 2;
    const __m256i exponent = _mm256_set1_epi32(0x7F800000);
    RowsJob rest = rows;
    rest.count = rows.count % kWidth;
    const std::size_t whole = rows.count - rest.count;
    __m256i bad = _mm256_setzero_si256();
    for (std::size_t r = 0; r < rows.rows; ++r) {
        const std::uint8_t* in = rows.elements + r * rows.elements_stride;
        for (std::size_t i = 0; i < whole; i += kWidth) {
            const __m256 value = widened(in + i * item, rows.dtype);
            const __m256i bits = _mm256_and_si256(_mm256_castps_si256(value), exponent);
            bad = _mm256_or_si256(bad, _mm256_cmpeq_epi32(bits, exponent));
            _mm256_storeu_ps(values + r * rows.stride + i, value);
        }
    }
    rest.elements += whole * item;
    return (rest.count == 0 || kPortable.load(rest, values + whole)) && _mm256_testz_si256(bad, bad) != 0;
}

}  // namespace

const Kernels kAvx2{inverse, forward, quantize, turn, store, load};

bool avx2_usable() {
    return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 && cpu_has_f16c();
}

}  // namespace kvstore::transform

#endif
