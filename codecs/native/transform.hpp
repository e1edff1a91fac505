// The transform codec: sections of channels that are linear in whole numbers, which rANS codes. No Python here: the
// fuzzer links it. docs/codecs.md has the format; codecs/transform/reference.py says what is computed.
#pragma once

#include "rans.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace kvstore::transform {

inline constexpr std::size_t kSectionPad = 8;
inline constexpr std::size_t kColumnPad = 32;
inline constexpr std::size_t kPanel = 16;  // channels or columns that a kernel makes at a time
inline constexpr std::uint8_t kMaxShift = 8;

enum class Status {
    ok,
    corrupt,       // a body that no encoder makes
    not_finite,    // NaN or infinity among the values
    out_of_range,  // whole numbers beyond 16 bits, or beyond 32 bits in sum
};

enum class Dtype { bf16, fp16, fp32 };
enum class Style { half, interleaved };

// What a section is given by; the pointers are read while a plan is made.
struct SectionSource {
    std::size_t column;    // its first
    std::size_t live;      // columns
    std::size_t channels;  // a multiple of the head size
    const std::int8_t* matrix;  // [channels][live]
    const float* scale;         // [channels]
    const float* mean;          // [channels]
    const float* forward;       // [live][channels]
};

struct Section {
    std::size_t column;
    std::size_t live;
    std::size_t channels;
    std::vector<std::int16_t> panels;  // [⌈channels / 16⌉][⌈live / 2⌉][16 channels][2 columns]
    std::vector<float> scale;          // padded to whole panels, as is mean
    std::vector<float> mean;
    std::vector<float> forward;  // [⌈live / 16⌉][channels][16 columns]
    std::vector<float> bias;     // −forward · mean, padded to whole panels

    std::size_t pairs() const { return (live + 1) / 2; }
    std::size_t padded_channels() const { return scale.size(); }
    std::size_t padded_columns() const { return (live + kPanel - 1) / kPanel * kPanel; }
};

// How the keys of one layer are rotated.
struct Rotary {
    std::size_t pairs = 0;  // 0: not
    std::size_t start = 0;
    Style style = Style::half;
};

// Everything about frames of one shape and level. Immutable once made.
struct Plan {
    rans::Bank bank;
    std::vector<std::uint8_t> tables;    // per column
    std::vector<std::int32_t> shift;     // per column
    std::vector<std::int32_t> reach;     // per column: distances from zero up to here have a symbol
    std::vector<float> rounding;         // per column
    std::vector<std::size_t> shifted;    // columns with a shift
    std::size_t bit_planes = 0;
    std::vector<Section> sections;
    std::vector<Rotary> rotary;          // per layer
    std::size_t planes;
    std::size_t heads;
    std::size_t dim;

    // Nothing where the parts do not fit one another.
    static std::optional<Plan> make(std::span<const std::uint16_t> freqs, std::span<const std::uint8_t> tables,
                                    std::span<const std::uint8_t> shift, std::span<const float> rounding,
                                    std::span<const SectionSource> sections, std::span<const Rotary> rotary,
                                    std::size_t planes, std::size_t heads, std::size_t dim);

    std::size_t columns() const { return tables.size(); }
    std::size_t layers() const { return rotary.size(); }
    std::size_t channels() const { return layers() * planes * heads * dim; }
};

// A block's elements as they are stored; strides in elements, for layer, plane, token, head, dim. `cos` and `sin` are
// per layer [coded tokens][pairs], from the first coded token on; for the encoder the inverse rotation's.
struct Elements {
    std::uint8_t* data;
    Dtype dtype;
    std::size_t tokens;
    std::size_t sinks;  // leading tokens that are stored as they are, at most `tokens`
    std::array<std::size_t, 5> strides;
    std::vector<const float*> cos;
    std::vector<const float*> sin;

    std::size_t item() const { return dtype == Dtype::fp32 ? 4 : 2; }
};

// What is in the elements after another status than ok says nothing.
Status decode(const Plan& plan, std::span<const std::uint8_t> body, const Elements& out);

Status encode(const Plan& plan, const Elements& in, std::vector<std::uint8_t>& body);

}  // namespace kvstore::transform
