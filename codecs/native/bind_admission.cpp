// The filter in front of a tier, and what a chunk of the index finds there.
#include "admission.hpp"
#include "bind.hpp"
#include "buffer.hpp"
#include "index.hpp"

#include <nanobind/stl/string_view.h>

#include <algorithm>
#include <string>

namespace kvstore {

namespace {

Entry entry_of(std::string_view name) {
    const auto found = std::find(kEntryNames.begin(), kEntryNames.end(), name);
    if (found == kEntryNames.end() || found == kEntryNames.begin())
        throw nb::value_error(("nothing is refused for being '" + std::string(name) + "'").c_str());
    return static_cast<Entry>(found - kEntryNames.begin());
}

std::string_view name_of(Entry entry) { return kEntryNames[static_cast<std::size_t>(entry)]; }

}  // namespace

void bind_admission(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<Admission>(m, "Admission")
        .def(nb::init<bool, std::uint64_t, std::uint64_t, std::uint32_t>(), "second_touch"_a, "bytes_per_day"_a,
             "capacity"_a, "max_ghosts"_a)
        .def("judge", [](const Admission& filter, std::uint64_t key, bool used) {
                return name_of(filter.judge(key, used));
            }, "key"_a, "used"_a)
        .def("judge_chunk", [](const Admission& filter, const Index& index, std::int64_t row) {
                const ChunkRow& chunk = index.chunk(static_cast<std::uint64_t>(row));
                return name_of(filter.judge(Index::name_of(chunk.scope, chunk.key), chunk.hits > 0));
            }, "index"_a, "chunk"_a)
        .def("begin", &Admission::begin, "bytes"_a)
        .def("end", &Admission::end, "bytes"_a)
        .def("settle", &Admission::settle, "written"_a, "now_ms"_a)
        .def("refuse", [](Admission& filter, std::string_view why, std::uint64_t bytes) {
                filter.refuse(entry_of(why), bytes);
            }, "why"_a, "bytes"_a)
        .def("remember", &Admission::remember, "key"_a, "bytes"_a)
        .def("remember_chunk", [](Admission& filter, std::uint32_t scope, const nb::bytes& key, std::uint64_t bytes) {
                filter.remember(Index::name_of(scope, fixed_bytes<Key>(key, "key")), bytes);
            }, "scope"_a, "key"_a, "bytes"_a)
        .def("came", &Admission::came, "bytes"_a)
        .def("left", &Admission::left, "bytes"_a)
        .def("was_full", &Admission::was_full)
        .def("set_capacity", &Admission::set_capacity, "bytes"_a)
        .def("restore", &Admission::restore, "left"_a, "at_ms"_a)
        .def_prop_ro("state", [](const Admission& filter) { return name_of(filter.state()); })
        .def_prop_ro("has_room", &Admission::has_room)
        .def_prop_ro("budget_left", [](const Admission& filter) { return filter.budget().left(); })
        .def_prop_ro("budget_most", [](const Admission& filter) { return filter.budget().most(); })
        .def_prop_ro("ghosts", &Admission::ghosts);
    m.def("entry_names", [] {
        nb::list names;
        for (const std::string_view name : kEntryNames) names.append(nb::str(name.data(), name.size()));
        return names;
    });
}

}  // namespace kvstore
