#include "paged.hpp"

#include "transpose.hpp"

#include <algorithm>
#include <cstring>

namespace kvstore::paged {

namespace {

// Whether `offsets` are groups of `count` that rise by `step`.
bool rises(std::span<const std::uint32_t> offsets, std::size_t count, std::size_t step) {
    for (std::size_t i = 0; i < offsets.size(); ++i)
        if (i % count != 0 && offsets[i] != offsets[i - 1] + step) return false;
    return true;
}

// The most offsets, a divisor of their number, that always rise by `step` in a row.
std::size_t longest_run(std::span<const std::uint32_t> offsets, std::size_t step) {
    std::size_t run = 1;
    while (run < offsets.size() && offsets[run] == offsets[run - 1] + step) ++run;
    while (offsets.size() % run != 0 || !rises(offsets, run, step)) --run;
    return run;
}

std::vector<std::uint32_t> every(std::span<const std::uint32_t> offsets, std::size_t step) {
    std::vector<std::uint32_t> chosen;
    for (std::size_t i = 0; i < offsets.size(); i += step) chosen.push_back(offsets[i]);
    return chosen;
}

template <bool kReading>
void move_tile(const Moves& moves, std::uint8_t* block, std::uint8_t* canonical) {
    if (moves.rows == 1) {
        if constexpr (kReading) {
            std::memcpy(canonical, block, moves.unit);
        } else {
            std::memcpy(block, canonical, moves.unit);
        }
    } else if constexpr (kReading) {
        from_columns(block, canonical, moves.stride, moves.rows, moves.columns, moves.unit);
    } else {
        to_columns(canonical, moves.stride, block, moves.rows, moves.columns, moves.unit);
    }
}

template <bool kReading>
void move_block(const Order& order, std::uint8_t* block, std::uint8_t* canonical, std::size_t plane_bytes) {
    for (std::size_t r = 0; r < order.planes.size(); ++r) {
        const Moves& moves = order.tables[order.kinds[r]];
        std::uint8_t* const base = canonical + order.planes[r] * plane_bytes + order.bases[r];
        for (const std::uint32_t start : moves.starts) {
            move_tile<kReading>(moves, block, base + start);
            block += moves.tile_bytes();
        }
    }
}

template <bool kReading>
void move(const Order& order, std::span<const Layer> layers, std::span<const std::int64_t> table, std::size_t first,
          std::size_t part_tokens, std::uint8_t* part) {
    const std::size_t plane_bytes = part_tokens * order.row_bytes;
    const std::size_t rows_bytes = order.block_tokens * order.row_bytes;
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
        for (std::size_t i = 0; i < table.size(); ++i) {
            std::uint8_t* const rows = part + layer * order.plane_count * plane_bytes + (first + i) * rows_bytes;
            if (table[i] >= 0) {
                std::uint8_t* const block = layers[layer].blocks + static_cast<std::size_t>(table[i]) * layers[layer].step;
                move_block<kReading>(order, block, rows, plane_bytes);
            } else if constexpr (kReading) {
                for (std::size_t plane = 0; plane < order.plane_count; ++plane)
                    std::memset(rows + plane * plane_bytes, 0, rows_bytes);
            }
        }
    }
}

}  // namespace

Moves moves_of(std::span<const std::uint32_t> offsets, std::size_t unit) {
    const std::size_t run = longest_run(offsets, unit);
    const std::vector<std::uint32_t> runs = every(offsets, run);
    Moves moves{run * unit, 1, 1, 0, runs};
    if (!transposes(moves.unit) || runs.size() < 2 || runs[1] <= runs[0]) return moves;
    const std::size_t stride = runs[1] - runs[0];
    const std::size_t rows = longest_run(runs, stride);
    if (rows == 1) return moves;
    const std::vector<std::uint32_t> columns = every(runs, rows);
    moves.rows = rows;
    moves.columns = longest_run(columns, moves.unit);
    moves.stride = stride;
    moves.starts = every(columns, moves.columns);
    return moves;
}

void read(const Order& order, std::span<const Layer> layers, std::span<const std::int64_t> table, std::size_t first,
          std::size_t part_tokens, std::uint8_t* part) {
    move<true>(order, layers, table, first, part_tokens, part);
}

void write(const Order& order, std::span<const Layer> layers, std::span<const std::int64_t> table, std::size_t first,
           std::size_t part_tokens, const std::uint8_t* part) {
    move<false>(order, layers, table, first, part_tokens, const_cast<std::uint8_t*>(part));
}

}  // namespace kvstore::paged
