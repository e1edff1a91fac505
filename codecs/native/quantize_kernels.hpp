// The quantizers, for one SIMD level: quantize_portable.cpp and quantize_avx2.cpp compile this file.
#pragma once

#include "quantize_rows.hpp"
#include "quantize_tile.hpp"

#include <vector>

namespace kvstore::quantize {

namespace {

inline constexpr std::size_t kGroup = 32;  // kivi's
static_assert(kGroup == kTileTokens, "a group of tokens is a tile");

// Calls `each(first token, tokens, head)` for tiles in the order of the section's rows; stops at a false.
template <typename Each>
bool for_tiles(const Plane& plane, Each each) {
    for (std::size_t first = 0; first < plane.tokens; first += kTileTokens)
        for (std::size_t head = 0; head < plane.heads; ++head)
            if (!each(first, std::min(kTileTokens, plane.tokens - first), head)) return false;
    return true;
}

inline void quantize_row(const float* __restrict row, float zero, float inverse, std::uint8_t* __restrict levels,
                         std::size_t dim) {
    for (std::size_t i = 0; i < dim; ++i)
        levels[i] = static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>((row[i] - zero) * inverse + kRound));
}

inline void dequantize_row(const std::uint8_t* __restrict levels, float zero, float scale, float* __restrict row,
                           std::size_t dim) {
    for (std::size_t i = 0; i < dim; ++i)
        row[i] = static_cast<float>(static_cast<std::int32_t>(levels[i])) * scale + zero;
}

// No clamp is needed anywhere below: a scale is within 2^-8 of the span's part, so that the highest level is not passed
// by half a step, and a zero point is never above the values.

template <typename Float>
bool encode_int8(const Plane& plane, const std::uint8_t* elements, std::uint8_t* section) {
    const Tile tile(plane.dim);
    std::uint8_t* const rows = section + 2 * plane.tokens * plane.heads;
    return for_tiles(plane, [&](std::size_t first, std::size_t tokens, std::size_t head) {
        if (!load_tile<Float>(plane, elements, first, tokens, head, tile)) return false;
        for (std::size_t token = 0; token < tokens; ++token) {
            const std::size_t number = (first + token) * plane.heads + head;
            const std::uint16_t scale = scale_bits(largest_magnitude(tile.row(token), plane.dim), 1.0F / 127.0F);
            put_word(section + 2 * number, scale);
            quantize_row(tile.row(token), 0.0F, 1.0F / from_bf16(scale), rows + number * plane.dim, plane.dim);
        }
        return true;
    });
}

template <typename Float>
bool decode_int8(const Plane& plane, const std::uint8_t* section, std::uint8_t* elements) {
    const std::size_t dim = plane.dim;
    const Tile tile(dim);
    const std::uint8_t* const rows = section + 2 * plane.tokens * plane.heads;
    return for_tiles(plane, [&](std::size_t first, std::size_t tokens, std::size_t head) {
        for (std::size_t token = 0; token < tokens; ++token) {
            const std::size_t number = (first + token) * plane.heads + head;
            const std::uint16_t bits = get_word(section + 2 * number);
            if (!sound_scale(bits)) return false;
            const float scale = from_bf16(bits);
            const std::uint8_t* __restrict const levels = rows + number * dim;
            float* __restrict const row = tile.row(token);
            for (std::size_t i = 0; i < dim; ++i)
                row[i] = static_cast<float>(static_cast<std::int8_t>(levels[i])) * scale;
        }
        store_tile<Float>(plane, elements, first, tokens, head, tile);
        return true;
    });
}

inline std::uint8_t to_e4m3(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t size = bits & 0x7FFFFFFFU;
    const std::uint32_t normal = ((size + 0x7FFFFU + (size >> 20 & 1U)) >> 20) - 960U;
    // Below 2^-6, adding 2^14 leaves the steps of 2^-9 in the mantissa.
    const std::uint32_t small = std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) + 16384.0F) - 0x46800000U;
    const std::uint32_t code = size < 0x3C800000U ? small : normal;
    return static_cast<std::uint8_t>((code < 0x7EU ? code : 0x7EU) | (bits >> 24 & 0x80U));
}

