// XXH3-64 and XXH3-128 with seed 0 and the default secret, after the specification at
// https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvstore {

struct Hash128 {
    std::uint64_t low;
    std::uint64_t high;

    // The canonical representation: big-endian, high half first.
    void write_canonical(std::uint8_t* out) const;
};

// What happens to the bytes while they are hashed: nothing, a copy through the cache, or a copy with non-temporal
// stores, for which the destination must be 64-byte aligned, or for `stream_16` 16-byte aligned.
enum class Store { none, cached, stream, stream_16 };

std::uint64_t xxh3_64(const std::uint8_t* input, std::size_t length);
Hash128 xxh3_128(const std::uint8_t* input, std::size_t length);

// Hashes `input` and copies it to `output` in the same pass.
Hash128 xxh3_128_copy(std::uint8_t* output, const std::uint8_t* input, std::size_t length, Store store);

// XXH3-128 of bytes that arrive in pieces.
class Xxh3State {
public:
    Xxh3State();
    void update(const std::uint8_t* input, std::size_t length);
    Hash128 digest() const;

private:
    static constexpr std::size_t kBlock = 1024;
    static constexpr std::size_t kStripe = 64;

    alignas(64) std::array<std::uint64_t, 8> accumulators_;
    // The last stripe of a message may begin before its last block: the 64 bytes ahead of the block are kept.
    std::array<std::uint8_t, kStripe + kBlock> pending_{};
    std::size_t pending_bytes_ = 0;
    std::uint64_t total_ = 0;
};

enum class SimdLevel { portable, avx2, avx512 };

SimdLevel simd_level();
bool simd_supported(SimdLevel level);
void set_simd_level(SimdLevel level);

}  // namespace kvstore
