// The rANS decoder for AVX2: 32 lanes in four registers; words go to the lanes that take one by a byte shuffle, from a
// table of all 256 masks.
#if defined(__x86_64__)

#include "cpu_features.hpp"
#include "rans_kernels.hpp"

#include <immintrin.h>

#include <algorithm>

#define KVSTORE_AVX2 __attribute__((target("avx2,f16c,popcnt")))
#define KVSTORE_AVX2_INLINE __attribute__((target("avx2,f16c,popcnt"), always_inline)) inline

namespace kvstore::rans {

namespace {

constexpr std::size_t kWidth = 8;  // lanes of a register
constexpr std::size_t kParts = kLanes / kWidth;
constexpr std::uint8_t kZero = 0x80;

// For each mask of lanes: where among the next eight words each lane's is, in bytes; zero where it takes none.
constexpr auto spread_table() {
    std::array<std::array<std::uint8_t, 2 * kWidth>, 256> table{};
    for (std::size_t mask = 0; mask < table.size(); ++mask) {
        std::uint8_t next = 0;
        for (std::size_t lane = 0; lane < kWidth; ++lane) {
            const bool takes = (mask >> lane & 1) != 0;
            table[mask][2 * lane] = takes ? next : kZero;
            table[mask][2 * lane + 1] = takes ? next + 1 : kZero;
            next += takes ? 2 : 0;
        }
    }
    return table;
}

alignas(64) constexpr auto kSpread = spread_table();

struct Four {
    __m256i part[kParts];
};

KVSTORE_AVX2_INLINE __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
KVSTORE_AVX2_INLINE void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

// A gather, by eight loads: as fast on Intel, and a sixth of the decoder's time faster on Zen 3.
KVSTORE_AVX2_INLINE __m256i entries_at(const int* slots, __m256i index) {
    const __m128i low = _mm256_castsi256_si128(index), high = _mm256_extracti128_si256(index, 1);
    const auto a = static_cast<std::uint64_t>(_mm_cvtsi128_si64(low));
    const auto b = static_cast<std::uint64_t>(_mm_extract_epi64(low, 1));
    const auto c = static_cast<std::uint64_t>(_mm_cvtsi128_si64(high));
    const auto d = static_cast<std::uint64_t>(_mm_extract_epi64(high, 1));
    __m128i first = _mm_cvtsi32_si128(slots[static_cast<std::uint32_t>(a)]);
    __m128i second = _mm_cvtsi32_si128(slots[static_cast<std::uint32_t>(c)]);
    first = _mm_insert_epi32(first, slots[a >> 32], 1);
    second = _mm_insert_epi32(second, slots[c >> 32], 1);
    first = _mm_insert_epi32(first, slots[static_cast<std::uint32_t>(b)], 2);
    second = _mm_insert_epi32(second, slots[static_cast<std::uint32_t>(d)], 2);
    first = _mm_insert_epi32(first, slots[b >> 32], 3);
    second = _mm_insert_epi32(second, slots[d >> 32], 3);
    return _mm256_set_m128i(second, first);
}

// One token of eight lanes: their entries; the states move on.
KVSTORE_AVX2_INLINE __m256i step(const int* slots, __m256i base, __m256i& state, const std::uint8_t*& at) {
    const __m256i low12 = _mm256_set1_epi32(kSlots - 1);
    const __m256i index = _mm256_add_epi32(base, _mm256_and_si256(state, low12));
    const __m256i entry = entries_at(slots, index);
    const __m256i high = _mm256_srli_epi32(state, 12);
    const __m256i less = _mm256_and_si256(_mm256_srli_epi32(entry, 8), low12);  // frequency − 1
    const __m256i rest = _mm256_add_epi32(high, _mm256_srli_epi32(entry, 20));
    const __m256i next = _mm256_add_epi32(_mm256_mullo_epi32(less, high), rest);
    const __m256i takes = _mm256_cmpgt_epi32(_mm256_set1_epi32(kLow), next);
    const auto mask = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(takes)));
    const __m128i ahead = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    const __m128i spread = _mm_load_si128(reinterpret_cast<const __m128i*>(kSpread[mask].data()));
    const __m256i words = _mm256_cvtepu16_epi32(_mm_shuffle_epi8(ahead, spread));
    const __m256i moved = _mm256_sllv_epi32(next, _mm256_and_si256(takes, _mm256_set1_epi32(16)));
    state = _mm256_or_si256(moved, words);
    at += 2 * static_cast<std::size_t>(__builtin_popcount(mask));
    return entry;
}

KVSTORE_AVX2_INLINE __m256i levels_of(__m256i entry) {
    return _mm256_sub_epi32(_mm256_and_si256(entry, _mm256_set1_epi32(0xFF)), _mm256_set1_epi32(128));
}