inline float from_e4m3(std::uint8_t byte) {
    const std::uint32_t code = byte & 0x7FU;
    const float normal = std::bit_cast<float>((code << 20) + (120U << 23));
    const float small = static_cast<float>(static_cast<std::int32_t>(code)) * 0x1p-9F;
    const float value = code < 8U ? small : normal;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | static_cast<std::uint32_t>(byte & 0x80U) << 24);
}

template <typename Float>
bool encode_fp8(const Plane& plane, const std::uint8_t* elements, std::uint8_t* section) {
    const std::size_t dim = plane.dim;
    const Tile tile(dim);
    std::vector<std::uint32_t> exponents(plane.heads * dim, 0);
    const bool fit = for_tiles(plane, [&](std::size_t first, std::size_t tokens, std::size_t head) {
        if (!load_tile<Float>(plane, elements, first, tokens, head, tile)) return false;
        std::uint32_t* __restrict const largest = exponents.data() + head * dim;
        for (std::size_t token = 0; token < tokens; ++token) {
            const float* __restrict const row = tile.row(token);
            for (std::size_t i = 0; i < dim; ++i)
                largest[i] = static_cast<std::uint32_t>(std::max(static_cast<std::int32_t>(largest[i]),
                                                                 static_cast<std::int32_t>(magnitude(row[i]))));
        }
        return true;
    });
    if (!fit) return false;
    std::vector<float> inverse(plane.heads * dim);
    for (std::size_t i = 0; i < exponents.size(); ++i) {
        const std::uint32_t exponent = std::max<std::uint32_t>((exponents[i] + 0x1FFFFFU) >> 23, 32);
        section[i] = static_cast<std::uint8_t>(exponent);
        inverse[i] = std::bit_cast<float>((262U - exponent) << 23);
    }
    std::uint8_t* const rows = section + exponents.size();
    return for_tiles(plane, [&](std::size_t first, std::size_t tokens, std::size_t head) {
        if (!load_tile<Float>(plane, elements, first, tokens, head, tile)) return false;
        const float* __restrict const factor = inverse.data() + head * dim;
        for (std::size_t token = 0; token < tokens; ++token) {
            const float* __restrict const row = tile.row(token);
            std::uint8_t* __restrict const codes = rows + ((first + token) * plane.heads + head) * dim;
            for (std::size_t i = 0; i < dim; ++i) codes[i] = to_e4m3(row[i] * factor[i]);
        }
        return true;
    });
}

template <typename Float>
bool decode_fp8(const Plane& plane, const std::uint8_t* section, std::uint8_t* elements) {
    const std::size_t dim = plane.dim;
    const Tile tile(dim);
    std::vector<float> scale(plane.heads * dim);
    for (std::size_t i = 0; i < scale.size(); ++i) {
        if (section[i] < 32 || section[i] > 228) return false;
        scale[i] = std::bit_cast<float>((section[i] - 8U) << 23);
    }
    const std::uint8_t* const rows = section + scale.size();
    return for_tiles(plane, [&](std::size_t first, std::size_t tokens, std::size_t head) {
        const float* __restrict const factor = scale.data() + head * dim;
        std::uint8_t has_nan = 0;
        for (std::size_t token = 0; token < tokens; ++token) {
            const std::uint8_t* __restrict const codes = rows + ((first + token) * plane.heads + head) * dim;
            float* __restrict const row = tile.row(token);
            for (std::size_t i = 0; i < dim; ++i) {
                has_nan = static_cast<std::uint8_t>(has_nan | ((codes[i] & 0x7F) == 0x7F));
                row[i] = from_e4m3(codes[i]) * factor[i];
            }
        }
        if (has_nan != 0) return false;
        store_tile<Float>(plane, elements, first, tokens, head, tile);
        return true;
    });
}

