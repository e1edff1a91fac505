// Hazard tables for Python. Their methods keep the GIL, which is what makes each of them atomic for a client's threads.
#include "buffer.hpp"
#include "hazard_table.hpp"
#include "shared_reader.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <system_error>
#include <vector>

namespace kvstore {

namespace {

// What of a chunk's place depends on its spec alone.
struct Shape {
    std::uint32_t header;       // bytes before the payload
    std::uint64_t token_bytes;  // of payload
};

template <typename T>
nb::bytes to_bytes(const std::vector<T>& items) {
    return nb::bytes(items.data(), items.size() * sizeof(T));
}

// A look-up of packed references as the shared table has them.
struct Seen {
    Seen(const SharedTableReader& table, const nb::bytes& spec, const nb::bytes& packed)
        : refs(static_cast<const std::uint8_t*>(packed.data())),
          count(packed.size() / sizeof(ChunkRef)),
          present(count),
          chunks(count),
          answered(packed.size() % sizeof(ChunkRef) == 0 &&
                   table.lookup(fixed_bytes<SpecDigest>(spec, "spec"), refs, count, present.data(), chunks.data())) {}

    Place place(std::size_t i, const Shape& shape) const {
        std::uint32_t tokens;
        std::memcpy(&tokens, refs + i * sizeof(ChunkRef) + offsetof(ChunkRef, tokens), sizeof tokens);
        const std::uint64_t location = chunks[i].place >> kVersionBits << kBlockBits;
        return {location + shape.header, shape.token_bytes * tokens, 0, 0};
    }

    const std::uint8_t* refs;
    std::size_t count;
    std::vector<std::uint8_t> present;
    std::vector<Sighting> chunks;
    bool answered;
};

nb::object take(HazardTable& hazards, const SharedReader& reader, const nb::bytes& spec, const nb::bytes& refs,
                std::uint64_t until, std::uint32_t header, std::uint64_t token_bytes, bool all) {
    const std::shared_ptr<SharedTableReader> table = reader.table();
    if (table == nullptr) return nb::none();
    const Seen seen(*table, spec, refs);
    if (!seen.answered) return nb::none();
    if (all && std::find(seen.present.begin(), seen.present.end(), 0) != seen.present.end()) return nb::none();
    const SharedReach reach = reach_of(seen.refs, seen.count, seen.present.data());
    std::vector<std::uint32_t> used = reach.used;
    if (reach.first_ones) {
        used.resize(reach.count);
        std::iota(used.begin(), used.end(), 0);
    }
    std::vector<Place> places;
    places.reserve(used.size());
    for (const std::uint32_t each : used) {
        if (seen.chunks[each].place == 0) return nb::none();
        places.push_back(seen.place(each, {header, token_bytes}));
    }
    std::vector<std::uint32_t> numbers;
    numbers.reserve(used.size());
    if (!hazards.take(*table, seen.chunks.data(), used.data(), used.size(), until, numbers)) return nb::none();
    // Leaf to root: the head of a prefix is to go after its tail.
    for (auto each = used.rbegin(); each != used.rend(); ++each) hazards.mark(seen.chunks[*each].slot);
    return nb::make_tuple(reach.tokens, used_list(reach), flag_list(seen.present.data(), seen.count),
                          to_bytes(numbers), to_bytes(places));
}

nb::object take_each(HazardTable& hazards, const SharedReader& reader, const nb::bytes& spec, const nb::bytes& refs,
                     std::uint64_t until, std::uint32_t header, std::uint64_t token_bytes) {
    const std::shared_ptr<SharedTableReader> table = reader.table();
    if (table == nullptr) return nb::none();
    const Seen seen(*table, spec, refs);
    std::vector<std::uint32_t> known;
    if (seen.count != 0 && refs.size() % sizeof(ChunkRef) == 0)  // an overflowed table knows what it has
        for (std::uint32_t i = 0; i < seen.count; ++i)
            if (seen.present[i] && seen.chunks[i].place != 0) known.push_back(i);
    if (known.empty()) return nb::none();
    std::vector<std::uint32_t> numbers;
    if (!hazards.take(*table, seen.chunks.data(), known.data(), known.size(), until, numbers)) return nb::none();
    std::vector<Place> places(seen.count);
    for (const std::uint32_t each : known) {
        places[each] = seen.place(each, {header, token_bytes});
        hazards.mark(seen.chunks[each].slot | kReadMark);
    }
    return nb::make_tuple(to_bytes(numbers), to_bytes(places));
}

void release(HazardTable& hazards, const nb::bytes& packed) {
    std::vector<std::uint32_t> numbers(packed.size() / sizeof(std::uint32_t));
    std::memcpy(numbers.data(), packed.data(), numbers.size() * sizeof(std::uint32_t));
    hazards.release(numbers.data(), numbers.size());
}

nb::object drain(HazardBoard& board, std::size_t limit) {
    const std::vector<std::uint32_t> marks = board.drain(limit);
    NewArray array("u4", marks.size());
    std::copy(marks.begin(), marks.end(), array.data<std::uint32_t>());
    return array.release();
}

template <typename T>
void init(T* self, int fd) {
    try {
        new (self) T(fd);
    } catch (const std::system_error& error) {
        raise_os_error(error);
    }
}

}  // namespace

void bind_hazards(nb::module_& m) {
    using namespace nb::literals;
    m.attr("HAZARD_TABLE_BYTES") = kHazardTableBytes;
    m.attr("MAX_HAZARDS") = kHazards;
    m.attr("MAX_MARKS") = kMarks;
    nb::class_<HazardTable>(m, "HazardTable")
        .def("__init__", init<HazardTable>, "anchor"_a)
        .def("fileno", &HazardTable::fd)
        .def("close_descriptor", &HazardTable::close_fd)
        .def("take", take, "index"_a, "spec"_a, "refs"_a, "until"_a, "header"_a, "token_bytes"_a,
             "all"_a = false)
        .def("take_each", take_each, "index"_a, "spec"_a, "refs"_a, "until"_a, "header"_a, "token_bytes"_a)
        .def("release", release, "numbers"_a)
        .def("end", &HazardTable::end)
        .def_prop_ro("is_honoured", &HazardTable::is_honoured)
        .def_prop_ro("held", &HazardTable::held);
    nb::class_<HazardBoard>(m, "HazardBoard")
        .def("__init__", init<HazardBoard>, "fd"_a)
        .def("honour", [](HazardBoard& board) { board.set_honoured(true); })
        .def("end", [](HazardBoard& board) { board.set_honoured(false); })
        .def("holds", [](const HazardBoard& board, std::uint64_t at) { return board.holds(block_of(at)); }, "location"_a)
        .def("locations", [](const HazardBoard& board) {
                nb::list found;
                for (const std::uint64_t each : board.locations()) found.append(each);
                return found;
            })
        .def("drain", drain, "limit"_a)
        .def_prop_ro("lost", &HazardBoard::lost);
}

}  // namespace kvstore
