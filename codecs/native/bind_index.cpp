// The chunk index for Python. Its methods are short and keep the GIL, which is what makes each of them atomic.
#include "bind.hpp"
#include "buffer.hpp"
#include "index.hpp"
#include "shared_table.hpp"

#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>

namespace kvstore {

namespace {

// Row numbers arrive signed: a miss (-1) is then an IndexError like any other row that is not there.
using Row = std::int64_t;

Key to_key(const nb::bytes& bytes, const char* name) { return fixed_bytes<Key>(bytes, name); }

nb::bytes to_bytes(const Key& key) { return nb::bytes(key.data(), key.size()); }

std::uint32_t default_maximum(std::uint32_t max_chunks, std::uint32_t times, std::uint32_t given) {
    if (given != 0) return given;
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(std::uint64_t{max_chunks} * times, kMaxRows));
}

void init_index(Index* self, std::uint32_t max_chunks, std::uint64_t secret, std::uint32_t max_parts,
                std::uint32_t max_placements) {
    const std::uint32_t parts = default_maximum(max_chunks, 2, max_parts);
    const std::uint32_t placements = default_maximum(max_chunks, 4, max_placements);
    for (const std::uint32_t maximum : {max_chunks, parts, placements})
        if (maximum == 0 || maximum > kMaxRows)
            throw nb::value_error(("a table of the index must have 1 to " + std::to_string(kMaxRows) + " rows, not " +
                                   std::to_string(maximum))
                                      .c_str());
    new (self) Index(max_chunks, secret, parts, placements);
}

nb::object find_many(const Index& index, std::uint32_t scope, nb::handle object) {
    const BufferView keys(object, "keys");
    const std::size_t count = record_count(keys, sizeof(Key), "keys");
    NewArray rows("i8", count);
    index.find_many(scope, keys.data(), count, rows.data<std::int64_t>());
    return rows.release();
}

nb::object lookup(Index& index, std::uint32_t scope, nb::handle refs_object, nb::handle parts_object,
                  bool exact_only, std::int64_t now_ms) {
    const std::vector<ChunkRef> refs = aligned<ChunkRef>(refs_object, "refs");
    const std::vector<PartId> parts = aligned<PartId>(parts_object, "parts");
    NewArray rows("i8", refs.size());
    NewArray present("u1", parts.size(), refs.size());
    NewArray first_valid("u4", parts.size(), refs.size());
    index.lookup({scope, refs.data(), refs.size(), parts.data(), parts.size(), exact_only, now_ms},
                 rows.data<std::int64_t>(), present.data<std::uint8_t>(), first_valid.data<std::uint32_t>());
    return nb::make_tuple(rows.release(), present.release(), first_valid.release());
}

PartTable part_table(nb::handle parts, nb::handle headers) {
    PartTable table{aligned<PartId>(parts, "parts"), aligned<std::uint32_t>(headers, "headers")};
    if (table.parts.size() != table.headers.size())
        throw nb::value_error((std::to_string(table.parts.size()) + " parts have " +
                               std::to_string(table.headers.size()) + " header lengths")
                                  .c_str());
    return table;
}

Acceptable acceptable(bool exact_only, nb::handle skip_object) {
    const Rows skip(skip_object, "skip");
    Acceptable made{exact_only, std::vector<std::uint32_t>(skip.size())};
    for (std::size_t i = 0; i < skip.size(); ++i) made.skip[i] = static_cast<std::uint32_t>(skip[i]);
    return made;
}

nb::object find_items(const Index& index, std::uint32_t scope, nb::handle items, nb::handle parts,
                      nb::handle headers, bool exact_only, const nb::bytes& tier_order, nb::handle skip) {
    const std::vector<ItemRef> refs = aligned<ItemRef>(items, "items");
    NewArray chunks("i8", refs.size());
    NewArray placements("i8", refs.size());
    std::vector<Place> places(refs.size());
    const std::string tiers(tier_order.c_str(), tier_order.size());
    const std::size_t in_place =
        index.find_items({scope, refs.data(), refs.size()}, part_table(parts, headers), acceptable(exact_only, skip),
                         tiers, chunks.data<std::int64_t>(), placements.data<std::int64_t>(), places.data());
    return nb::make_tuple(chunks.release(), placements.release(),
                          nb::bytes(places.data(), places.size() * sizeof(Place)), in_place);
}

nb::bytes places(const Index& index, nb::handle rows_object, nb::handle parts, nb::handle headers, bool exact_only,
                 std::uint8_t tier, nb::handle skip) {
    const Rows rows(rows_object, "rows");
    const PartTable table = part_table(parts, headers);
    const Acceptable wanted = acceptable(exact_only, skip);
    const std::size_t width = table.parts.size();
    std::vector<Place> found(rows.size() * width);
    for (std::size_t i = 0; i < rows.size(); ++i)
        index.places(index.checked_chunk(rows[i]), table, wanted, tier, found.data() + i * width);
    return nb::bytes(found.data(), found.size() * sizeof(Place));
}

nb::tuple stored(const Index& index, nb::handle rows_object, nb::handle parts, nb::handle headers,
                 nb::handle from_object, bool exact_only, const nb::bytes& tier_order, nb::handle skip) {
    const Rows rows(rows_object, "rows");
    const PartTable table = part_table(parts, headers);
    const std::vector<std::uint32_t> from = aligned<std::uint32_t>(from_object, "needed_from");
    if (from.size() != table.parts.size()) throw nb::value_error("needed_from has not one number a part");
    const Acceptable wanted = acceptable(exact_only, skip);
    const std::string tiers(tier_order.c_str(), tier_order.size());
    NewArray tokens("u4", rows.size());
    NewArray bytes("u8", rows.size());
    NewArray places("u1", rows.size());
    NewArray forms("u2", rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const StoredCopy copy = index.stored(index.checked_chunk(rows[i]), {table, from.data(), wanted, tiers});
        tokens.data<std::uint32_t>()[i] = copy.tokens;
        bytes.data<std::uint64_t>()[i] = copy.bytes;
        places.data<std::uint8_t>()[i] = copy.tier;
        forms.data<std::uint16_t>()[i] = copy.form;
    }
    return nb::make_tuple(tokens.release(), bytes.release(), places.release(), forms.release());
}

std::vector<std::uint64_t> checked_placements(const Index& index, nb::handle object) {
    const Rows rows(object, "placements");
    std::vector<std::uint64_t> placements(rows.size());
    for (std::size_t i = 0; i < placements.size(); ++i) {
        index.placement(rows[i]);
        placements[i] = rows[i];
    }
    return placements;
}

void add_readers(Index& index, nb::handle placements) {
    for (const std::uint64_t placement : checked_placements(index, placements)) index.add_reader(placement);
}

void drop_readers(Index& index, nb::handle object) {
    const std::vector<std::uint64_t> placements = checked_placements(index, object);
    std::size_t done = 0;
    try {
        for (; done < placements.size(); ++done) index.drop_reader(placements[done]);
    } catch (const std::invalid_argument&) {
        while (done-- > 0) index.add_reader(placements[done]);
        throw;
    }
}

std::vector<std::uint32_t> checked_chunks(const Index& index, nb::handle object) {
    const Rows rows(object, "rows");
    std::vector<std::uint32_t> chunks(rows.size());
    for (std::size_t i = 0; i < chunks.size(); ++i) chunks[i] = index.checked_chunk(rows[i]);
    return chunks;
}

void lease(Index& index, nb::handle rows) {
    for (const std::uint32_t chunk : checked_chunks(index, rows)) index.add_lease(chunk);
}

std::vector<std::uint32_t> unlease(Index& index, nb::handle rows) {
    const std::vector<std::uint32_t> chunks = checked_chunks(index, rows);
    std::size_t done = 0;
    try {
        for (; done < chunks.size(); ++done) index.drop_lease(chunks[done]);
    } catch (const std::invalid_argument&) {
        while (done-- > 0) index.add_lease(chunks[done]);
        throw;
    }
    std::vector<std::uint32_t> removed;
    for (const std::uint32_t chunk : chunks)
        if (index.is_live_chunk(chunk) && index.remove_if_empty(chunk)) removed.push_back(chunk);
    return removed;
}

void touch(Index& index, nb::handle rows, std::int64_t now_ms) {
    for (const std::uint32_t chunk : checked_chunks(index, rows)) index.touch(chunk, now_ms);
}

nb::object touch_unleased(Index& index, nb::handle object, std::int64_t now_ms) {
    std::vector<std::uint32_t> touched;
    for (const std::uint32_t chunk : checked_chunks(index, object))
        if (!index.is_leased(chunk)) touched.push_back(chunk);
    for (const std::uint32_t chunk : touched) index.touch(chunk, now_ms);
    NewArray rows("u4", touched.size());
    std::copy(touched.begin(), touched.end(), rows.data<std::uint32_t>());
    return rows.release();
}

std::uint32_t checked_start(Row row) {
    if (row < 0 || row > kMaxRows) throw nb::index_error(("no chunk " + std::to_string(row)).c_str());
    return static_cast<std::uint32_t>(row);
}

nb::object live_chunks(const Index& index, Row start_row, std::size_t limit) {
    std::int64_t next = -1;
    const auto found = index.live_chunks(checked_start(start_row), limit, next);
    NewArray rows("u4", found.size());
    std::copy(found.begin(), found.end(), rows.data<std::uint32_t>());
    return nb::make_tuple(rows.release(), next);
}

nb::object idle_chunks(const Index& index, Row start_row, std::size_t count, std::size_t limit,
                       const std::vector<std::int64_t>& before_ms) {
    std::int64_t next = -1;
    const auto found = index.idle_chunks(checked_start(start_row), count, limit, before_ms, next);
    NewArray rows("u4", found.size());
    std::copy(found.begin(), found.end(), rows.data<std::uint32_t>());
    return nb::make_tuple(rows.release(), next);
}

nb::object export_tier(const Index& index, std::uint8_t tier) {
    std::vector<ExportRecord> records(index.count_in_tier(tier));
    index.export_tier(tier, records.data());
    const std::size_t bytes = records.size() * sizeof(ExportRecord);
    NewArray array("u1", bytes);
    if (bytes > 0) std::memcpy(array.data<std::uint8_t>(), records.data(), bytes);
    return array.release();
}

nb::object bulk_insert(Index& index, nb::handle object, std::uint8_t tier) {
    const BufferView records(object, "records");
    const std::size_t count = record_count(records, sizeof(ExportRecord), "records");
    NewArray placements("u4", count);
    index.bulk_insert(records.data(), count, tier, placements.data<std::uint32_t>());
    return placements.release();
}

// The number of the first record whose tokens or end are out of bounds, -1 where all are well.
std::int64_t wrong_ref(nb::handle object, std::uint32_t chunk_tokens, std::uint32_t end) {
    const BufferView refs(object, "refs");
    const std::size_t count = record_count(refs, sizeof(ChunkRef), "refs");
    for (std::size_t i = 0; i < count; ++i) {
        ChunkRef ref;
        std::memcpy(&ref, refs.data() + i * sizeof ref, sizeof ref);
        const bool well = ref.tokens >= 1 && ref.tokens <= chunk_tokens &&
                          std::uint64_t{ref.position} + ref.tokens <= end;
        if (!well) return static_cast<std::int64_t>(i);
    }
    return -1;
}

// A copy, as everything that Python sees of rows.
struct Chunk {
    ChunkRow row;
    ChunkRest rest;
};

void bind_rows(nb::module_& m) {
    nb::class_<Chunk>(m, "Chunk")
        .def_prop_ro("key", [](const Chunk& chunk) { return to_bytes(chunk.row.key); })
        .def_prop_ro("parent", [](const Chunk& chunk) { return to_bytes(chunk.rest.parent); })
        .def_prop_ro("scope", [](const Chunk& chunk) { return chunk.row.scope; })
        .def_prop_ro("position", [](const Chunk& chunk) { return chunk.row.position; })
        .def_prop_ro("tokens", [](const Chunk& chunk) { return chunk.row.tokens; })
        .def_prop_ro("leases", [](const Chunk& chunk) { return chunk.row.leases; })
        .def_prop_ro("hits", [](const Chunk& chunk) { return std::uint32_t{chunk.row.hits}; })
        .def_prop_ro("pin_until", [](const Chunk& chunk) { return chunk.rest.pin_until; })
        .def_prop_ro("last_use", [](const Chunk& chunk) { return chunk.row.last_use; })
        .def_prop_ro("flags", [](const Chunk& chunk) { return std::uint32_t{chunk.row.flags}; });
    nb::class_<PartRow>(m, "Part")
        .def_ro("chunk", &PartRow::chunk)
        .def_prop_ro("group", [](const PartRow& row) { return row.id.group; })
        .def_prop_ro("rank", [](const PartRow& row) { return row.id.rank; })
        .def_prop_ro("layer_start", [](const PartRow& row) { return row.id.layer_start; })
        .def_prop_ro("layer_end", [](const PartRow& row) { return row.id.layer_end; })
        .def_ro("first_valid", &PartRow::first_valid)
        .def_ro("logical", &PartRow::logical);
    nb::class_<PlacementRow>(m, "Placement")
        .def_ro("part", &PlacementRow::part)
        .def_ro("tier", &PlacementRow::tier)
        .def_prop_ro("exact", [](const PlacementRow& row) { return row.exact; })
        .def_ro("codec", &PlacementRow::codec)
        .def_ro("level", &PlacementRow::level)
        .def_ro("loc", &PlacementRow::loc)
        .def_prop_ro("stored", [](const PlacementRow& row) { return std::uint64_t{row.stored}; })
        .def_ro("readers", &PlacementRow::readers);
}

}  // namespace

