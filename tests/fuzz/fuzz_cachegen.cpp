// Bodies of cachegen: any bytes against layers of several shapes and layouts.
#include "cachegen.hpp"
#include "tables.hpp"

#include <algorithm>

using namespace kvstore::cachegen;

namespace {

// A layer whose tables all have every symbol, but for what a hostile body says.
struct Model {
    explicit Model(std::size_t columns)
        : step(columns, 0.05F), inverse(columns, 20.0F), low(columns, -127.0F), high(columns, 127.0F),
          mean(columns, 0.25F), tables(columns, 2) {
        for (std::size_t column = 0; column < columns; column += 2) tables[column] = 3;
    }
    Side side() const { return {step.data(), inverse.data(), low.data(), high.data(), tables.data()}; }
    Layer layer(std::size_t group) const { return {fuzz_bank(), group, mean.data(), side(), side()}; }

    std::vector<float> step, inverse, low, high, mean;
    Bytes tables;
};

View view_from(Reader& reader) {
    View view{};
    view.dtype = static_cast<Dtype>(reader.number(0, 2));
    view.planes = reader.number(1, 2), view.tokens = reader.number(1, 40);
    view.heads = reader.number(1, 3), view.dim = reader.number(1, 40);
    view.dim_stride = 1;
    view.plane_stride = view.tokens * view.heads * view.dim;
    switch (reader.number(0, 2)) {
        case 0: view.head_stride = view.dim, view.token_stride = view.dim * view.heads; break;
        case 1: view.token_stride = view.dim, view.head_stride = view.dim * view.tokens; break;
        default: view.token_stride = 1, view.dim_stride = view.tokens, view.head_stride = view.dim * view.tokens;
    }
    return view;
}

std::size_t raw_bytes(const View& view) { return view.columns() * view.tokens * bytes_of(view.dtype); }

}  // namespace

void fuzz_one(Input input) {
    Reader reader(input);
    const View view = view_from(reader);
    const std::size_t group = reader.number(1, 12);
    const Bytes body(reader.rest().begin(), reader.rest().end());
    const Model model(view.columns());
    const Layer layer = model.layer(group);
    kvstore::set_simd_level(kvstore::SimdLevel::portable);
    Bytes wanted(raw_bytes(view), 0xEE);
    const Status status = decode(layer, view, body, wanted.data());
    at_every_level([&](kvstore::SimdLevel) {
        Bytes found(wanted.size(), 0xEE);
        require(decode(layer, view, body, found.data()) == status, "all levels judge a body alike");
        require(status != Status::ok || found == wanted, "all levels decode alike");
        Bytes raw(body), again;
        raw.resize(wanted.size());
        if (encode(layer, view, raw.data(), 1 + body.size() % group, again) == Status::ok)
            require(decode(layer, view, again, found.data()) == Status::ok, "what was encoded decodes");
    });
}

std::vector<Bytes> seeds() {
    std::vector<Bytes> all;
    for (std::uint8_t dtype = 0; dtype < 3; ++dtype)
        for (std::uint8_t order = 0; order < 3; ++order) {
            Bytes seed = {dtype, 1, 20, 1, 18, order, 9};
            Reader reader(seed);
            const View view = view_from(reader);
            const std::size_t group = reader.number(1, 12), item = bytes_of(view.dtype);
            Bytes raw(raw_bytes(view)), body;
            for (std::size_t i = 0; i < raw.size(); ++i)
                raw[i] = static_cast<std::uint8_t>(i % item + 1 == item ? 0x3C + i % 3 + i % 7 / 6 * 8 : i * 37);
            const Model model(view.columns());
            require(encode(model.layer(group), view, raw.data(), 3, body) == Status::ok, "finite values are encoded");
            seed.insert(seed.end(), body.begin(), body.end());
            all.push_back(seed);
        }
    return all;
}
