// The rANS decoder for AVX-512: 32 lanes in two registers, words spread by an expanding move. Needs the foundation
// alone.
#if defined(__x86_64__)

#include "rans_kernels.hpp"

#include <immintrin.h>

#include <algorithm>

// GCC 12 warns of its own header's way to leave a register undefined.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define KVSTORE_AVX512 __attribute__((target("avx512f,popcnt")))
#define KVSTORE_AVX512_INLINE __attribute__((target("avx512f,popcnt"), always_inline)) inline

namespace kvstore::rans {

namespace {

constexpr std::size_t kWidth = 16;  // lanes of a register

KVSTORE_AVX512_INLINE void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

// One token of 16 lanes: their entries; the states move on.
KVSTORE_AVX512_INLINE __m512i step(const int* slots, __m512i base, __m512i& state, const std::uint8_t*& at) {
    const __m512i low12 = _mm512_set1_epi32(kSlots - 1);
    const __m512i index = _mm512_add_epi32(base, _mm512_and_si512(state, low12));
    const __m512i entry = _mm512_i32gather_epi32(index, slots, 4);
    const __m512i high = _mm512_srli_epi32(state, 12);
    const __m512i less = _mm512_and_si512(_mm512_srli_epi32(entry, 8), low12);  // frequency − 1
    const __m512i rest = _mm512_add_epi32(high, _mm512_srli_epi32(entry, 20));
    const __m512i next = _mm512_add_epi32(_mm512_mullo_epi32(less, high), rest);
    const __mmask16 takes = _mm512_cmplt_epu32_mask(next, _mm512_set1_epi32(kLow));
    const __m512i ahead = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    const __m512i words = _mm512_maskz_expand_epi32(takes, ahead);
    state = _mm512_mask_or_epi32(next, takes, _mm512_slli_epi32(next, 16), words);
    at += 2 * static_cast<std::size_t>(__builtin_popcount(takes));
    return entry;
}

KVSTORE_AVX512_INLINE __m512i levels_of(__m512i entry) {
    return _mm512_sub_epi32(_mm512_and_si512(entry, _mm512_set1_epi32(0xFF)), _mm512_set1_epi32(128));
}

struct AsSymbols {
    using Element = std::uint8_t;
    KVSTORE_AVX512_INLINE void begin(const Target&, std::size_t, std::size_t) {}
    KVSTORE_AVX512_INLINE void put(Element* row, __m512i entry, std::size_t) const {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(row), _mm512_cvtepi32_epi8(entry));
    }
};

struct AsLevels {
    using Element = std::int16_t;
    KVSTORE_AVX512_INLINE void begin(const Target&, std::size_t, std::size_t) {}
    KVSTORE_AVX512_INLINE void put(Element* row, __m512i entry, std::size_t) const {
        store(row, _mm512_cvtepi32_epi16(levels_of(entry)));
    }
};

// Scales and means of a block's lanes; those of resting lanes are 0.
struct Affine {
    alignas(64) float scale[kLanes];
    alignas(64) float mean[kLanes];

    void begin(const Target& target, std::size_t first, std::size_t lanes) {
        std::fill_n(scale, kLanes, 0.0F);
        std::fill_n(mean, kLanes, 0.0F);
        std::copy_n(target.scale + first, lanes, scale);
        std::copy_n(target.mean + first, lanes, mean);
    }
    // Product and sum are rounded each: the project is compiled without contraction.
    KVSTORE_AVX512_INLINE __m512 value(__m512i entry, std::size_t lane) const {
        const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(levels_of(entry)), _mm512_load_ps(scale + lane));
        return _mm512_add_ps(product, _mm512_load_ps(mean + lane));
    }
};

struct AsFp32 : Affine {
    using Element = float;
    KVSTORE_AVX512_INLINE void put(Element* row, __m512i entry, std::size_t lane) const {
        _mm512_storeu_ps(row, value(entry, lane));
    }
};

struct AsFp16 : Affine {
    using Element = std::uint16_t;
    KVSTORE_AVX512_INLINE void put(Element* row, __m512i entry, std::size_t lane) const {
        store(row, _mm512_cvtps_ph(value(entry, lane), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
};

struct AsBf16 : Affine {
    using Element = std::uint16_t;
    // Finite values and infinities; scales and means are finite, so there is no NaN.
    KVSTORE_AVX512_INLINE void put(Element* row, __m512i entry, std::size_t lane) const {
        const __m512i bits = _mm512_castps_si512(value(entry, lane));
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
        store(row, _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
    }
};

template <typename As>
KVSTORE_AVX512 bool decode_block(const DecodeJob& job, std::size_t first, Words& words, States& states) {
    const std::size_t lanes = std::min(kLanes, job.tables.size() - first);
    const auto* const slots = reinterpret_cast<const int*>(job.bank.slots());
    const States bases = bases_of(job, first);
    const __m512i base0 = _mm512_loadu_si512(bases.data());
    const __m512i base1 = _mm512_loadu_si512(bases.data() + kWidth);
    As as;
    as.begin(job.target, first, lanes);
    typename As::Element* row = static_cast<typename As::Element*>(job.target.data) + first;
    typename As::Element partial[kLanes];
    __m512i state0 = _mm512_loadu_si512(states.data());
    __m512i state1 = _mm512_loadu_si512(states.data() + kWidth);
    for (std::size_t token = 0; token < job.tokens; ++token, row += job.target.stride) {
        if (words.at > words.limit && !words.refill()) return false;
        const std::uint8_t* at = words.at;
        const __m512i entry0 = step(slots, base0, state0, at);
        const __m512i entry1 = step(slots, base1, state1, at);
        words.at = at;
        auto* const to = lanes == kLanes ? row : partial;
        as.put(to, entry0, 0);
        as.put(to + kWidth, entry1, kWidth);
        if (lanes != kLanes) std::memcpy(row, partial, lanes * sizeof *row);
    }
    _mm512_storeu_si512(states.data(), state0);
    _mm512_storeu_si512(states.data() + kWidth, state1);
    return true;
}

template <typename As>
bool decode_as(const DecodeJob& job, Words& words, States& states) {
    for (std::size_t first = 0; first < job.tables.size(); first += kLanes)
        if (!decode_block<As>(job, first, words, states)) return false;
    return true;
}

}  // namespace

bool avx512_usable() {
    static const bool usable = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("popcnt");
    return usable;
}

bool decode_avx512(const DecodeJob& job, Words& words, States& states) {
    switch (job.target.format) {
        case Format::symbols: return decode_as<AsSymbols>(job, words, states);
        case Format::levels: return decode_as<AsLevels>(job, words, states);
        case Format::bf16: return decode_as<AsBf16>(job, words, states);
        case Format::fp16: return decode_as<AsFp16>(job, words, states);
        case Format::fp32: return decode_as<AsFp32>(job, words, states);
    }
    return false;
}

}  // namespace kvstore::rans

#endif