template <typename Float>
bool encode_int4(const Plane& plane, const std::uint8_t* elements, std::uint8_t* section) {
    const std::size_t dim = plane.dim, row_bytes = (dim + 1) / 2, count = plane.tokens * plane.heads;
    const Tile tile(dim);
    std::vector<std::uint8_t> levels(2 * row_bytes, 0);
    return for_tiles(plane, [&](std::size_t first, std::size_t tokens, std::size_t head) {
        if (!load_tile<Float>(plane, elements, first, tokens, head, tile)) return false;
        for (std::size_t token = 0; token < tokens; ++token) {
            const std::size_t number = (first + token) * plane.heads + head;
            float* const row = tile.row(token);
            hadamard(row, dim, dim & -dim);
            float lowest, highest;
            extremes(row, dim, lowest, highest);
            const std::uint16_t zero = bf16_below(lowest);
            const std::uint16_t scale = scale_bits(highest - from_bf16(zero), 1.0F / 15.0F);
            put_word(section + 2 * number, zero);
            put_word(section + 2 * (count + number), scale);
            quantize_row(row, from_bf16(zero), 1.0F / from_bf16(scale), levels.data(), dim);
            pack_row<4>(levels.data(), section + 4 * count + number * row_bytes, row_bytes);
        }
        return true;
    });
}

template <typename Float>
bool decode_int4(const Plane& plane, const std::uint8_t* section, std::uint8_t* elements) {
    const std::size_t dim = plane.dim, size = dim & -dim, row_bytes = (dim + 1) / 2, count = plane.tokens * plane.heads;
    const Tile tile(dim);
    std::vector<std::uint8_t> levels(2 * row_bytes);
    return for_tiles(plane, [&](std::size_t first, std::size_t tokens, std::size_t head) {
        for (std::size_t token = 0; token < tokens; ++token) {
            const std::size_t number = (first + token) * plane.heads + head;
            const std::uint16_t zero = get_word(section + 2 * number), scale = get_word(section + 2 * (count + number));
            if (!sound_zero(zero) || !sound_scale(scale)) return false;
            unpack_row<4>(section + 4 * count + number * row_bytes, levels.data(), row_bytes);
            float* const row = tile.row(token);
            for (std::size_t i = 0; i < dim; ++i) row[i] = static_cast<float>(static_cast<std::int32_t>(levels[i]));
            hadamard(row, dim, size);
            const float step = from_bf16(scale) * (1.0F / static_cast<float>(size));
            for (std::size_t i = 0; i < dim; ++i) row[i] *= step;
            for (std::size_t i = 0; i < dim; i += size) row[i] += from_bf16(zero);
        }
        store_tile<Float>(plane, elements, first, tokens, head, tile);
        return true;
    });
}

// Zero points and scales [groups] of one kivi section: where they are, and where the rows are.
struct KiviSection {
    KiviSection(const Plane& plane, unsigned bits, std::size_t groups)
        : scales(2 * groups), rows(4 * groups), row_bytes((plane.dim * bits + 7) / 8) {}
    std::size_t scales, rows, row_bytes;
};

template <typename Float, unsigned bits>
bool encode_kivi_k(const Plane& plane, const std::uint8_t* elements, std::uint8_t* section) {
    const std::size_t dim = plane.dim;
    const KiviSection at(plane, bits, (plane.tokens + kGroup - 1) / kGroup * plane.heads * dim);
    const Tile tile(dim);
    std::vector<std::uint8_t> levels(8 / bits * at.row_bytes, 0);
    std::vector<float> low(dim), high(dim);
    return for_tiles(plane, [&](std::size_t first, std::size_t tokens, std::size_t head) {
        if (!load_tile<Float>(plane, elements, first, tokens, head, tile)) return false;
        float* __restrict const lowest = low.data();
        float* __restrict const highest = high.data();
        std::copy_n(tile.row(0), dim, lowest);
        std::copy_n(tile.row(0), dim, highest);
        for (std::size_t token = 1; token < tokens; ++token) {
            const float* __restrict const row = tile.row(token);
            for (std::size_t i = 0; i < dim; ++i) {
                lowest[i] = row[i] < lowest[i] ? row[i] : lowest[i];
                highest[i] = row[i] > highest[i] ? row[i] : highest[i];
            }
        }
        std::uint8_t* __restrict const zeros = section + 2 * (first / kGroup * plane.heads + head) * dim;
        for (std::size_t i = 0; i < dim; ++i) {  // from here on: zero points and inverse scales
            const std::uint16_t zero = bf16_below(lowest[i]);
            const std::uint16_t scale = scale_bits(highest[i] - from_bf16(zero), 1.0F / ((1U << bits) - 1));
            put_word(zeros + 2 * i, zero);
            put_word(zeros + at.scales + 2 * i, scale);
            lowest[i] = from_bf16(zero);
            highest[i] = 1.0F / from_bf16(scale);
        }
        for (std::size_t token = 0; token < tokens; ++token) {
            const float* __restrict const row = tile.row(token);
            std::uint8_t* __restrict const level = levels.data();
            for (std::size_t i = 0; i < dim; ++i)
                level[i] = static_cast<std::uint8_t>(
                    std::bit_cast<std::uint32_t>((row[i] - lowest[i]) * highest[i] + kRound));
            pack_row<bits>(level, section + at.rows + ((first + token) * plane.heads + head) * at.row_bytes,
                           at.row_bytes);
        }
        return true;
    });
}

