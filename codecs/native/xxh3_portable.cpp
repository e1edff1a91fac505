// XXH3's inner loops in plain C++: the reference for the others, and what runs where they cannot.
#include "xxh3_kernels.hpp"

namespace kvstore::xxh3 {

namespace {

void accumulate(std::uint64_t* accumulators, const std::uint8_t* input, const std::uint8_t* secret) {
    for (std::size_t lane = 0; lane < 8; ++lane) {
        const std::uint64_t data = read64(input + 8 * lane);
        const std::uint64_t keyed = data ^ read64(secret + 8 * lane);
        accumulators[lane ^ 1] += data;
        accumulators[lane] += (keyed & 0xFFFFFFFFU) * (keyed >> 32);
    }
}

void scramble(std::uint64_t* accumulators) {
    for (std::size_t lane = 0; lane < 8; ++lane) {
        std::uint64_t value = accumulators[lane];
        value ^= value >> 47;
        value ^= read64(kSecret + kScrambleSecret + 8 * lane);
        accumulators[lane] = value * kPrime32_1;
    }
}

void stripes(std::uint64_t* accumulators, const std::uint8_t* input, std::size_t count, const std::uint8_t* secret) {
    for (std::size_t i = 0; i < count; ++i)
        accumulate(accumulators, input + i * kStripeBytes, secret + i * kSecretStep);
}

void blocks(std::uint64_t* accumulators, const std::uint8_t* input, std::size_t count, std::uint8_t* output,
            Store store) {
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint8_t* block = input + i * kBlockBytes;
        stripes(accumulators, block, kStripesPerBlock, kSecret);
        scramble(accumulators);
        if (store != Store::none) std::memcpy(output + i * kBlockBytes, block, kBlockBytes);
    }
}

}  // namespace

const Kernels kPortableKernels{blocks, stripes};

}  // namespace kvstore::xxh3
