// The transform's loops in plain C++.
#include "float_formats.hpp"
#include "transform_kernels.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace kvstore::transform {

namespace {

float fp16_value(std::uint16_t bits) {
    const auto sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
    const std::uint32_t size = bits & 0x7FFFU;
    if (size >= 0x7C00U) return std::bit_cast<float>(sign | 0x7F800000U | (size & 0x3FFU) << 13);
    if (size < 0x400U) {  // steps of 2^-24
        const float value = static_cast<float>(size) * 0x1p-24F;
        return sign != 0 ? -value : value;
    }
    return std::bit_cast<float>(sign | ((size << 13) + 0x38000000U));
}

void inverse(const Section& section, const std::int16_t* q, std::size_t q_stride, std::size_t tokens, float* values,
             std::size_t stride) {
    const std::size_t pairs = section.pairs();
    for (std::size_t t = 0; t < tokens; ++t) {
        const std::int16_t* row = q + t * q_stride;
        for (std::size_t first = 0; first < section.padded_channels(); first += kPanel) {
            const std::int16_t* panel = section.panels.data() + first * 2 * pairs;
            std::array<std::uint32_t, kPanel> sums{};  // unsigned: they wrap
            for (std::size_t pair = 0; pair < pairs; ++pair, panel += 2 * kPanel)
                for (std::size_t c = 0; c < kPanel; ++c)
                    sums[c] += static_cast<std::uint32_t>(row[2 * pair] * panel[2 * c] +
                                                          row[2 * pair + 1] * panel[2 * c + 1]);
            for (std::size_t c = 0; c < kPanel; ++c) {
                const float product = static_cast<float>(static_cast<std::int32_t>(sums[c])) * section.scale[first + c];
                values[t * stride + first + c] = product + section.mean[first + c];
            }
        }
    }
}

void forward(const Section& section, const float* values, std::size_t values_stride, std::size_t tokens, float* steps,
             std::size_t stride) {
    const float* panel = section.forward.data();
    for (std::size_t first = 0; first < section.padded_columns(); first += kPanel, panel += section.channels * kPanel) {
        for (std::size_t t = 0; t < tokens; ++t) {
            std::array<float, kPanel> sums;
            std::copy_n(section.bias.data() + first, kPanel, sums.begin());
            for (std::size_t j = 0; j < section.channels; ++j)
                for (std::size_t c = 0; c < kPanel; ++c) sums[c] += values[t * values_stride + j] * panel[j * kPanel + c];
            std::copy(sums.begin(), sums.end(), steps + t * stride + first);
        }
    }
}

bool quantize(const QuantizeJob& job) {
    for (std::size_t t = 0; t < job.tokens; ++t) {
        for (std::size_t c = 0; c < job.columns; ++c) {
            const float value = job.steps[t * job.steps_stride + c];
            const float size = std::fabs(value) + job.rounding[c];
            if (!(size < 32768.0F)) return false;
            const auto whole = static_cast<std::int32_t>(size);
            if (job.sums != nullptr) job.sums[t] += whole;
            put_symbol(job, t, c, std::signbit(value) ? -whole : whole);
        }
    }
    return true;
}

void turn(const TurnJob& job) {
    const std::size_t pairs = job.rotary.pairs;
    const bool halves = job.rotary.style == Style::half;
    const std::size_t apart = halves ? pairs : 1;
    const std::size_t step = halves ? 1 : 2;
    for (std::size_t t = 0; t < job.tokens; ++t) {
        float* row = job.values + t * job.stride + job.rotary.start;
        for (std::size_t i = 0; i < pairs; ++i) {
            float& first = row[i * step];
            float& second = row[i * step + apart];
            const float cos = job.cos[t * pairs + i];
            const float sin = job.sin[t * pairs + i];
            const float turned = first * cos - second * sin;
            second = second * cos + first * sin;
            first = turned;
        }
    }
}

void store(const float* values, const RowsJob& rows) {
    for (std::size_t r = 0; r < rows.rows; ++r, values += rows.stride) {
        std::uint8_t* out = rows.elements + r * rows.elements_stride;
        if (rows.dtype == Dtype::fp32) {
            std::memcpy(out, values, rows.count * sizeof(float));
            continue;
        }
        for (std::size_t i = 0; i < rows.count; ++i) {
            // What float16 cannot reach becomes its largest number.
            const std::uint16_t bits = rows.dtype == Dtype::bf16
                                           ? bf16_bits(values[i])
                                           : fp16_bits(std::clamp(values[i], -kLargestHalf, kLargestHalf));
            std::memcpy(out + 2 * i, &bits, sizeof bits);
        }
    }
}

float value_of(const std::uint8_t* in, Dtype dtype) {
    if (dtype == Dtype::fp32) {
        float value;
        std::memcpy(&value, in, sizeof value);
        return value;
    }
    std::uint16_t bits;
    std::memcpy(&bits, in, sizeof bits);
    return dtype == Dtype::fp16 ? fp16_value(bits) : std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

bool load(const RowsJob& rows, float* values) {
    const std::size_t item = rows.dtype == Dtype::fp32 ? 4 : 2;
    bool finite = true;
    for (std::size_t r = 0; r < rows.rows; ++r, values += rows.stride) {
        for (std::size_t i = 0; i < rows.count; ++i) {
            values[i] = value_of(rows.elements + r * rows.elements_stride + i * item, rows.dtype);
            finite &= (std::bit_cast<std::uint32_t>(values[i]) & 0x7F800000U) != 0x7F800000U;
        }
    }
    return finite;
}

}  // namespace

const Kernels kPortable{inverse, forward, quantize, turn, store, load};

}  // namespace kvstore::transform
