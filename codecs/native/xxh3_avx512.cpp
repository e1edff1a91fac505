// XXH3's inner loops for AVX-512: the eight accumulators in one register, copies from the register that is hashed.
#if defined(__x86_64__)

#include "xxh3_kernels.hpp"

#include <immintrin.h>

// GCC's own intrinsics read an undefined register on purpose and GCC 12 warns of it (its bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define KVSTORE_AVX512 __attribute__((target("avx512f")))
#define KVSTORE_AVX512_INLINE __attribute__((target("avx512f"), always_inline)) inline

namespace kvstore::xxh3 {

namespace {

KVSTORE_AVX512_INLINE __m512i load(const void* p) { return _mm512_loadu_si512(p); }

KVSTORE_AVX512_INLINE __m512i accumulate(__m512i accumulator, __m512i data, const std::uint8_t* secret) {
    const __m512i keyed = _mm512_xor_si512(data, load(secret));
    const __m512i product = _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32));
    const __m512i swapped = _mm512_shuffle_epi32(data, _MM_PERM_BADC);
    return _mm512_add_epi64(product, _mm512_add_epi64(accumulator, swapped));
}

KVSTORE_AVX512_INLINE __m512i scramble(__m512i accumulator) {
    const __m512i prime = _mm512_set1_epi64(static_cast<long long>(kPrime32_1));
    const __m512i mixed = _mm512_xor_si512(accumulator, _mm512_srli_epi64(accumulator, 47));
    const __m512i keyed = _mm512_xor_si512(mixed, load(kSecret + kScrambleSecret));
    const __m512i low = _mm512_mul_epu32(keyed, prime);
    const __m512i high = _mm512_mul_epu32(_mm512_srli_epi64(keyed, 32), prime);
    return _mm512_add_epi64(low, _mm512_slli_epi64(high, 32));
}

template <Store store>
KVSTORE_AVX512_INLINE void put(std::uint8_t* output, __m512i data) {
    if constexpr (store == Store::cached) _mm512_storeu_si512(output, data);
    if constexpr (store == Store::stream) _mm512_stream_si512(reinterpret_cast<__m512i*>(output), data);
    if constexpr (store == Store::stream_16) {
        auto* quarters = reinterpret_cast<__m128i*>(output);
        _mm_stream_si128(quarters, _mm512_castsi512_si128(data));
        _mm_stream_si128(quarters + 1, _mm512_extracti32x4_epi32(data, 1));
        _mm_stream_si128(quarters + 2, _mm512_extracti32x4_epi32(data, 2));
        _mm_stream_si128(quarters + 3, _mm512_extracti32x4_epi32(data, 3));
    }
}

template <Store store>
KVSTORE_AVX512 void run_blocks(std::uint64_t* accumulators, const std::uint8_t* input, std::size_t count,
                               std::uint8_t* output) {
    __m512i sum = load(accumulators);
    for (; count > 0; --count) {
        for (std::size_t i = 0; i < kStripesPerBlock; ++i) {
            const __m512i data = load(input + i * kStripeBytes);
            put<store>(output + i * kStripeBytes, data);
            _mm_prefetch(reinterpret_cast<const char*>(input + i * kStripeBytes + kPrefetchBytes), _MM_HINT_T0);
            sum = accumulate(sum, data, kSecret + i * kSecretStep);
        }
        sum = scramble(sum);
        input += kBlockBytes;
        if constexpr (store != Store::none) output += kBlockBytes;
    }
    _mm512_storeu_si512(accumulators, sum);
    if constexpr (store == Store::stream || store == Store::stream_16) _mm_sfence();
}

void blocks(std::uint64_t* accumulators, const std::uint8_t* input, std::size_t count, std::uint8_t* output,
            Store store) {
    switch (store) {
        case Store::none: return run_blocks<Store::none>(accumulators, input, count, nullptr);
        case Store::cached: return run_blocks<Store::cached>(accumulators, input, count, output);
        case Store::stream: return run_blocks<Store::stream>(accumulators, input, count, output);
        case Store::stream_16: return run_blocks<Store::stream_16>(accumulators, input, count, output);
    }
}

KVSTORE_AVX512 void stripes(std::uint64_t* accumulators, const std::uint8_t* input, std::size_t count,
                            const std::uint8_t* secret) {
    __m512i sum = load(accumulators);
    for (std::size_t i = 0; i < count; ++i)
        sum = accumulate(sum, load(input + i * kStripeBytes), secret + i * kSecretStep);
    _mm512_storeu_si512(accumulators, sum);
}

}  // namespace

const Kernels kAvx512Kernels{blocks, stripes};

}  // namespace kvstore::xxh3

#endif
