// The inner loops of XXH3's long path, one set for each instruction set, and what they share.
#pragma once

#include "xxh3.hpp"

#include <cstring>

namespace kvstore::xxh3 {

inline constexpr std::size_t kStripeBytes = 64;
inline constexpr std::size_t kStripesPerBlock = 16;
inline constexpr std::size_t kBlockBytes = kStripeBytes * kStripesPerBlock;
inline constexpr std::size_t kSecretBytes = 192;
inline constexpr std::size_t kSecretStep = 8;
inline constexpr std::size_t kScrambleSecret = kSecretBytes - kStripeBytes;
inline constexpr std::size_t kLastStripeSecret = kScrambleSecret - 7;
inline constexpr std::size_t kShortLimit = 240;

// How far ahead a copying loop reads: the hardware's own prefetch stops at each page's end.
inline constexpr std::size_t kPrefetchBytes = 2048;

inline constexpr std::uint64_t kPrime32_1 = 0x9E3779B1U;
inline constexpr std::uint64_t kPrime32_2 = 0x85EBCA77U;
inline constexpr std::uint64_t kPrime32_3 = 0xC2B2AE3DU;
inline constexpr std::uint64_t kPrime64_1 = 0x9E3779B185EBCA87ULL;
inline constexpr std::uint64_t kPrime64_2 = 0xC2B2AE3D27D4EB4FULL;
inline constexpr std::uint64_t kPrime64_3 = 0x165667B19E3779F9ULL;
inline constexpr std::uint64_t kPrime64_4 = 0x85EBCA77C2B2AE63ULL;
inline constexpr std::uint64_t kPrime64_5 = 0x27D4EB2F165667C5ULL;

extern const std::uint8_t kSecret[kSecretBytes];

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "kvstore's formats are read as little-endian words");

inline std::uint32_t read32(const std::uint8_t* p) {
    std::uint32_t value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

inline std::uint64_t read64(const std::uint8_t* p) {
    std::uint64_t value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

struct Product {
    std::uint64_t low;
    std::uint64_t high;
};

__extension__ typedef unsigned __int128 uint128;

inline Product multiply(std::uint64_t a, std::uint64_t b) {
    const uint128 product = static_cast<uint128>(a) * b;
    return {static_cast<std::uint64_t>(product), static_cast<std::uint64_t>(product >> 64)};
}

inline std::uint64_t multiply_fold(std::uint64_t a, std::uint64_t b) {
    const Product product = multiply(a, b);
    return product.low ^ product.high;
}

inline std::uint64_t avalanche(std::uint64_t hash) {
    hash ^= hash >> 37;
    hash *= 0x165667919E3779F9ULL;
    return hash ^ (hash >> 32);
}

std::uint64_t hash64_short(const std::uint8_t* input, std::size_t length);
Hash128 hash128_short(const std::uint8_t* input, std::size_t length);

// `blocks` takes whole blocks, each ended by a scramble, and stores them to `output` unless the mode is
// none; `stripes` takes consecutive stripes, the first against the secret at `secret`.
struct Kernels {
    void (*blocks)(std::uint64_t* accumulators, const std::uint8_t* input, std::size_t count, std::uint8_t* output,
                   Store store);
    void (*stripes)(std::uint64_t* accumulators, const std::uint8_t* input, std::size_t count,
                    const std::uint8_t* secret);
};

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace kvstore::xxh3
