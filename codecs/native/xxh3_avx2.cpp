// XXH3's inner loops for AVX2: the eight accumulators in two registers, copies from the register that is hashed.
#if defined(__x86_64__)

#include "xxh3_kernels.hpp"

#include <immintrin.h>

#define KVSTORE_AVX2 __attribute__((target("avx2")))
#define KVSTORE_AVX2_INLINE __attribute__((target("avx2"), always_inline)) inline

namespace kvstore::xxh3 {

namespace {

KVSTORE_AVX2_INLINE __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

KVSTORE_AVX2_INLINE __m256i accumulate(__m256i accumulator, __m256i data, const std::uint8_t* secret) {
    const __m256i keyed = _mm256_xor_si256(data, load(secret));
    const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
    const __m256i swapped = _mm256_shuffle_epi32(data, _MM_SHUFFLE(1, 0, 3, 2));
    return _mm256_add_epi64(product, _mm256_add_epi64(accumulator, swapped));
}

KVSTORE_AVX2_INLINE __m256i scramble(__m256i accumulator, const std::uint8_t* secret) {
    const __m256i prime = _mm256_set1_epi64x(static_cast<long long>(kPrime32_1));
    const __m256i mixed = _mm256_xor_si256(accumulator, _mm256_srli_epi64(accumulator, 47));
    const __m256i keyed = _mm256_xor_si256(mixed, load(secret));
    const __m256i low = _mm256_mul_epu32(keyed, prime);
    const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(keyed, 32), prime);
    return _mm256_add_epi64(low, _mm256_slli_epi64(high, 32));
}

template <Store store>
KVSTORE_AVX2_INLINE void put(std::uint8_t* output, __m256i data) {
    auto* target = reinterpret_cast<__m256i*>(output);
    if constexpr (store == Store::cached) _mm256_storeu_si256(target, data);
    if constexpr (store == Store::stream) _mm256_stream_si256(target, data);
    if constexpr (store == Store::stream_16) {
        auto* halves = reinterpret_cast<__m128i*>(output);
        _mm_stream_si128(halves, _mm256_castsi256_si128(data));
        _mm_stream_si128(halves + 1, _mm256_extracti128_si256(data, 1));
    }
}

template <Store store>
KVSTORE_AVX2 void run_blocks(std::uint64_t* accumulators, const std::uint8_t* input, std::size_t count,
                             std::uint8_t* output) {
    __m256i first = load(accumulators);
    __m256i second = load(accumulators + 4);
    for (; count > 0; --count) {
        for (std::size_t i = 0; i < kStripesPerBlock; ++i) {
            const __m256i left = load(input + i * kStripeBytes);
            const __m256i right = load(input + i * kStripeBytes + 32);
            put<store>(output + i * kStripeBytes, left);
            put<store>(output + i * kStripeBytes + 32, right);
            _mm_prefetch(reinterpret_cast<const char*>(input + i * kStripeBytes + kPrefetchBytes), _MM_HINT_T0);
            first = accumulate(first, left, kSecret + i * kSecretStep);
            second = accumulate(second, right, kSecret + i * kSecretStep + 32);
        }
        first = scramble(first, kSecret + kScrambleSecret);
        second = scramble(second, kSecret + kScrambleSecret + 32);
        input += kBlockBytes;
        if constexpr (store != Store::none) output += kBlockBytes;
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(accumulators), first);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(accumulators + 4), second);
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

KVSTORE_AVX2 void stripes(std::uint64_t* accumulators, const std::uint8_t* input, std::size_t count,
                          const std::uint8_t* secret) {
    __m256i first = load(accumulators);
    __m256i second = load(accumulators + 4);
    for (std::size_t i = 0; i < count; ++i) {
        first = accumulate(first, load(input + i * kStripeBytes), secret + i * kSecretStep);
        second = accumulate(second, load(input + i * kStripeBytes + 32), secret + i * kSecretStep + 32);
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(accumulators), first);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(accumulators + 4), second);
}

}  // namespace

const Kernels kAvx2Kernels{blocks, stripes};

}  // namespace kvstore::xxh3

#endif
