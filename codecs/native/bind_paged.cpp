#include "bind.hpp"
#include "buffer.hpp"
#include "paged.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

namespace kvstore {

namespace {

using paged::Layer;
using paged::Moves;
using paged::Order;
using Array = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::device::cpu>;
using Offsets = std::vector<std::uint32_t>;

void require(bool holds, const char* message) {
    if (!holds) throw nb::value_error(message);
}

// The moves of a region, checked to end inside it.
std::vector<Moves> moves_of(const std::vector<Offsets>& tables, std::size_t region_bytes, std::size_t unit_bytes) {
    require(unit_bytes > 0 && region_bytes % unit_bytes == 0, "a region must be whole units");
    std::vector<Moves> moves;
    for (const Offsets& table : tables) {
        require(!table.empty() && table.size() == region_bytes / unit_bytes, "a table has one entry for each unit");
        moves.push_back(paged::moves_of(table, unit_bytes));
    }
    return moves;
}

void check(const Order& order, const std::vector<Offsets>& tables, std::size_t unit_bytes) {
    const std::size_t regions = order.planes.size(), rows_bytes = order.block_tokens * order.row_bytes;
    require(order.bases.size() == regions && order.kinds.size() == regions, "a region has one plane, base and kind");
    for (std::size_t r = 0; r < regions; ++r) {
        require(order.planes[r] < order.plane_count && order.kinds[r] < tables.size(), "no such plane or table");
        for (const std::size_t offset : tables[order.kinds[r]])
            require(order.bases[r] + offset + unit_bytes <= rows_bytes, "a region ends outside its block");
    }
}

Order order_of(std::size_t block_bytes, std::size_t block_tokens, std::size_t row_bytes, std::size_t plane_count,
               std::size_t unit_bytes, std::vector<std::uint8_t> planes, Offsets bases, Offsets kinds,
               const std::vector<Offsets>& tables) {
    require(plane_count > 0 && block_tokens > 0 && row_bytes > 0, "sizes must be at least 1");
    require(block_bytes == plane_count * block_tokens * row_bytes,
            "a block must hold its tokens' rows of every plane and nothing else");
    require(!planes.empty() && block_bytes % planes.size() == 0, "a block must be whole regions");
    std::vector<Moves> moves = moves_of(tables, block_bytes / planes.size(), unit_bytes);
    Order order{block_bytes, block_tokens, row_bytes, plane_count, std::move(planes), std::move(bases),
                std::move(kinds), std::move(moves)};
    check(order, tables, unit_bytes);
    return order;
}

class PagedLayers {
public:
    PagedLayers(std::vector<Array> arrays, std::size_t block_tokens, std::size_t row_bytes, std::size_t plane_count,
                std::size_t unit_bytes, std::vector<std::uint8_t> planes, Offsets bases, Offsets kinds,
                const std::vector<Offsets>& tables)
        : arrays_(std::move(arrays)) {
        require(!arrays_.empty(), "there are no layers");
        const std::size_t block_bytes = arrays_.front().shape(1);
        order_ = order_of(block_bytes, block_tokens, row_bytes, plane_count, unit_bytes, std::move(planes),
                          std::move(bases), std::move(kinds), tables);
        for (const Array& array : arrays_) {
            require(array.shape(1) == block_bytes, "blocks of layers differ in size");
            require(array.stride(1) == 1 && array.stride(0) >= static_cast<std::int64_t>(block_bytes),
                    "a block must be one piece of memory");
            layers_.push_back({array.data(), static_cast<std::size_t>(array.stride(0)), array.shape(0)});
        }
    }

    void read(const std::vector<std::int64_t>& table, std::size_t first, nb::handle part_object) const {
        const BufferView part(part_object, "part", true);
        const std::size_t tokens = tokens_of(table, first, part.bytes(), -1);
        const ReleaseGilFor release(table.size() * order_.block_bytes * layers_.size());
        paged::read(order_, layers_, table, first, tokens, part.data());
    }

    void write(const std::vector<std::int64_t>& table, std::size_t first, nb::handle part_object) const {
        const BufferView part(part_object, "part");
        const std::size_t tokens = tokens_of(table, first, part.bytes(), 0);
        const ReleaseGilFor release(table.size() * order_.block_bytes * layers_.size());
        paged::write(order_, layers_, table, first, tokens, part.data());
    }

private:
    std::size_t tokens_of(const std::vector<std::int64_t>& table, std::size_t first, std::size_t bytes,
                          std::int64_t least) const {
        const std::size_t token_bytes = layers_.size() * order_.plane_count * order_.row_bytes;
        require(bytes % token_bytes == 0, "a part must be whole tokens of all layers");
        const std::size_t tokens = bytes / token_bytes;  // which may end inside a block: then that block is out of reach
        require(first <= tokens / order_.block_tokens && table.size() <= tokens / order_.block_tokens - first,
                "the blocks reach past the end of the part");
        for (const std::int64_t block : table) {
            if (block < least) throw nb::index_error("no such block");
            for (const Layer& layer : layers_)
                if (block >= static_cast<std::int64_t>(layer.count)) throw nb::index_error("no such block");
        }
        return tokens;
    }

    std::vector<Array> arrays_;  // which keep the memory
    std::vector<Layer> layers_;
    Order order_;
};

}  // namespace

void bind_paged(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<PagedLayers>(m, "PagedLayers")
        .def(nb::init<std::vector<Array>, std::size_t, std::size_t, std::size_t, std::size_t,
                      std::vector<std::uint8_t>, Offsets, Offsets, std::vector<Offsets>>(),
             "layers"_a, nb::kw_only(), "block_tokens"_a, "row_bytes"_a, "planes_per_layer"_a, "unit_bytes"_a,
             "planes"_a, "bases"_a, "kinds"_a, "tables"_a)
        .def("read", &PagedLayers::read, "table"_a, "first"_a, "part"_a)
        .def("write", &PagedLayers::write, "table"_a, "first"_a, "part"_a);
}

}  // namespace kvstore
