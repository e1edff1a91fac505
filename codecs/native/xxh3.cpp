#include "xxh3.hpp"

#include "xxh3_kernels.hpp"

#include <algorithm>
#include <atomic>

namespace kvstore {

namespace xxh3 {

alignas(64) const std::uint8_t kSecret[kSecretBytes] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4,
    0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e,
    0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43,
    0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb,
    0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19,
    0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7,
    0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78,
    0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16,
    0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f,
    0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

namespace {

using Accumulators = std::array<std::uint64_t, 8>;

constexpr Accumulators kInitial = {kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3,
                                   kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1};

SimdLevel best_level() {
#if defined(__x86_64__)
    // XXH3's AVX-512 loop needs the foundation alone.
    if (__builtin_cpu_supports("avx512f")) return SimdLevel::avx512;
    if (__builtin_cpu_supports("avx2")) return SimdLevel::avx2;
#endif
    return SimdLevel::portable;
}

std::atomic<SimdLevel> active_level{best_level()};

const Kernels& kernels() {
#if defined(__x86_64__)
    switch (active_level.load(std::memory_order_relaxed)) {
        case SimdLevel::avx512: return kAvx512Kernels;
        case SimdLevel::avx2: return kAvx2Kernels;
        case SimdLevel::portable: break;
    }
#endif
    return kPortableKernels;
}

std::uint64_t merge(const Accumulators& accumulators, std::size_t secret, std::uint64_t start) {
    std::uint64_t result = start;
    for (std::size_t i = 0; i < 4; ++i)
        result += multiply_fold(accumulators[2 * i] ^ read64(kSecret + secret + 16 * i),
                                accumulators[2 * i + 1] ^ read64(kSecret + secret + 16 * i + 8));
    return avalanche(result);
}

std::uint64_t merge_low(const Accumulators& accumulators, std::uint64_t length) {
    return merge(accumulators, 11, length * kPrime64_1);
}

Hash128 merge_both(const Accumulators& accumulators, std::uint64_t length) {
    return {merge_low(accumulators, length), merge(accumulators, kScrambleSecret - 11, ~(length * kPrime64_2))};
}

// The 1 to 1024 bytes after the last whole block. The 64 bytes before `tail` must be readable.
void finish(Accumulators& accumulators, const std::uint8_t* tail, std::size_t length) {
    const Kernels& kernel = kernels();
    kernel.stripes(accumulators.data(), tail, (length - 1) / kStripeBytes, kSecret);
    kernel.stripes(accumulators.data(), tail + length - kStripeBytes, 1, kSecret + kLastStripeSecret);
}

Accumulators accumulate_long(const std::uint8_t* input, std::size_t length, std::uint8_t* output, Store store) {
    alignas(64) Accumulators accumulators = kInitial;
    // A block is scrambled only when something follows it, so the last byte is never in one.
    const std::size_t count = (length - 1) / kBlockBytes;
    kernels().blocks(accumulators.data(), input, count, output, store);
    const std::size_t done = count * kBlockBytes;
    if (store != Store::none) std::memcpy(output + done, input + done, length - done);
    finish(accumulators, input + done, length - done);
    return accumulators;
}

}  // namespace

}  // namespace xxh3

void Hash128::write_canonical(std::uint8_t* out) const {
    const std::uint64_t words[2] = {__builtin_bswap64(high), __builtin_bswap64(low)};
    std::memcpy(out, words, sizeof words);
}

std::uint64_t xxh3_64(const std::uint8_t* input, std::size_t length) {
    if (length <= xxh3::kShortLimit) return xxh3::hash64_short(input, length);
    return xxh3::merge_low(xxh3::accumulate_long(input, length, nullptr, Store::none), length);
}

Hash128 xxh3_128(const std::uint8_t* input, std::size_t length) {
    if (length <= xxh3::kShortLimit) return xxh3::hash128_short(input, length);
    return xxh3::merge_both(xxh3::accumulate_long(input, length, nullptr, Store::none), length);
}

Hash128 xxh3_128_copy(std::uint8_t* output, const std::uint8_t* input, std::size_t length, Store store) {
    if (length <= xxh3::kShortLimit) {
        if (length > 0) std::memcpy(output, input, length);
        return xxh3::hash128_short(input, length);
    }
    return xxh3::merge_both(xxh3::accumulate_long(input, length, output, store), length);
}

Xxh3State::Xxh3State() : accumulators_(xxh3::kInitial) {}

void Xxh3State::update(const std::uint8_t* input, std::size_t length) {
    total_ += length;
    std::uint8_t* block = pending_.data() + kStripe;
    while (length > 0) {
        if (pending_bytes_ == kBlock) {
            xxh3::kernels().blocks(accumulators_.data(), block, 1, nullptr, Store::none);
            std::memcpy(pending_.data(), block + kBlock - kStripe, kStripe);
            pending_bytes_ = 0;
        }
        if (pending_bytes_ == 0 && length > kBlock) {
            const std::size_t count = (length - 1) / kBlock;
            xxh3::kernels().blocks(accumulators_.data(), input, count, nullptr, Store::none);
            input += count * kBlock;
            length -= count * kBlock;
            std::memcpy(pending_.data(), input - kStripe, kStripe);
        }
        const std::size_t taken = std::min(length, kBlock - pending_bytes_);
        std::memcpy(block + pending_bytes_, input, taken);
        pending_bytes_ += taken;
        input += taken;
        length -= taken;
    }
}

Hash128 Xxh3State::digest() const {
    const std::uint8_t* block = pending_.data() + kStripe;
    if (total_ <= xxh3::kShortLimit) return xxh3::hash128_short(block, static_cast<std::size_t>(total_));
    xxh3::Accumulators accumulators = accumulators_;
    xxh3::finish(accumulators, block, pending_bytes_);
    return xxh3::merge_both(accumulators, total_);
}

SimdLevel simd_level() { return xxh3::active_level.load(std::memory_order_relaxed); }

bool simd_supported(SimdLevel level) { return level <= xxh3::best_level(); }

void set_simd_level(SimdLevel level) { xxh3::active_level.store(level, std::memory_order_relaxed); }

}  // namespace kvstore
