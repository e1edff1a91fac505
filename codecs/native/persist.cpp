#include "persist.hpp"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace kvstore {

namespace {

constexpr std::uintptr_t kLine = 64;

#if defined(__x86_64__)
bool cpu_has_clwb() {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & bit_CLWB) != 0;
}

__attribute__((target("clwb"))) void write_lines(std::uintptr_t line, std::uintptr_t end) {
    for (; line < end; line += kLine) _mm_clwb(reinterpret_cast<void*>(line));
}

void flush_lines(std::uintptr_t line, std::uintptr_t end) {
    for (; line < end; line += kLine) _mm_clflush(reinterpret_cast<void*>(line));
}
#endif

}  // namespace

void write_back(const std::uint8_t* data, std::size_t length) {
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    const std::uintptr_t line = begin / kLine * kLine, end = begin + length;
#if defined(__x86_64__)
    static const bool has_clwb = cpu_has_clwb();
    has_clwb ? write_lines(line, end) : flush_lines(line, end);
#elif defined(__aarch64__)
    for (std::uintptr_t at = line; at < end; at += kLine) asm volatile("dc cvac, %0" ::"r"(at) : "memory");
#else
    static_cast<void>(line), static_cast<void>(end);
#endif
}

void drain() {
#if defined(__x86_64__)
    _mm_sfence();
#elif defined(__aarch64__)
    asm volatile("dsb ish" ::: "memory");
#endif
    std::atomic_thread_fence(std::memory_order_seq_cst);
}

}  // namespace kvstore
