// The codec cachegen; kvstore/codecs/cachegen/reference.py is the definition.
#include "cachegen.hpp"

#include "cachegen_rows.hpp"
#include "xxh3.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>

namespace kvstore::cachegen {

namespace {

static_assert(std::endian::native == std::endian::little, "bodies are read in place");

constexpr std::size_t kHeadBytes = 16;

const Rows& rows() {
#if defined(__x86_64__)
    if (simd_level() != SimdLevel::portable) return kAvx2Rows;
#endif
    return kPortableRows;
}

std::size_t anchor_count(std::size_t tokens, std::size_t group, std::size_t first) {
    return tokens <= first ? 1 : 1 + (tokens - first + group - 1) / group;
}

// Where a token's group begins next, counted from the first group on.
struct Groups {
    std::size_t group, next;
    bool starts(std::size_t token) {
        if (token != 0 && token != next) return false;
        if (token != 0) next += group;
        return true;
    }
};

// A token's columns lie in runs of elements at one stride: whole planes where heads follow one another, else heads.
struct Runs {
    explicit Runs(const View& view) : view(view), item(bytes_of(view.dtype)) {
        const bool joined = view.heads == 1 || view.head_stride == view.dim * view.dim_stride;
        heads = joined ? 1 : view.heads;
        length = joined ? view.heads * view.dim : view.dim;
    }
    // Calls each(first element's offset in bytes, first column) for the runs of a token.
    template <typename Each>
    void of(std::size_t token, Each each) const {
        std::size_t column = 0;
        for (std::size_t plane = 0; plane < view.planes; ++plane)
            for (std::size_t head = 0; head < heads; ++head, column += length)
                each((plane * view.plane_stride + token * view.token_stride + head * view.head_stride) * item, column);
    }
    // The byte offset of one column's element.
    std::size_t offset(std::size_t token, std::size_t column) const {
        const std::size_t dim = column % view.dim, rest = column / view.dim;
        return (rest / view.heads * view.plane_stride + token * view.token_stride + rest % view.heads * view.head_stride +
                dim * view.dim_stride) * item;
    }