template <typename Float, unsigned bits>
bool decode_kivi_k(const Plane& plane, const std::uint8_t* section, std::uint8_t* elements) {
    const std::size_t dim = plane.dim;
    const KiviSection at(plane, bits, (plane.tokens + kGroup - 1) / kGroup * plane.heads * dim);
    const Tile tile(dim);
    std::vector<std::uint8_t> levels(8 / bits * at.row_bytes);
    std::vector<float> zeros(dim), scales(dim);
    return for_tiles(plane, [&](std::size_t first, std::size_t tokens, std::size_t head) {
        const std::uint8_t* const parameters = section + 2 * (first / kGroup * plane.heads + head) * dim;
        bool sound = true;
        float* __restrict const zero = zeros.data();
        float* __restrict const scale = scales.data();
        for (std::size_t i = 0; i < dim; ++i) {
            const std::uint16_t low = get_word(parameters + 2 * i), step = get_word(parameters + at.scales + 2 * i);
            sound &= sound_zero(low) & sound_scale(step);
            zero[i] = from_bf16(low);
            scale[i] = from_bf16(step);
        }
        if (!sound) return false;
        for (std::size_t token = 0; token < tokens; ++token) {
            unpack_row<bits>(section + at.rows + ((first + token) * plane.heads + head) * at.row_bytes, levels.data(),
                             at.row_bytes);
            const std::uint8_t* __restrict const level = levels.data();
            float* __restrict const row = tile.row(token);
            for (std::size_t i = 0; i < dim; ++i)
                row[i] = static_cast<float>(static_cast<std::int32_t>(level[i])) * scale[i] + zero[i];
        }
        store_tile<Float>(plane, elements, first, tokens, head, tile);
        return true;
    });
}

template <typename Float, unsigned bits>
bool encode_kivi_v(const Plane& plane, const std::uint8_t* elements, std::uint8_t* section) {
    const std::size_t dim = plane.dim, groups = (dim + kGroup - 1) / kGroup;
    const KiviSection at(plane, bits, plane.tokens * plane.heads * groups);
    const Tile tile(dim);
    std::vector<std::uint8_t> levels(8 / bits * at.row_bytes, 0);
    return for_tiles(plane, [&](std::size_t first, std::size_t tokens, std::size_t head) {
        if (!load_tile<Float>(plane, elements, first, tokens, head, tile)) return false;
        for (std::size_t token = 0; token < tokens; ++token) {
            const std::size_t number = (first + token) * plane.heads + head;
            const float* const row = tile.row(token);
            for (std::size_t group = 0; group < groups; ++group) {
                const std::size_t start = group * kGroup, length = std::min(kGroup, dim - start);
                float lowest, highest;
                extremes(row + start, length, lowest, highest);
                const std::uint16_t zero = bf16_below(lowest);
                const std::uint16_t scale = scale_bits(highest - from_bf16(zero), 1.0F / ((1U << bits) - 1));
                std::uint8_t* const parameters = section + 2 * (number * groups + group);
                put_word(parameters, zero);
                put_word(parameters + at.scales, scale);
                quantize_row(row + start, from_bf16(zero), 1.0F / from_bf16(scale), levels.data() + start, length);
            }
            pack_row<bits>(levels.data(), section + at.rows + number * at.row_bytes, at.row_bytes);
        }
        return true;
    });
}

