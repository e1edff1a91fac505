// XXH3 of at most 240 bytes: no accumulators, one formula for each range of lengths.
#include "xxh3_kernels.hpp"

#include <bit>

namespace kvstore::xxh3 {

namespace {

constexpr std::uint64_t kMix = 0x9FB21C651E98DF25ULL;
constexpr std::size_t kMidLastOffset = 136 - 17;
constexpr std::size_t kMidStartOffset = 3;

std::uint64_t avalanche64(std::uint64_t hash) {
    hash ^= hash >> 33;
    hash *= kPrime64_2;
    hash ^= hash >> 29;
    hash *= kPrime64_3;
    return hash ^ (hash >> 32);
}

std::uint64_t secret_pair(std::size_t offset) { return read64(kSecret + offset) ^ read64(kSecret + offset + 8); }

std::uint32_t combine_1_to_3(const std::uint8_t* input, std::size_t length) {
    return (std::uint32_t{input[0]} << 16) | (std::uint32_t{input[length >> 1]} << 24) |
           std::uint32_t{input[length - 1]} | (static_cast<std::uint32_t>(length) << 8);
}

std::uint64_t mix16(const std::uint8_t* input, std::size_t secret) {
    return multiply_fold(read64(input) ^ read64(kSecret + secret), read64(input + 8) ^ read64(kSecret + secret + 8));
}

std::uint64_t hash64_4_to_8(const std::uint8_t* input, std::size_t length) {
    const std::uint64_t word = read32(input + length - 4) + (std::uint64_t{read32(input)} << 32);
    std::uint64_t hash = word ^ secret_pair(8);
    hash ^= std::rotl(hash, 49) ^ std::rotl(hash, 24);
    hash *= kMix;
    hash ^= (hash >> 35) + length;
    hash *= kMix;
    return hash ^ (hash >> 28);
}

std::uint64_t hash64_9_to_16(const std::uint8_t* input, std::size_t length) {
    const std::uint64_t low = read64(input) ^ secret_pair(24);
    const std::uint64_t high = read64(input + length - 8) ^ secret_pair(40);
    return avalanche(length + __builtin_bswap64(low) + high + multiply_fold(low, high));
}

std::uint64_t hash64_17_to_128(const std::uint8_t* input, std::size_t length) {
    std::uint64_t sum = length * kPrime64_1;
    for (std::size_t pair = 0; pair <= (length - 1) / 32; ++pair) {
        sum += mix16(input + 16 * pair, 32 * pair);
        sum += mix16(input + length - 16 * (pair + 1), 32 * pair + 16);
    }
    return avalanche(sum);
}

std::uint64_t hash64_129_to_240(const std::uint8_t* input, std::size_t length) {
    std::uint64_t sum = length * kPrime64_1;
    for (std::size_t round = 0; round < 8; ++round) sum += mix16(input + 16 * round, 16 * round);
    sum = avalanche(sum);
    for (std::size_t round = 8; round < length / 16; ++round)
        sum += mix16(input + 16 * round, 16 * (round - 8) + kMidStartOffset);
    return avalanche(sum + mix16(input + length - 16, kMidLastOffset));
}

Hash128 hash128_1_to_3(const std::uint8_t* input, std::size_t length) {
    const std::uint32_t low = combine_1_to_3(input, length);
    const std::uint32_t high = std::rotl(__builtin_bswap32(low), 13);
    const std::uint32_t flip_low = read32(kSecret) ^ read32(kSecret + 4);
    const std::uint32_t flip_high = read32(kSecret + 8) ^ read32(kSecret + 12);
    return {avalanche64(low ^ flip_low), avalanche64(high ^ flip_high)};
}

Hash128 hash128_4_to_8(const std::uint8_t* input, std::size_t length) {
    const std::uint64_t word = read32(input) + (std::uint64_t{read32(input + length - 4)} << 32);
    Product product = multiply(word ^ secret_pair(16), kPrime64_1 + (length << 2));
    product.high += product.low << 1;
    product.low ^= product.high >> 3;
    product.low ^= product.low >> 35;
    product.low *= kMix;
    product.low ^= product.low >> 28;
    return {product.low, avalanche(product.high)};
}

Hash128 hash128_9_to_16(const std::uint8_t* input, std::size_t length) {
    const std::uint64_t low = read64(input);
    std::uint64_t high = read64(input + length - 8);
    Product product = multiply(low ^ high ^ secret_pair(32), kPrime64_1);
    product.low += static_cast<std::uint64_t>(length - 1) << 54;
    high ^= secret_pair(48);
    product.high += high + std::uint64_t{static_cast<std::uint32_t>(high)} * (kPrime32_2 - 1);
    product.low ^= __builtin_bswap64(product.high);
    Product hash = multiply(product.low, kPrime64_2);
    hash.high += product.high * kPrime64_2;
    return {avalanche(hash.low), avalanche(hash.high)};
}

void mix32(Hash128& sum, const std::uint8_t* first, const std::uint8_t* second, std::size_t secret) {
    sum.low += mix16(first, secret);
    sum.low ^= read64(second) + read64(second + 8);
    sum.high += mix16(second, secret + 16);
    sum.high ^= read64(first) + read64(first + 8);
}

Hash128 finish_mid(const Hash128& sum, std::size_t length) {
    const std::uint64_t high = sum.low * kPrime64_1 + sum.high * kPrime64_4 + length * kPrime64_2;
    return {avalanche(sum.low + sum.high), 0 - avalanche(high)};
}

Hash128 hash128_17_to_128(const std::uint8_t* input, std::size_t length) {
    Hash128 sum{length * kPrime64_1, 0};
    // Unlike the 64-bit sum, this one depends on the order: from the middle outwards.
    for (std::size_t pair = (length - 1) / 32 + 1; pair-- > 0;)
        mix32(sum, input + 16 * pair, input + length - 16 * (pair + 1), 32 * pair);
    return finish_mid(sum, length);
}

Hash128 hash128_129_to_240(const std::uint8_t* input, std::size_t length) {
    Hash128 sum{length * kPrime64_1, 0};
    for (std::size_t i = 0; i < 128; i += 32) mix32(sum, input + i, input + i + 16, i);
    sum = {avalanche(sum.low), avalanche(sum.high)};
    for (std::size_t i = 128; i + 32 <= length; i += 32)
        mix32(sum, input + i, input + i + 16, i - 128 + kMidStartOffset);
    mix32(sum, input + length - 16, input + length - 32, kMidLastOffset - 16);
    return finish_mid(sum, length);
}

}  // namespace

std::uint64_t hash64_short(const std::uint8_t* input, std::size_t length) {
    if (length > 128) return hash64_129_to_240(input, length);
    if (length > 16) return hash64_17_to_128(input, length);
    if (length > 8) return hash64_9_to_16(input, length);
    if (length >= 4) return hash64_4_to_8(input, length);
    if (length > 0) {
        const std::uint32_t flip = read32(kSecret) ^ read32(kSecret + 4);
        return avalanche64(combine_1_to_3(input, length) ^ flip);
    }
    return avalanche64(secret_pair(56));
}

Hash128 hash128_short(const std::uint8_t* input, std::size_t length) {
    if (length > 128) return hash128_129_to_240(input, length);
    if (length > 16) return hash128_17_to_128(input, length);
    if (length > 8) return hash128_9_to_16(input, length);
    if (length >= 4) return hash128_4_to_8(input, length);
    if (length > 0) return hash128_1_to_3(input, length);
    return {avalanche64(secret_pair(64)), avalanche64(secret_pair(80))};
}

}  // namespace kvstore::xxh3