void bind_index(nb::module_& m) {
    using namespace nb::literals;
    bind_rows(m);
    m.attr("EXPORT_ITEMSIZE") = sizeof(ExportRecord);
    m.def("wrong_ref", wrong_ref, "refs"_a, "chunk_tokens"_a, "end"_a);
    nb::class_<Index>(m, "Index")
        .def("__init__", init_index, "max_chunks"_a, "secret"_a, "max_parts"_a = 0, "max_placements"_a = 0)
        .def("find", [](const Index& index, std::uint32_t scope, const nb::bytes& key) {
                return index.find(scope, to_key(key, "key"));
            }, "scope"_a, "key"_a)
        .def("find_many", find_many, "scope"_a, "keys"_a)
        .def("insert_chunk", [](Index& index, std::uint32_t scope, const nb::bytes& key, const nb::bytes& parent,
                                std::uint32_t position, std::uint32_t tokens, std::int64_t now_ms) {
                return index.insert_chunk(scope, to_key(key, "key"), to_key(parent, "parent"), position, tokens,
                                          now_ms);
            }, "scope"_a, "key"_a, "parent"_a, "position"_a, "tokens"_a, "now_ms"_a)
        .def("add_part", [](Index& index, Row chunk, std::uint16_t group, std::uint16_t rank,
                            std::uint16_t layer_start, std::uint16_t layer_end, std::uint32_t first_valid,
                            std::uint64_t logical) {
                return index.add_part(chunk, {group, rank, layer_start, layer_end}, first_valid, logical);
            }, "chunk"_a, "group"_a, "rank"_a, "layer_start"_a, "layer_end"_a, "first_valid"_a, "logical"_a)
        .def("insert", [](Index& index, std::uint32_t scope, const nb::bytes& key, const nb::bytes& parent,
                          std::uint32_t position, std::uint32_t tokens, std::int64_t now_ms, std::uint16_t group,
                          std::uint16_t rank, std::uint16_t layer_start, std::uint16_t layer_end,
                          std::uint32_t first_valid, std::uint64_t logical, std::uint8_t tier, std::uint16_t codec,
                          std::uint16_t level, bool exact, std::uint64_t loc, std::uint64_t stored) {
                const Index::Inserted done = index.insert(
                    {to_key(key, "key"), to_key(parent, "parent"), scope, position, tokens,
                     {group, rank, layer_start, layer_end}, first_valid, codec, level, exact, tier, 0, logical, loc,
                     stored, now_ms, 0});
                return nb::make_tuple(done.chunk, done.first_valid, done.placement);
            }, "scope"_a, "key"_a, "parent"_a, "position"_a, "tokens"_a, "now_ms"_a, "group"_a, "rank"_a,
            "layer_start"_a, "layer_end"_a, "first_valid"_a, "logical"_a, "tier"_a, "codec"_a, "level"_a, "exact"_a,
            "loc"_a, "stored"_a)
        .def("find_part", [](const Index& index, Row chunk, std::uint16_t group, std::uint16_t rank,
                             std::uint16_t layer_start, std::uint16_t layer_end) {
                return index.find_part(chunk, {group, rank, layer_start, layer_end});
            }, "chunk"_a, "group"_a, "rank"_a, "layer_start"_a, "layer_end"_a)
        .def("add_placement", [](Index& index, Row part, std::uint8_t tier, std::uint16_t codec,
                                 std::uint16_t level, bool exact, std::uint64_t loc, std::uint64_t stored) {
                return index.add_placement(part, {tier, codec, level, exact, loc, stored});
            }, "part"_a, "tier"_a, "codec"_a, "level"_a, "exact"_a, "loc"_a, "stored"_a)
        .def("find_placement", [](const Index& index, Row part, std::uint8_t tier) {
                return index.find_placement(part, tier);
            }, "part"_a, "tier"_a)
        .def("best_placement", [](const Index& index, Row part, bool exact_only, const nb::bytes& tiers) {
                return index.best_placement(part, exact_only, static_cast<const std::uint8_t*>(tiers.data()),
                                            tiers.size());
            }, "part"_a, "exact_only"_a, "tier_order"_a)
        .def("remove_placement", [](Index& index, Row row) { return index.remove_placement(row); }, "placement"_a)
        .def("prune", [](Index& index, Row row) { return index.prune(row); }, "chunk"_a)
        .def("chunk", [](const Index& index, Row row) { return Chunk{index.chunk(row), index.rest(row)}; }, "row"_a)
        .def("part", [](const Index& index, Row row) { return PartRow(index.part(row)); }, "row"_a)
        .def("placement", [](const Index& index, Row row) { return PlacementRow(index.placement(row)); }, "row"_a)
        .def("chunk_parts", [](const Index& index, Row row) { return index.chunk_parts(row); }, "chunk"_a)
        .def("part_placements", [](const Index& index, Row row) { return index.part_placements(row); }, "part"_a)
        .def("set_loc", [](Index& index, Row row, std::uint64_t loc, std::uint64_t stored) {
                index.set_loc(row, loc, stored);
            }, "placement"_a, "loc"_a, "stored"_a)
        .def("add_reader", [](Index& index, Row row) { index.add_reader(row); }, "placement"_a)
        .def("drop_reader", [](Index& index, Row row) { index.drop_reader(row); }, "placement"_a)
        .def("set_flags", [](Index& index, Row row, std::uint32_t flags) { index.set_flags(row, flags); },
             "chunk"_a, "flags"_a)
        .def("pin", [](Index& index, Row row, std::int64_t until_ms) { index.pin(row, until_ms); }, "chunk"_a,
             "until_ms"_a)
        .def("lease", lease, "rows"_a)
        .def("unlease", unlease, "rows"_a)
        .def("touch", touch, "rows"_a, "now_ms"_a)
        .def("lookup", lookup, "scope"_a, "refs"_a, "parts"_a, "exact_only"_a, "now_ms"_a)
        .def("find_items", find_items, "scope"_a, "items"_a, "parts"_a, "headers"_a, "exact_only"_a, "tier_order"_a,
             "skip"_a)
        .def("places", places, "rows"_a, "parts"_a, "headers"_a, "exact_only"_a, "tier"_a, "skip"_a)
        .def("stored", stored, "rows"_a, "parts"_a, "headers"_a, "needed_from"_a, "exact_only"_a, "tier_order"_a,
             "skip"_a)
        .def("add_readers", add_readers, "placements"_a)
        .def("drop_readers", drop_readers, "placements"_a)
        .def("touch_unleased", touch_unleased, "rows"_a, "now_ms"_a)
        .def("publish_to", [](Index& index, std::uint32_t scope, SharedTable& table, const nb::bytes& spec,
                              std::uint32_t parts) {
                index.publish_to(scope, &table, fixed_bytes<SpecDigest>(spec, "spec"), parts);
            }, "scope"_a, "table"_a, "spec"_a, "parts"_a, nb::keep_alive<1, 3>())
        .def("publish_rows", [](Index& index, Row start_row, std::size_t limit) {
                return index.publish_rows(checked_start(start_row), limit);
            }, "start_row"_a, "limit"_a)
        .def("export", export_tier, "tier"_a)
        .def("bulk_insert", bulk_insert, "records"_a, "tier"_a)
        .def("chunks", live_chunks, "start_row"_a, "limit"_a)
        .def("idle_chunks", idle_chunks, "start_row"_a, "count"_a, "limit"_a, "before_ms"_a)
        .def("chunk_evictable", [](const Index& index, Row row, std::int64_t now_ms) {
                return index.evictable(row, now_ms);
            }, "row"_a, "now_ms"_a)
        .def("counts", [](const Index& index) {
                return nb::make_tuple(index.chunk_count(), index.part_count(), index.placement_count());
            })
        .def("resident_bytes", &Index::resident_bytes);
}

}  // namespace kvstore