    const View& view;
    std::size_t item, heads, length;
};

std::span<const std::uint8_t> tables_of(const Side& side, const View& view) { return {side.tables, view.columns()}; }

std::uint32_t read_u32(const std::uint8_t* from) {
    std::uint32_t value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// Encoder: symbols of both kinds, the elements written out, and the rows they come from.
class Encoding {
public:
    Encoding(const Layer& layer, const View& view, const std::uint8_t* raw, std::size_t first)
        : layer_(layer), view_(view), runs_(view), raw_(raw), first_(first), columns_(view.columns()),
          anchors_(anchor_count(view.tokens, layer.group, first)),
          symbols_(std::make_unique_for_overwrite<std::uint8_t[]>(view.tokens * columns_)), values_(3 * columns_) {}

    // False: an element that is not coded.
    bool quantize() {
        const Rows& kernel = rows();
        float* const values = values_.data();
        float* const anchor = values + columns_;
        float* const decoded = anchor + columns_;
        std::uint8_t* anchor_symbols = symbols_.get();
        std::uint8_t* symbols = anchor_symbols + anchors_ * columns_;
        Groups groups{layer_.group, first_};
        for (std::size_t token = 0; token < view_.tokens; ++token) {
            bool sound = true;
            runs_.of(token, [&](std::size_t at, std::size_t column) {
                sound &= kernel.load(view_.dtype, raw_ + at, view_.dim_stride, runs_.length, values + column);
            });
            if (!sound) return false;
            const bool starts = groups.starts(token);
            std::uint8_t*& row = starts ? anchor_symbols : symbols;
            const std::size_t written = kernel.quantize(values, starts ? layer_.mean : anchor,
                                                        starts ? layer_.anchors : layer_.deltas, columns_, row,
                                                        starts ? anchor : decoded);
            if (written > 0) write_out(token, row, starts ? anchors_written_ : others_written_);
            row += columns_;
        }
        return true;
    }

    Status assemble(std::vector<std::uint8_t>& body) const {
        const std::size_t others = view_.tokens - anchors_;
        const std::size_t room = rans::encode_bound(std::max(anchors_, others), columns_);
        const auto memory = std::make_unique_for_overwrite<std::uint8_t[]>(room);
        body.assign(kHeadBytes, 0);
        std::size_t length = 0;
        for (const bool of_anchors : {true, false}) {
            const std::size_t count = of_anchors ? anchors_ : others;
            if (count == 0) continue;
            std::span<const std::uint8_t> stream;
            const rans::Status status = rans::encode(
                layer_.bank, symbols_.get() + (of_anchors ? 0 : anchors_ * columns_), columns_,
                tables_of(of_anchors ? layer_.anchors : layer_.deltas, view_), count, {memory.get(), room}, stream);
            if (status != rans::Status::ok) return Status::no_such_table;
            body.insert(body.end(), stream.begin(), stream.end());
            if (of_anchors) length = stream.size();
        }
        body.insert(body.end(), anchors_written_.begin(), anchors_written_.end());
        body.insert(body.end(), others_written_.begin(), others_written_.end());
        const std::uint32_t head[] = {static_cast<std::uint32_t>(length),
                                      static_cast<std::uint32_t>(anchors_written_.size() / runs_.item),
                                      static_cast<std::uint32_t>(others_written_.size() / runs_.item),
                                      static_cast<std::uint32_t>(first_)};
        static_assert(sizeof head == kHeadBytes);
        std::memcpy(body.data(), head, sizeof head);
        return Status::ok;
    }

private:
    void write_out(std::size_t token, const std::uint8_t* symbols, std::vector<std::uint8_t>& to) const {
        for (std::size_t column = 0; column < columns_; ++column) {
            if (symbols[column] != 0) continue;
            const std::uint8_t* const element = raw_ + runs_.offset(token, column);
            to.insert(to.end(), element, element + runs_.item);
        }
    }

    const Layer& layer_;
    const View& view_;
    const Runs runs_;
    const std::uint8_t* const raw_;
    const std::size_t first_, columns_, anchors_;
    const std::unique_ptr<std::uint8_t[]> symbols_;
    std::vector<float> values_;
    std::vector<std::uint8_t> anchors_written_, others_written_;
};

// Elements written out, taken one after the other.
class Written {
public:
    Written(std::span<const std::uint8_t> bytes, Dtype dtype) : at_(bytes.data()), end_(at_ + bytes.size()), dtype_(dtype) {}

    bool sound() const {
        float value;
        for (const std::uint8_t* at = at_; at < end_; at += bytes_of(dtype_))
            if (!read(at, &value)) return false;
        return true;
    }
    // Puts elements into `out` where a token's symbols are 0, and their values into `values`. False: too few.
    bool patch(const Runs& runs, std::size_t token, const std::uint8_t* symbols, std::size_t columns, std::uint8_t* out,
               float* values) {
        for (std::size_t column = 0; column < columns; ++column) {
            if (symbols[column] != 0) continue;
            if (at_ == end_) return false;
            read(at_, values + column);
            std::memcpy(out + runs.offset(token, column), at_, runs.item);
            at_ += runs.item;
        }
        return true;
    }
    bool used_up() const { return at_ == end_; }

private:
    // Elements lie behind streams of any length: at no multiple of their own.
    bool read(const std::uint8_t* from, float* value) const {
        alignas(4) std::uint8_t element[4];
        std::memcpy(element, from, bytes_of(dtype_));
        return kPortableRows.load(dtype_, element, 1, 1, value);
    }

    const std::uint8_t* at_;
    const std::uint8_t* end_;
    Dtype dtype_;
};

struct Opened {
    std::size_t first;
    std::span<const std::uint8_t> anchors, others, anchors_written, others_written;
};

bool open(std::span<const std::uint8_t> body, std::size_t group, std::size_t item, Opened& opened) {
    if (body.size() < kHeadBytes) return false;
    const std::size_t length = read_u32(body.data());
    const std::size_t anchors = read_u32(body.data() + 4) * item;
    const std::size_t others = read_u32(body.data() + 8) * item;
    opened.first = read_u32(body.data() + 12);
    if (opened.first < 1 || opened.first > group || kHeadBytes + length + anchors + others > body.size()) return false;
    const std::size_t end = body.size() - anchors - others;
    opened.anchors = body.subspan(kHeadBytes, length);
    opened.others = body.subspan(kHeadBytes + length, end - kHeadBytes - length);
    opened.anchors_written = body.subspan(end, anchors);
    opened.others_written = body.subspan(end + anchors);
    return true;
}

Status entropy_decode(const Layer& layer, const View& view, const Opened& opened, std::size_t anchors,
                      std::uint8_t* symbols) {
    const std::size_t columns = view.columns(), others = view.tokens - anchors;
    const rans::Status first = rans::decode(layer.bank, opened.anchors, tables_of(layer.anchors, view), anchors,
                                            {rans::Format::symbols, symbols, columns});
    if (first != rans::Status::ok) return Status::corrupt;
    if (others == 0) return opened.others.empty() ? Status::ok : Status::corrupt;
    const rans::Status second = rans::decode(layer.bank, opened.others, tables_of(layer.deltas, view), others,
                                             {rans::Format::symbols, symbols + anchors * columns, columns});
    return second == rans::Status::ok ? Status::ok : Status::corrupt;
}

}  // namespace

Status encode(const Layer& layer, const View& view, const std::uint8_t* raw, std::size_t first,
              std::vector<std::uint8_t>& body) {
    Encoding encoding(layer, view, raw, first);
    return encoding.quantize() ? encoding.assemble(body) : Status::not_encodable;
}

Status decode(const Layer& layer, const View& view, std::span<const std::uint8_t> body, std::uint8_t* out) {
    Opened opened;
    const Runs runs(view);
    if (!open(body, layer.group, runs.item, opened)) return Status::corrupt;
    const std::size_t columns = view.columns();
    const std::size_t anchors = anchor_count(view.tokens, layer.group, opened.first);
    Written anchors_written(opened.anchors_written, view.dtype), others_written(opened.others_written, view.dtype);
    if (!anchors_written.sound() || !others_written.sound()) return Status::corrupt;
    const auto memory = std::make_unique_for_overwrite<std::uint8_t[]>(view.tokens * columns);
    if (entropy_decode(layer, view, opened, anchors, memory.get()) != Status::ok) return Status::corrupt;

    const Rows& kernel = rows();
    std::vector<float> floats(2 * columns);
    float* const anchor = floats.data();
    float* const values = anchor + columns;
    const std::uint8_t* anchor_symbols = memory.get();
    const std::uint8_t* symbols = anchor_symbols + anchors * columns;
    Groups groups{layer.group, opened.first};
    for (std::size_t token = 0; token < view.tokens; ++token) {
        const bool starts = groups.starts(token);
        const std::uint8_t*& row = starts ? anchor_symbols : symbols;
        float* const decoded = starts ? anchor : values;
        const std::size_t written = kernel.dequantize(row, starts ? layer.mean : anchor,
                                                      starts ? layer.anchors.step : layer.deltas.step, columns, decoded);
        runs.of(token, [&](std::size_t at, std::size_t column) {
            kernel.store(view.dtype, decoded + column, view.dim_stride, runs.length, out + at);
        });
        if (written > 0 &&
            !(starts ? anchors_written : others_written).patch(runs, token, row, columns, out, decoded))
            return Status::corrupt;
        row += columns;
    }
    return anchors_written.used_up() && others_written.used_up() ? Status::ok : Status::corrupt;
}

}  // namespace kvstore::cachegen
