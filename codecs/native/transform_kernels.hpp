// What the transform's loops for each SIMD level share.
#pragma once

#include "transform.hpp"

namespace kvstore::transform {

struct Escape {
    std::uint16_t token;
    std::uint16_t column;
    std::int16_t value;
};
static_assert(sizeof(Escape) == 6);

// Tokens that one pass takes from the coder's whole numbers to elements: the floats between stay in the caches.
inline constexpr std::size_t kTile = 48;

inline constexpr float kLargestHalf = 65504.0F;

// Floats [tokens][columns] in units of steps to symbols; what a table has no symbol for goes to `escapes`.
struct QuantizeJob {
    const float* steps;
    std::size_t steps_stride;
    std::size_t tokens;
    std::size_t columns;  // a multiple of 8
    const std::int32_t* shift;
    const std::int32_t* reach;
    const float* rounding;
    std::uint8_t* symbols;
    std::uint8_t* low;  // the low bits; null: no column has any
    std::size_t stride;  // of symbols and low
    std::int64_t* sums;  // [tokens], adds the sizes; null: they cannot be too large
    std::size_t first_token;
    std::size_t first_column;
    std::vector<Escape>* escapes;
};

struct TurnJob {
    float* values;  // of a head's first channel
    std::size_t stride;
    std::size_t tokens;
    Rotary rotary;
    const float* cos;  // [tokens][pairs]
    const float* sin;
};

// Rows of elements next to one another, and of floats `stride` apart.
struct RowsJob {
    std::uint8_t* elements;
    std::size_t elements_stride;  // bytes
    std::size_t rows;
    std::size_t count;  // of a row
    Dtype dtype;
    std::size_t stride;
};

// Strides are in items of what they step over.
struct Kernels {
    // values[t][c] = float(Σ q · panels) · scale[c] + mean[c]
    void (*inverse)(const Section& section, const std::int16_t* q, std::size_t q_stride, std::size_t tokens,
                    float* values, std::size_t stride);
    // steps[t][c] = Σ values · forward + bias[c]
    void (*forward)(const Section& section, const float* values, std::size_t values_stride, std::size_t tokens,
                    float* steps, std::size_t stride);
    // False: a value is beyond 16 bits.
    bool (*quantize)(const QuantizeJob& job);
    void (*turn)(const TurnJob& job);
    void (*store)(const float* values, const RowsJob& rows);
    // False: a value is not finite.
    bool (*load)(const RowsJob& rows, float* values);
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
bool avx2_usable();
#endif

// One whole number in steps to its symbol, low bits or escape. Shared by the ends of vectors.
inline void put_symbol(const QuantizeJob& job, std::size_t token, std::size_t column, std::int32_t q) {
    const std::int32_t high = q >> job.shift[column];
    const bool known = high <= job.reach[column] && -high <= job.reach[column];
    job.symbols[token * job.stride + column] = static_cast<std::uint8_t>(known ? high + 128 : 0);
    if (job.low != nullptr) job.low[token * job.stride + column] = static_cast<std::uint8_t>(q);
    if (!known)
        job.escapes->push_back({static_cast<std::uint16_t>(job.first_token + token),
                                static_cast<std::uint16_t>(job.first_column + column), static_cast<std::int16_t>(q)});
}

}  // namespace kvstore::transform
