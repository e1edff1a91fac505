// The entropy coder of the codecs: rANS in 32 lanes with static tables (Duda, arXiv:1311.2540; interleaved as in
// Giesen, arXiv:1402.3392). No Python here: other codecs and the fuzzers link it. docs/codecs.md has the format.
//
// A state lies in [2^15, 2^31) and takes 16 bits at a time; frequencies of a table sum to 4096. Columns are coded in
// blocks of 32, token by token, lane l being column 32 · block + l; lanes past the last column rest. A stream is the
// decoder's 32 first states (u32), then words (u16), little-endian, which the lanes take in their order as they need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace kvstore::rans {

inline constexpr std::size_t kLanes = 32;
inline constexpr std::size_t kSlots = 4096;
inline constexpr std::size_t kSymbols = 256;
inline constexpr std::size_t kMaxTables = 256;
inline constexpr std::size_t kStateBytes = 4 * kLanes;
inline constexpr std::uint32_t kLow = 1U << 15;

enum class Status {
    ok,
    corrupt,        // a stream that no encoder makes: too short, too long, or wrong states
    no_such_table,  // a column's table is not in the bank
    absent_symbol,  // a symbol to encode has no frequency in its column's table
};

// What the encoder needs of a symbol. Division by the frequency is a multiplication: exact for states below 2^31.
struct Coding {
    std::uint32_t reciprocal;  // ⌈2^(31 + shift) / frequency⌉; 0: an absent symbol
    std::uint32_t limit;       // a state of so much and more gives 16 bits away first
    std::uint16_t start;       // of the symbol's slots
    std::uint16_t complement;  // 4096 − frequency
    std::uint32_t shift;       // ⌈log2 frequency⌉
};

// Tables made once from frequencies, for both directions. Immutable.
class Bank {
public:
    // `freqs` is [tables][256]; nothing unless there are 1 to 256 tables and each sums to 4096.
    static std::optional<Bank> make(std::span<const std::uint16_t> freqs);

    std::size_t tables() const { return tables_; }
    // symbol | (frequency − 1) << 8 | (slot − start) << 20, for each slot of each table. One more table stands behind
    // the last: a resting lane's, which leaves every state as it is.
    const std::uint32_t* slots() const { return slots_.data(); }
    const Coding* codings(std::size_t table) const { return codings_.data() + table * kSymbols; }

private:
    explicit Bank(std::size_t tables);
    void fill(std::size_t table, const std::uint16_t* freqs);

    std::size_t tables_;
    std::vector<std::uint32_t> slots_;
    std::vector<Coding> codings_;
};

enum class Format {
    symbols,  // u8
    levels,   // i16, symbol − 128
    bf16,     // scale[c] · (symbol − 128) + mean[c] in float32, product and sum rounded each, then to nearest even
    fp16,
    fp32,
};

// Where decoded symbols go: [tokens][columns], `stride` elements from one token to the next (at least the columns;
// what lies between is not written). `scale` and `mean` have a value per column, for bf16, fp16 and fp32.
struct Target {
    Format format;
    void* data;
    std::size_t stride;
    const float* scale = nullptr;
    const float* mean = nullptr;
};

// Decodes `tokens` × `tables.size()` symbols. What is in the target after another status than ok says nothing.
Status decode(const Bank& bank, std::span<const std::uint8_t> stream, std::span<const std::uint8_t> tables,
              std::size_t tokens, const Target& target);

// The room that `encode` needs, in bytes.
inline std::size_t encode_bound(std::size_t tokens, std::size_t columns) { return kStateBytes + 2 * tokens * columns; }

// Encodes symbols [tokens][tables.size()], `stride` from one token to the next, into the end of `room`, which has
// encode_bound bytes; `stream` is the part of it that holds the result.
Status encode(const Bank& bank, const std::uint8_t* symbols, std::size_t stride, std::span<const std::uint8_t> tables,
              std::size_t tokens, std::span<std::uint8_t> room, std::span<const std::uint8_t>& stream);

}  // namespace kvstore::rans
