#include "copy.hpp"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvstore {

namespace {

constexpr std::size_t kLine = 64;

// How far ahead to read. Measured: a tenth faster than the 2 KiB that suit the slower hashing loop.
constexpr std::size_t kPrefetchBytes = 1024;

std::size_t past_line(const std::uint8_t* p) { return reinterpret_cast<std::uintptr_t>(p) % kLine; }

#if defined(__x86_64__)
// `output` is aligned to a line and `length` a multiple of it.
__attribute__((target("avx2"))) void stream_lines(std::uint8_t* output, const std::uint8_t* input,
                                                  std::size_t length) {
    for (std::size_t i = 0; i < length; i += kLine) {
        const __m256i left = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(input + i));
        const __m256i right = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(input + i + 32));
        _mm_prefetch(reinterpret_cast<const char*>(input + i + kPrefetchBytes), _MM_HINT_T0);
        _mm256_stream_si256(reinterpret_cast<__m256i*>(output + i), left);
        _mm256_stream_si256(reinterpret_cast<__m256i*>(output + i + 32), right);
    }
}
#else
void stream_lines(std::uint8_t* output, const std::uint8_t* input, std::size_t length) {
    std::memcpy(output, input, length);
}
#endif

}  // namespace

Store store_for(const std::uint8_t* output, std::size_t copy_bytes) {
    // Arrays of NumPy's own begin 16 bytes after a page.
    const bool streams = copy_bytes >= kStreamBytes && past_line(output) % 16 == 0;
    if (!streams || simd_level() == SimdLevel::portable) return Store::cached;
    return past_line(output) == 0 ? Store::stream : Store::stream_16;
}

void copy_bytes(std::uint8_t* output, const std::uint8_t* input, std::size_t length) {
    copy_piece(output, input, length, length);
    if (length >= kStreamBytes) end_copy();
}

void end_copy() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

void expect_copy_from(const std::uint8_t* input) {
    for (std::size_t i = 0; i < kPrefetchBytes; i += kLine) __builtin_prefetch(input + i);
}

void copy_piece(std::uint8_t* output, const std::uint8_t* input, std::size_t length, std::size_t whole) {
    if (whole < kStreamBytes || length < kLine || simd_level() == SimdLevel::portable) {
        if (length > 0) std::memcpy(output, input, length);
        return;
    }
    const std::size_t head = (kLine - past_line(output)) % kLine;
    const std::size_t body = (length - head) / kLine * kLine;
    std::memcpy(output, input, head);
    stream_lines(output + head, input + head, body);
    std::memcpy(output + head + body, input + head + body, length - head - body);
}

void copy_hash_ranges(std::uint8_t* output, const std::uint8_t* input, std::size_t length,
                      std::span<const Range> ranges, std::uint8_t* digests) {
    std::size_t done = 0;
    for (const auto& [offset, bytes] : ranges) {
        copy_bytes(output + done, input + done, offset - done);
        xxh3_128_copy(output + offset, input + offset, bytes, store_for(output + offset, length))
            .write_canonical(digests);
        digests += kDigestBytes;
        done = offset + bytes;
    }
    copy_bytes(output + done, input + done, length - done);
}

}  // namespace kvstore
