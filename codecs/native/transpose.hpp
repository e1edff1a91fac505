// Matrices of small units, from rows that lie apart to columns that lie side by side, and back.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvstore {

// Whether there is a kernel for units of this many bytes.
constexpr bool transposes(std::size_t unit) { return unit == 1 || unit == 2 || unit == 4 || unit == 8; }

// `columns[c][r] = rows[r][c]`: rows of `column_count` units are `stride` bytes apart, columns of `row_count` units lie
// side by side.
void to_columns(const std::uint8_t* rows, std::size_t stride, std::uint8_t* columns, std::size_t row_count,
                std::size_t column_count, std::size_t unit);

// The inverse.
void from_columns(const std::uint8_t* columns, std::uint8_t* rows, std::size_t stride, std::size_t row_count,
                  std::size_t column_count, std::size_t unit);

}  // namespace kvstore
