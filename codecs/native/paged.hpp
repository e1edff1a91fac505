// An engine's paged KV cache on one side, a chunk's canonical form on the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvstore::paged {

// One layer of an engine's cache: blocks of equal size, `step` bytes apart.
struct Layer {
    std::uint8_t* blocks;
    std::size_t step;
    std::size_t count;
};

// Where the bytes of a region belong, as moves that a processor is good at. A move takes a tile of `rows` times `columns`
// units, which lie column by column in the block and row by row, `stride` bytes apart, in the canonical form; with one
// row that is a plain copy. `starts` has each tile's first byte in the canonical form.
struct Moves {
    std::size_t unit;
    std::size_t rows;
    std::size_t columns;
    std::size_t stride;
    std::vector<std::uint32_t> starts;

    std::size_t tile_bytes() const { return unit * rows * columns; }
};

// From where each unit of a region belongs, in the order of the block.
Moves moves_of(std::span<const std::uint32_t> offsets, std::size_t unit);

// Where the bytes of a block belong in the canonical form, which is the same in every layer.
//
// A block is cut into regions of equal size, each of one plane (K or V). Region r belongs `bases[r]` and the offsets of
// `tables[kinds[r]]` behind the block's first token in the plane `planes[r]`. Offsets count whole tokens, so they do not
// depend on a chunk's length.
struct Order {
    std::size_t block_bytes;
    std::size_t block_tokens;
    std::size_t row_bytes;    // one token of one plane, all heads
    std::size_t plane_count;  // 2, or 1 where planes are not told apart
    std::vector<std::uint8_t> planes;
    std::vector<std::uint32_t> bases;
    std::vector<std::uint32_t> kinds;
    std::vector<Moves> tables;

    std::size_t region_bytes() const { return block_bytes / planes.size(); }
};

// Copies between blocks and a part `[layer][plane][token][head][dim]` of `part_tokens` tokens. Entry i of `table` is the
// block for the tokens from `(first + i) * block_tokens` on; a negative entry stands for tokens the engine does not hold:
// zeros are read for them.
void read(const Order& order, std::span<const Layer> layers, std::span<const std::int64_t> table, std::size_t first,
          std::size_t part_tokens, std::uint8_t* part);
void write(const Order& order, std::span<const Layer> layers, std::span<const std::int64_t> table, std::size_t first,
           std::size_t part_tokens, const std::uint8_t* part);

}  // namespace kvstore::paged
