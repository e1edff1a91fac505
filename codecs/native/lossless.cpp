#include "lossless.hpp"

#include "lossless_choice.hpp"
#include "lossless_words.hpp"
#include "rans.hpp"

#include <algorithm>
#include <memory>

namespace kvstore::lossless {

namespace {

constexpr std::uint8_t kStored = 0, kCoded = 1, kPerHead = 2, kWide = 4;  // the body's first byte
constexpr std::size_t kHeadBytes = 5;
constexpr std::size_t kPerHeadTokens = 64;  // longer chunks are not worth the try
constexpr std::size_t kSpread = 16;         // offsets that fit into narrow parameters

using Bytes = std::unique_ptr<std::uint8_t[]>;

const rans::Bank& bank() {
    static const rans::Bank made = [] {
        std::vector<std::uint16_t> freqs(kTables * rans::kSymbols, 0);
        for (std::size_t table = 0; table < kTables; ++table)
            std::copy_n(kFreqs[table], kSymbols, freqs.data() + table * rans::kSymbols);
        return *rans::Bank::make(freqs);
    }();
    return made;
}

// Calls `each(element's place in the frame, place in the rest, column, token)` for every row of `dim` elements.
template <typename Each>
void for_rows(const Frame& frame, Each each) {
    const auto& [layers, planes, tokens, heads, dim] = frame.shape;
    std::size_t rest = 0, section = 0;
    for (std::size_t layer = 0; layer < layers; ++layer)
        for (std::size_t plane = 0; plane < planes; ++plane, ++section)
            for (std::size_t token = 0; token < tokens; ++token)
                for (std::size_t head = 0; head < heads; ++head, rest += dim)
                    each(layer * frame.steps[0] + plane * frame.steps[1] + token * frame.steps[2] + head * frame.steps[3],
                         rest, section * frame.channels() + head * dim, token);
}

template <typename Words>
void split_row(const std::uint8_t* __restrict from, std::size_t step, std::size_t dim, std::uint8_t* __restrict exponents,
               std::uint8_t* __restrict rest, std::size_t plane) {
    using Word = typename Words::Word;
    if (step == 1) {
        for (std::size_t i = 0; i < dim; ++i) {
            const Word word = word_at<Word>(from + i * sizeof(Word));
            exponents[i] = Words::exponent(word);
            Words::rest(word, rest + i, plane);
        }
    } else {
        for (std::size_t i = 0; i < dim; ++i) {
            const Word word = word_at<Word>(from + i * step * sizeof(Word));
            exponents[i] = Words::exponent(word);
            Words::rest(word, rest + i, plane);
        }
    }
}

template <typename Words>
void join_row(std::uint8_t* __restrict to, std::size_t step, std::size_t dim, const std::uint8_t* __restrict exponents,
              const std::uint8_t* __restrict rest, std::size_t plane) {
    using Word = typename Words::Word;
    if (step == 1) {
        for (std::size_t i = 0; i < dim; ++i) {
            const Word word = Words::join(exponents[i], rest + i, plane);
            std::memcpy(to + i * sizeof(Word), &word, sizeof word);
        }
    } else {
        for (std::size_t i = 0; i < dim; ++i) {
            const Word word = Words::join(exponents[i], rest + i, plane);
            std::memcpy(to + i * step * sizeof(Word), &word, sizeof word);
        }
    }
}

struct Parameters {
    std::vector<std::uint8_t> bytes;
    std::vector<std::uint8_t> offsets, tables;  // per column
    std::uint8_t kind = kCoded;
};

// Narrow: the least offset of each section (u8), then offset − least << 4 | table for each choice. Wide, where a
// section's offsets differ by more than 15: all offsets (u8), then all tables.
Parameters written(const std::vector<Choice>& choices, std::size_t sections, std::size_t span) {
    Parameters made;
    const std::size_t each = choices.size() / sections;
    std::vector<std::int16_t> least(sections);
    bool narrow = true;
    for (std::size_t section = 0; section < sections; ++section) {
        const auto first = choices.begin() + static_cast<std::ptrdiff_t>(section * each);
        const auto [low, high] =
            std::minmax_element(first, first + static_cast<std::ptrdiff_t>(each),
                                [](const Choice& a, const Choice& b) { return a.offset < b.offset; });
        least[section] = low->offset;
        narrow = narrow && high->offset - low->offset < static_cast<int>(kSpread);
    }
    if (narrow) {
        for (const std::int16_t low : least) made.bytes.push_back(static_cast<std::uint8_t>(low));
        for (std::size_t i = 0; i < choices.size(); ++i)
            made.bytes.push_back(
                static_cast<std::uint8_t>((choices[i].offset - least[i / each]) << 4 | choices[i].table));
    } else {
        made.kind |= kWide;
        for (const Choice& choice : choices) made.bytes.push_back(static_cast<std::uint8_t>(choice.offset));
        for (const Choice& choice : choices) made.bytes.push_back(choice.table);
    }
    for (const Choice& choice : choices) {
        made.offsets.insert(made.offsets.end(), span, static_cast<std::uint8_t>(choice.offset));
        made.tables.insert(made.tables.end(), span, choice.table);
    }
    return made;
}

std::vector<std::uint8_t> stored(std::span<const std::uint8_t> raw) {
    std::vector<std::uint8_t> body(1 + raw.size());
    body[0] = kStored;
    std::copy(raw.begin(), raw.end(), body.begin() + 1);
    return body;
}

template <typename Words>
std::vector<std::uint8_t> encode_as(const Frame& frame, std::span<const std::uint8_t> raw) {
    const std::size_t count = frame.elements(), columns = frame.columns(), tokens = frame.tokens(), dim = frame.shape[4];
    const auto symbols = std::make_unique_for_overwrite<std::uint8_t[]>(count);
    const std::size_t plane = (count + 7) / 8 * 8;
    const auto rest = std::make_unique_for_overwrite<std::uint8_t[]>(Words::planes * plane);
    std::fill_n(rest.get() + Words::planes * plane - (plane - count), plane - count, std::uint8_t{0});
    for_rows(frame, [&](std::size_t from, std::size_t to, std::size_t column, std::size_t token) {
        split_row<Words>(raw.data() + from * sizeof(typename Words::Word), frame.steps[4], dim,
                         symbols.get() + token * columns + column, rest.get() + to, plane);
    });

    std::uint64_t cost = 0;
    std::size_t span = 1;
    std::vector<Choice> choices = choose(symbols.get(), tokens, columns, 1, cost);
    if (tokens <= kPerHeadTokens && dim > 1) {
        std::uint64_t shared = 0;
        std::vector<Choice> heads = choose(symbols.get(), tokens, columns, dim, shared);
        if (shared + 2048 * heads.size() < cost + 2048 * choices.size()) {
            choices = std::move(heads);
            span = dim;
        }
    }
    Parameters parameters = written(choices, frame.sections(), span);
    if (span > 1) parameters.kind |= kPerHead;

    std::vector<std::uint8_t> escapes;
    for (std::size_t token = 0; token < tokens; ++token) {
        std::uint8_t* __restrict const row = symbols.get() + token * columns;
        const std::uint8_t* __restrict const offsets = parameters.offsets.data();
        std::uint8_t largest = 0;
        for (std::size_t i = 0; i < columns; ++i)
            largest = std::max(largest, static_cast<std::uint8_t>(row[i] - offsets[i]));
        if (largest >= kEscape)
            for (std::size_t i = 0; i < columns; ++i)
                if (static_cast<std::uint8_t>(row[i] - offsets[i]) >= kEscape) escapes.push_back(row[i]);
        for (std::size_t i = 0; i < columns; ++i)
            row[i] = std::min(static_cast<std::uint8_t>(row[i] - offsets[i]), kEscape);
    }

    const std::size_t fixed = kHeadBytes + parameters.bytes.size() + rest_bytes<Words>(count) + escapes.size();
    if (fixed >= raw.size() + 1) return stored(raw);
    const std::size_t bound = rans::encode_bound(tokens, columns);
    const auto room = std::make_unique_for_overwrite<std::uint8_t[]>(bound);
    std::span<const std::uint8_t> stream;
    rans::encode(bank(), symbols.get(), columns, parameters.tables, tokens, {room.get(), bound}, stream);
    if (fixed + stream.size() >= raw.size() + 1) return stored(raw);

    std::vector<std::uint8_t> body(fixed + stream.size());
    std::uint8_t* at = body.data();
    *at++ = parameters.kind;
    const auto number = static_cast<std::uint32_t>(escapes.size());
    std::memcpy(at, &number, 4);
    at = std::copy(parameters.bytes.begin(), parameters.bytes.end(), at + 4);
    for (std::size_t i = 0; i < Words::whole; ++i) at = std::copy_n(rest.get() + i * plane, count, at);
    if constexpr (Words::planes > Words::whole) {
        pack3(rest.get() + Words::whole * plane, at, count);
        at += (3 * count + 7) / 8;
    }
    at = std::copy(escapes.begin(), escapes.end(), at);
    std::copy(stream.begin(), stream.end(), at);
    return body;
}

// Takes so many bytes from the front; none if there are fewer.
bool take(std::span<const std::uint8_t>& body, std::size_t length, std::span<const std::uint8_t>& taken) {
    if (length > body.size()) return false;
    taken = body.first(length);
    body = body.subspan(length);
    return true;
}

bool read_parameters(const Frame& frame, std::uint8_t kind, std::span<const std::uint8_t>& body,
                     std::vector<std::uint8_t>& offsets, std::vector<std::uint8_t>& tables) {
    const std::size_t span = (kind & kPerHead) != 0 ? frame.shape[4] : 1, choices = frame.columns() / span;
    std::span<const std::uint8_t> first, second;
    if (!take(body, (kind & kWide) != 0 ? choices : frame.sections(), first) || !take(body, choices, second)) return false;
    offsets.resize(frame.columns());
    tables.resize(frame.columns());
    for (std::size_t i = 0; i < frame.columns(); ++i) {
        const std::uint8_t each = second[i / span];
        const bool wide = (kind & kWide) != 0;
        offsets[i] = wide ? first[i / span] : static_cast<std::uint8_t>(first[i / frame.channels()] + (each >> 4));
        tables[i] = wide ? each : each & 15;
    }
    return true;
}

template <typename Words>
bool decode_as(const Frame& frame, std::span<const std::uint8_t> body, std::span<std::uint8_t> raw) {
    const std::size_t count = frame.elements(), columns = frame.columns(), tokens = frame.tokens(), dim = frame.shape[4];
    if (body.empty()) return false;
    if (body[0] == kStored) {
        if (body.size() != 1 + raw.size()) return false;
        std::copy(body.begin() + 1, body.end(), raw.begin());
        return true;
    }
    const std::uint8_t kind = body[0];
    if ((kind & kCoded) == 0 || kind >= 2 * kWide || body.size() < kHeadBytes || body.size() > raw.size()) return false;
    std::uint32_t escaped;
    std::memcpy(&escaped, body.data() + 1, 4);
    body = body.subspan(kHeadBytes);
    std::vector<std::uint8_t> offsets, tables;
    std::span<const std::uint8_t> rest, escapes;
    if (!read_parameters(frame, kind, body, offsets, tables) || !take(body, rest_bytes<Words>(count), rest) ||
        !take(body, escaped, escapes))
        return false;
    const auto exponents = std::make_unique_for_overwrite<std::uint8_t[]>(count);
    if (rans::decode(bank(), body, tables, tokens, {rans::Format::symbols, exponents.get(), columns}) != rans::Status::ok)
        return false;

    std::size_t used = 0;
    std::uint8_t highest = 0;
    for (std::size_t token = 0; token < tokens; ++token) {
        std::uint8_t* __restrict const row = exponents.get() + token * columns;
        std::uint8_t largest = 0;
        for (std::size_t i = 0; i < columns; ++i) largest = std::max(largest, row[i]);
        if (largest < kEscape) {
            for (std::size_t i = 0; i < columns; ++i) row[i] = static_cast<std::uint8_t>(row[i] + offsets[i]);
        } else {
            for (std::size_t i = 0; i < columns; ++i) {
                if (row[i] < kEscape) {
                    row[i] = static_cast<std::uint8_t>(row[i] + offsets[i]);
                } else if (used < escapes.size()) {
                    row[i] = escapes[used++];
                } else {
                    return false;
                }
            }
        }
        for (std::size_t i = 0; i < columns; ++i) highest = std::max(highest, row[i]);
    }
    if (used != escapes.size() || highest > Words::highest) return false;

    std::size_t plane = count;
    const std::uint8_t* planes = rest.data();
    Bytes unpacked;
    if constexpr (Words::planes > Words::whole) {
        plane = (count + 7) / 8 * 8;
        unpacked = std::make_unique_for_overwrite<std::uint8_t[]>(2 * plane);
        std::copy_n(rest.data(), count, unpacked.get());
        unpack3(rest.data() + count, unpacked.get() + plane, count);
        planes = unpacked.get();
    }
    for_rows(frame, [&](std::size_t to, std::size_t from, std::size_t column, std::size_t token) {
        join_row<Words>(raw.data() + to * sizeof(typename Words::Word), frame.steps[4], dim,
                        exponents.get() + token * columns + column, planes + from, plane);
    });
    return true;
}

}  // namespace

std::vector<std::uint8_t> encode(const Frame& frame, std::span<const std::uint8_t> raw) {
    switch (frame.dtype) {
        case Dtype::bf16: return encode_as<Bf16Words>(frame, raw);
        case Dtype::fp16: return encode_as<Fp16Words>(frame, raw);
        case Dtype::fp32: return encode_as<Fp32Words>(frame, raw);
    }
    return {};
}

bool decode(const Frame& frame, std::span<const std::uint8_t> body, std::span<std::uint8_t> raw) {
    switch (frame.dtype) {
        case Dtype::bf16: return decode_as<Bf16Words>(frame, body, raw);
        case Dtype::fp16: return decode_as<Fp16Words>(frame, body, raw);
        case Dtype::fp32: return decode_as<Fp32Words>(frame, body, raw);
    }
    return false;
}

}  // namespace kvstore::lossless