struct AsSymbols {
    using Element = std::uint8_t;
    KVSTORE_AVX2_INLINE void begin(const Target&, std::size_t, std::size_t) {}
    KVSTORE_AVX2_INLINE void put(Element* row, const Four& entries) const {
        const __m256i byte = _mm256_set1_epi32(0xFF);
        const __m256i a = _mm256_packus_epi32(_mm256_and_si256(entries.part[0], byte),
                                              _mm256_and_si256(entries.part[1], byte));
        const __m256i b = _mm256_packus_epi32(_mm256_and_si256(entries.part[2], byte),
                                              _mm256_and_si256(entries.part[3], byte));
        // Packing works in halves: groups of four come out as 0 2 4 6 1 3 5 7.
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        store(row, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order));
    }
};

struct AsLevels {
    using Element = std::int16_t;
    KVSTORE_AVX2_INLINE void begin(const Target&, std::size_t, std::size_t) {}
    KVSTORE_AVX2_INLINE void put(Element* row, const Four& entries) const {
        for (std::size_t i = 0; i < kParts; i += 2) {
            const __m256i both = _mm256_packs_epi32(levels_of(entries.part[i]), levels_of(entries.part[i + 1]));
            store(row + i * kWidth, _mm256_permute4x64_epi64(both, 0xD8));
        }
    }
};

// Scales and means of a block's lanes; those of resting lanes are 0.
struct Affine {
    alignas(32) float scale[kLanes];
    alignas(32) float mean[kLanes];

    void begin(const Target& target, std::size_t first, std::size_t lanes) {
        std::fill_n(scale, kLanes, 0.0F);
        std::fill_n(mean, kLanes, 0.0F);
        std::copy_n(target.scale + first, lanes, scale);
        std::copy_n(target.mean + first, lanes, mean);
    }
    KVSTORE_AVX2_INLINE __m256 value(const Four& entries, std::size_t i) const {
        const __m256 level = _mm256_cvtepi32_ps(levels_of(entries.part[i]));
        const __m256 product = _mm256_mul_ps(level, _mm256_load_ps(scale + i * kWidth));
        return _mm256_add_ps(product, _mm256_load_ps(mean + i * kWidth));
    }
};

struct AsFp32 : Affine {
    using Element = float;
    KVSTORE_AVX2_INLINE void put(Element* row, const Four& entries) const {
        for (std::size_t i = 0; i < kParts; ++i) _mm256_storeu_ps(row + i * kWidth, value(entries, i));
    }
};

struct AsFp16 : Affine {
    using Element = std::uint16_t;
    KVSTORE_AVX2_INLINE void put(Element* row, const Four& entries) const {
        for (std::size_t i = 0; i < kParts; ++i)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(row + i * kWidth),
                             _mm256_cvtps_ph(value(entries, i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
};

struct AsBf16 : Affine {
    using Element = std::uint16_t;
    // Finite values and infinities; scales and means are finite, so there is no NaN.
    KVSTORE_AVX2_INLINE __m256i rounded(const Four& entries, std::size_t i) const {
        const __m256i bits = _mm256_castps_si256(value(entries, i));
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
        return _mm256_srli_epi32(up, 16);
    }
    KVSTORE_AVX2_INLINE void put(Element* row, const Four& entries) const {
        for (std::size_t i = 0; i < kParts; i += 2) {
            const __m256i both = _mm256_packus_epi32(rounded(entries, i), rounded(entries, i + 1));
            store(row + i * kWidth, _mm256_permute4x64_epi64(both, 0xD8));
        }
    }
};

template <typename As>
KVSTORE_AVX2 bool decode_block(const DecodeJob& job, std::size_t first, Words& words, States& states) {
    const std::size_t lanes = std::min(kLanes, job.tables.size() - first);
    const auto* const slots = reinterpret_cast<const int*>(job.bank.slots());
    const States bases = bases_of(job, first);
    As as;
    as.begin(job.target, first, lanes);
    typename As::Element* row = static_cast<typename As::Element*>(job.target.data) + first;
    alignas(32) typename As::Element partial[kLanes];
    Four state, entries;
    for (std::size_t i = 0; i < kParts; ++i) state.part[i] = load(states.data() + i * kWidth);
    for (std::size_t token = 0; token < job.tokens; ++token, row += job.target.stride) {
        if (words.at > words.limit && !words.refill()) return false;
        const std::uint8_t* at = words.at;
        for (std::size_t i = 0; i < kParts; ++i)
            entries.part[i] = step(slots, load(bases.data() + i * kWidth), state.part[i], at);
        words.at = at;
        if (lanes == kLanes) {
            as.put(row, entries);
        } else {
            as.put(partial, entries);
            std::memcpy(row, partial, lanes * sizeof *row);
        }
    }
    for (std::size_t i = 0; i < kParts; ++i) store(states.data() + i * kWidth, state.part[i]);
    return true;
}

template <typename As>
bool decode_as(const DecodeJob& job, Words& words, States& states) {
    for (std::size_t first = 0; first < job.tables.size(); first += kLanes)
        if (!decode_block<As>(job, first, words, states)) return false;
    return true;
}

}  // namespace

bool avx2_usable() {
    static const bool usable = cpu_has_f16c() && __builtin_cpu_supports("popcnt");
    return usable;
}

bool decode_avx2(const DecodeJob& job, Words& words, States& states) {
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
