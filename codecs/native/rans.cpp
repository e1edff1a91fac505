#include "rans.hpp"

#include "rans_kernels.hpp"
#include "xxh3.hpp"

#include <bit>
#include <numeric>

namespace kvstore::rans {

namespace {

DecodeKernel kernel() {
#if defined(__x86_64__)
    if (simd_level() == SimdLevel::avx512 && avx512_usable()) return decode_avx512;
    if (simd_level() != SimdLevel::portable && avx2_usable()) return decode_avx2;
#endif
    return decode_portable;
}

bool all_in(const Bank& bank, std::span<const std::uint8_t> tables) {
    for (const std::uint8_t table : tables)
        if (table >= bank.tables()) return false;
    return true;
}

bool read_states(const std::uint8_t* from, States& states) {
    std::memcpy(states.data(), from, kStateBytes);
    for (const std::uint32_t state : states)
        if (state < kLow || state >> 31 != 0) return false;
    return true;
}

}  // namespace

Bank::Bank(std::size_t tables)
    : tables_(tables), slots_((tables + 1) * kSlots), codings_(tables * kSymbols) {}

std::optional<Bank> Bank::make(std::span<const std::uint16_t> freqs) {
    const std::size_t tables = freqs.size() / kSymbols;
    if (freqs.size() % kSymbols != 0 || tables < 1 || tables > kMaxTables) return std::nullopt;
    Bank bank(tables);
    for (std::size_t table = 0; table < tables; ++table) {
        const std::span<const std::uint16_t> row = freqs.subspan(table * kSymbols, kSymbols);
        if (std::accumulate(row.begin(), row.end(), std::size_t{0}) != kSlots) return std::nullopt;
        bank.fill(table, row.data());
    }
    std::uint32_t* const resting = bank.slots_.data() + tables * kSlots;
    for (std::uint32_t slot = 0; slot < kSlots; ++slot) resting[slot] = (kSlots - 1) << 8 | slot << 20;
    return bank;
}

void Bank::fill(std::size_t table, const std::uint16_t* freqs) {
    std::uint32_t* slot = slots_.data() + table * kSlots;
    Coding* const codings = codings_.data() + table * kSymbols;
    std::uint32_t start = 0;
    for (std::uint32_t symbol = 0; symbol < kSymbols; ++symbol) {
        const std::uint32_t frequency = freqs[symbol];
        if (frequency == 0) continue;
        for (std::uint32_t i = 0; i < frequency; ++i) *slot++ = symbol | (frequency - 1) << 8 | i << 20;
        const auto shift = static_cast<std::uint32_t>(std::bit_width(frequency - 1));
        const std::uint64_t power = std::uint64_t{1} << (31 + shift);
        codings[symbol] = {static_cast<std::uint32_t>((power + frequency - 1) / frequency), frequency << 19,
                           static_cast<std::uint16_t>(start), static_cast<std::uint16_t>(kSlots - frequency), shift};
        start += frequency;
    }
}

Status decode(const Bank& bank, std::span<const std::uint8_t> stream, std::span<const std::uint8_t> tables,
              std::size_t tokens, const Target& target) {
    if (!all_in(bank, tables)) return Status::no_such_table;
    States states;
    if (stream.size() < kStateBytes || stream.size() % 2 != 0 || !read_states(stream.data(), states))
        return Status::corrupt;
    Words words(stream.subspan(kStateBytes));
    if (!kernel()({bank, tables, tokens, target}, words, states) || !words.used_up()) return Status::corrupt;
    for (const std::uint32_t state : states)
        if (state != kLow) return Status::corrupt;
    return Status::ok;
}

Status encode(const Bank& bank, const std::uint8_t* symbols, std::size_t stride, std::span<const std::uint8_t> tables,
              std::size_t tokens, std::span<std::uint8_t> room, std::span<const std::uint8_t>& stream) {
    if (!all_in(bank, tables)) return Status::no_such_table;
    States states;
    states.fill(kLow);
    std::uint8_t* const end = room.data() + room.size();
    std::uint8_t* begin = end;
    if (!encode_portable({bank, tables, tokens, symbols, stride}, begin, states)) return Status::absent_symbol;
    begin -= kStateBytes;
    std::memcpy(begin, states.data(), kStateBytes);
    stream = {begin, end};
    return Status::ok;
}

}  // namespace kvstore::rans
