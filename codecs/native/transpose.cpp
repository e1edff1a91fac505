#include "transpose.hpp"

#include <cstring>
#include <utility>

namespace kvstore {

namespace {

constexpr std::size_t kVector = 16;

// A tile of N x N units in N vectors of 16 bytes, transposed in log2(N) rounds that interleave vector i with i + N / 2.
template <typename Unit>
struct Tile {
    static constexpr std::size_t kSide = kVector / sizeof(Unit);
    typedef Unit Vector __attribute__((vector_size(kVector)));

    Vector vectors[kSide];

    template <std::size_t... kAt>
    static void interleave(Vector low, Vector high, Vector* out, std::integer_sequence<std::size_t, kAt...>) {
        constexpr auto pick = [](std::size_t at) { return at / 2 + at % 2 * kSide; };
        out[0] = __builtin_shufflevector(low, high, pick(kAt)...);
        out[1] = __builtin_shufflevector(low, high, (pick(kAt) + kSide / 2)...);
    }

    void transpose() {
        for (std::size_t round = 1; round < kSide; round *= 2) {
            Vector next[kSide];
            for (std::size_t i = 0; i < kSide / 2; ++i)
                interleave(vectors[i], vectors[i + kSide / 2], next + 2 * i, std::make_index_sequence<kSide>());
            std::memcpy(vectors, next, sizeof next);
        }
    }

    // `from` rows `from_stride` bytes apart to `to` rows `to_stride` bytes apart.
    static void move(const std::uint8_t* from, std::size_t from_stride, std::uint8_t* to, std::size_t to_stride) {
        Tile tile;
        for (std::size_t i = 0; i < kSide; ++i) std::memcpy(&tile.vectors[i], from + i * from_stride, kVector);
        tile.transpose();
        for (std::size_t i = 0; i < kSide; ++i) std::memcpy(to + i * to_stride, &tile.vectors[i], kVector);
    }
};

// `to[c][r] = from[r][c]` with rows of either `..._stride` bytes apart.
template <typename Unit>
void transpose_edges(const std::uint8_t* from, std::size_t from_stride, std::uint8_t* to, std::size_t to_stride,
                     std::size_t rows, std::size_t columns) {
    for (std::size_t r = 0; r < rows; ++r)
        for (std::size_t c = 0; c < columns; ++c)
            std::memcpy(to + c * to_stride + r * sizeof(Unit), from + r * from_stride + c * sizeof(Unit), sizeof(Unit));
}

template <typename Unit>
void transpose(const std::uint8_t* from, std::size_t from_stride, std::uint8_t* to, std::size_t to_stride,
               std::size_t rows, std::size_t columns) {
    constexpr std::size_t side = Tile<Unit>::kSide;
    const std::size_t whole_rows = rows / side * side, whole_columns = columns / side * side;
    for (std::size_t c = 0; c < whole_columns; c += side)
        for (std::size_t r = 0; r < whole_rows; r += side)
            Tile<Unit>::move(from + r * from_stride + c * sizeof(Unit), from_stride,
                             to + c * to_stride + r * sizeof(Unit), to_stride);
    transpose_edges<Unit>(from + whole_rows * from_stride, from_stride, to + whole_rows * sizeof(Unit), to_stride,
                          rows - whole_rows, columns);
    transpose_edges<Unit>(from + whole_columns * sizeof(Unit), from_stride, to + whole_columns * to_stride, to_stride,
                          whole_rows, columns - whole_columns);
}

// Pairs of rows, interleaved: the compiler has vector code for these.
template <typename Unit>
void interleave_pair(const std::uint8_t* rows, std::size_t stride, std::uint8_t* columns, std::size_t count) {
    for (std::size_t c = 0; c < count; ++c) {
        std::memcpy(columns + 2 * c * sizeof(Unit), rows + c * sizeof(Unit), sizeof(Unit));
        std::memcpy(columns + (2 * c + 1) * sizeof(Unit), rows + stride + c * sizeof(Unit), sizeof(Unit));
    }
}

template <typename Unit>
void part_pair(const std::uint8_t* columns, std::uint8_t* rows, std::size_t stride, std::size_t count) {
    for (std::size_t c = 0; c < count; ++c) {
        std::memcpy(rows + c * sizeof(Unit), columns + 2 * c * sizeof(Unit), sizeof(Unit));
        std::memcpy(rows + stride + c * sizeof(Unit), columns + (2 * c + 1) * sizeof(Unit), sizeof(Unit));
    }
}

template <typename Unit>
void to_columns_of(const std::uint8_t* rows, std::size_t stride, std::uint8_t* columns, std::size_t row_count,
                   std::size_t column_count) {
    if (row_count == 2) return interleave_pair<Unit>(rows, stride, columns, column_count);
    transpose<Unit>(rows, stride, columns, row_count * sizeof(Unit), row_count, column_count);
}

template <typename Unit>
void from_columns_of(const std::uint8_t* columns, std::uint8_t* rows, std::size_t stride, std::size_t row_count,
                     std::size_t column_count) {
    if (row_count == 2) return part_pair<Unit>(columns, rows, stride, column_count);
    transpose<Unit>(columns, row_count * sizeof(Unit), rows, stride, column_count, row_count);
}

}  // namespace

void to_columns(const std::uint8_t* rows, std::size_t stride, std::uint8_t* columns, std::size_t row_count,
                std::size_t column_count, std::size_t unit) {
    switch (unit) {
        case 1: return to_columns_of<std::uint8_t>(rows, stride, columns, row_count, column_count);
        case 2: return to_columns_of<std::uint16_t>(rows, stride, columns, row_count, column_count);
        case 4: return to_columns_of<std::uint32_t>(rows, stride, columns, row_count, column_count);
        default: return to_columns_of<std::uint64_t>(rows, stride, columns, row_count, column_count);
    }
}

void from_columns(const std::uint8_t* columns, std::uint8_t* rows, std::size_t stride, std::size_t row_count,
                  std::size_t column_count, std::size_t unit) {
    switch (unit) {
        case 1: return from_columns_of<std::uint8_t>(columns, rows, stride, row_count, column_count);
        case 2: return from_columns_of<std::uint16_t>(columns, rows, stride, row_count, column_count);
        case 4: return from_columns_of<std::uint32_t>(columns, rows, stride, row_count, column_count);
        default: return from_columns_of<std::uint64_t>(columns, rows, stride, row_count, column_count);
    }
}

}  // namespace kvstore