template <typename Float, unsigned bits>
bool decode_kivi_v(const Plane& plane, const std::uint8_t* section, std::uint8_t* elements) {
    const std::size_t dim = plane.dim, groups = (dim + kGroup - 1) / kGroup;
    const KiviSection at(plane, bits, plane.tokens * plane.heads * groups);
    const Tile tile(dim);
    std::vector<std::uint8_t> levels(8 / bits * at.row_bytes);
    return for_tiles(plane, [&](std::size_t first, std::size_t tokens, std::size_t head) {
        for (std::size_t token = 0; token < tokens; ++token) {
            const std::size_t number = (first + token) * plane.heads + head;
            unpack_row<bits>(section + at.rows + number * at.row_bytes, levels.data(), at.row_bytes);
            for (std::size_t group = 0; group < groups; ++group) {
                const std::size_t start = group * kGroup, length = std::min(kGroup, dim - start);
                const std::uint8_t* const parameters = section + 2 * (number * groups + group);
                const std::uint16_t zero = get_word(parameters), scale = get_word(parameters + at.scales);
                if (!sound_zero(zero) || !sound_scale(scale)) return false;
                dequantize_row(levels.data() + start, from_bf16(zero), from_bf16(scale), tile.row(token) + start,
                               length);
            }
        }
        store_tile<Float>(plane, elements, first, tokens, head, tile);
        return true;
    });
}

template <typename Float>
bool encode_as(Method method, const Plane& plane, const std::uint8_t* elements, std::uint8_t* section) {
    switch (method) {
        case Method::int8: return encode_int8<Float>(plane, elements, section);
        case Method::fp8: return encode_fp8<Float>(plane, elements, section);
        case Method::int4: return encode_int4<Float>(plane, elements, section);
        case Method::kivi4_k: return encode_kivi_k<Float, 4>(plane, elements, section);
        case Method::kivi4_v: return encode_kivi_v<Float, 4>(plane, elements, section);
        case Method::kivi2_k: return encode_kivi_k<Float, 2>(plane, elements, section);
        case Method::kivi2_v: return encode_kivi_v<Float, 2>(plane, elements, section);
    }
    return false;
}

template <typename Float>
bool decode_as(Method method, const Plane& plane, const std::uint8_t* section, std::uint8_t* elements) {
    switch (method) {
        case Method::int8: return decode_int8<Float>(plane, section, elements);
        case Method::fp8: return decode_fp8<Float>(plane, section, elements);
        case Method::int4: return decode_int4<Float>(plane, section, elements);
        case Method::kivi4_k: return decode_kivi_k<Float, 4>(plane, section, elements);
        case Method::kivi4_v: return decode_kivi_v<Float, 4>(plane, section, elements);
        case Method::kivi2_k: return decode_kivi_k<Float, 2>(plane, section, elements);
        case Method::kivi2_v: return decode_kivi_v<Float, 2>(plane, section, elements);
    }
    return false;
}

bool encode_any(Method method, const Plane& plane, const std::uint8_t* elements, std::uint8_t* section) {
    switch (plane.dtype) {
        case Dtype::bf16: return encode_as<Bf16>(method, plane, elements, section);
        case Dtype::fp16: return encode_as<Fp16>(method, plane, elements, section);
        case Dtype::fp32: return encode_as<Fp32>(method, plane, elements, section);
    }
    return false;
}

bool decode_any(Method method, const Plane& plane, const std::uint8_t* section, std::uint8_t* elements) {
    switch (plane.dtype) {
        case Dtype::bf16: return decode_as<Bf16>(method, plane, section, elements);
        case Dtype::fp16: return decode_as<Fp16>(method, plane, section, elements);
        case Dtype::fp32: return decode_as<Fp32>(method, plane, section, elements);
    }
    return false;
}

}  // namespace

}  // namespace kvstore::quantize
