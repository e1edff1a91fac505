// SipHash-1-3 of a chunk's (scope, key): a client that chooses its keys cannot make them collide without the
// secret. Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace kvstore {

class SipHash {
public:
    explicit SipHash(std::uint64_t secret) : k0_(spread(secret)), k1_(spread(secret + 1)) {}

    std::uint64_t operator()(std::uint32_t scope, const std::uint8_t* key) const {
        State s{k0_ ^ 0x736f6d6570736575ULL, k1_ ^ 0x646f72616e646f6dULL, k0_ ^ 0x6c7967656e657261ULL,
                k1_ ^ 0x7465646279746573ULL};
        std::uint64_t words[4];
        std::memcpy(words, key, sizeof words);
        for (const std::uint64_t word : words) s.absorb(word);
        s.absorb(std::uint64_t{kMessageBytes} << 56 | scope);
        s.v2 ^= 0xFF;
        for (int i = 0; i < 3; ++i) s.round();
        return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
    }

private:
    static constexpr std::uint64_t kMessageBytes = 36;

    struct State {
        std::uint64_t v0, v1, v2, v3;

        void round() {
            v0 += v1;
            v1 = std::rotl(v1, 13) ^ v0;
            v0 = std::rotl(v0, 32);
            v2 += v3;
            v3 = std::rotl(v3, 16) ^ v2;
            v0 += v3;
            v3 = std::rotl(v3, 21) ^ v0;
            v2 += v1;
            v1 = std::rotl(v1, 17) ^ v2;
            v2 = std::rotl(v2, 32);
        }

        void absorb(std::uint64_t word) {
            v3 ^= word;
            round();
            v0 ^= word;
        }
    };

    // One step of SplitMix64: two halves of a key from one number.
    static std::uint64_t spread(std::uint64_t x) {
        x += 0x9E3779B97F4A7C15ULL;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
        return x ^ (x >> 31);
    }

    std::uint64_t k0_;
    std::uint64_t k1_;
};

}  // namespace kvstore
