// A plan from what an artefact gives: matrices laid out as the loops read them.
#include "transform.hpp"

#include <algorithm>
#include <numeric>

namespace kvstore::transform {

namespace {

constexpr std::size_t kMiddle = 128;  // the symbol of zero

std::size_t padded(std::size_t count, std::size_t unit) { return (count + unit - 1) / unit * unit; }

Section laid_out(const SectionSource& source) {
    Section made{source.column, source.live, source.channels, {}, {}, {}, {}, {}};
    const std::size_t channels = padded(source.channels, kPanel);
    const std::size_t pairs = made.pairs();
    const std::size_t columns = made.padded_columns();
    made.panels.resize(channels * 2 * pairs);
    made.forward.resize(columns * source.channels);
    made.scale.assign(source.scale, source.scale + source.channels);
    made.mean.assign(source.mean, source.mean + source.channels);
    made.scale.resize(channels);
    made.mean.resize(channels);
    made.bias.resize(columns);
    for (std::size_t j = 0; j < source.channels; ++j) {
        std::int16_t* panel = made.panels.data() + j / kPanel * kPanel * 2 * pairs + j % kPanel * 2;
        for (std::size_t c = 0; c < source.live; ++c)
            panel[c / 2 * 2 * kPanel + c % 2] = source.matrix[j * source.live + c];
    }
    for (std::size_t c = 0; c < source.live; ++c) {
        const float* row = source.forward + c * source.channels;
        float* panel = made.forward.data() + c / kPanel * kPanel * source.channels + c % kPanel;
        double bias = 0;
        for (std::size_t j = 0; j < source.channels; ++j) {
            panel[j * kPanel] = row[j];
            bias -= static_cast<double>(row[j]) * source.mean[j];
        }
        made.bias[c] = static_cast<float>(bias);
    }
    return made;
}

// How far from zero, both ways, a table has every symbol.
std::int32_t reach_of(const std::uint16_t* freqs) {
    std::size_t reach = 0;
    if (freqs[kMiddle] == 0) return -1;
    while (reach + 1 < kMiddle && freqs[kMiddle - reach - 1] != 0 && freqs[kMiddle + reach + 1] != 0) ++reach;
    return static_cast<std::int32_t>(reach);
}

bool fits(std::span<const SectionSource> sections, std::size_t columns, std::size_t channels, std::size_t dim) {
    std::size_t column = 0;
    for (const SectionSource& section : sections) {
        if (section.column != column || section.channels == 0 || section.channels % dim != 0) return false;
        if (section.live > section.channels || section.channels > channels) return false;
        column += padded(section.live, kSectionPad);
        channels -= section.channels;
    }
    return channels == 0 && padded(column, kColumnPad) == columns;
}

}  // namespace

std::optional<Plan> Plan::make(std::span<const std::uint16_t> freqs, std::span<const std::uint8_t> tables,
                               std::span<const std::uint8_t> shift, std::span<const float> rounding,
                               std::span<const SectionSource> sections, std::span<const Rotary> rotary,
                               std::size_t planes, std::size_t heads, std::size_t dim) {
    std::optional<rans::Bank> bank = rans::Bank::make(freqs);
    const std::size_t columns = tables.size();
    if (!bank || planes == 0 || heads == 0 || dim == 0 || rotary.empty()) return std::nullopt;
    if (shift.size() != columns || rounding.size() != columns || columns >= 1U << 16) return std::nullopt;
    if (!fits(sections, columns, rotary.size() * planes * heads * dim, dim)) return std::nullopt;
    for (const std::uint8_t table : tables)
        if (table >= bank->tables()) return std::nullopt;
    for (const Rotary& each : rotary)
        if (each.pairs > dim / 2 || each.start + 2 * each.pairs > dim) return std::nullopt;
    Plan made{*std::move(bank), {tables.begin(), tables.end()}, {shift.begin(), shift.end()}, {},
              {rounding.begin(), rounding.end()}, {}, 0, {}, {rotary.begin(), rotary.end()}, planes, heads, dim};
    for (std::size_t c = 0; c < columns; ++c) {
        if (shift[c] > kMaxShift) return std::nullopt;
        made.reach.push_back(reach_of(freqs.data() + tables[c] * rans::kSymbols));
        if (shift[c] > 0) made.shifted.push_back(c);
    }
    made.bit_planes = std::accumulate(shift.begin(), shift.end(), std::size_t{0});
    for (const SectionSource& source : sections) made.sections.push_back(laid_out(source));
    return made;
}

}  // namespace kvstore::transform
