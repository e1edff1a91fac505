// The list behind a policy.
#include "bind.hpp"
#include "buffer.hpp"
#include "use.hpp"

#include <nanobind/stl/vector.h>

namespace kvstore {

namespace {

void touch_many(LruList& list, nb::handle object, bool reverse) {
    const Rows handles(object, "rows");
    for (std::size_t i = 0; i < handles.size(); ++i) list.touch(handles[reverse ? handles.size() - 1 - i : i]);
}

}  // namespace

void bind_lru(nb::module_& m) {
    using namespace nb::literals;
    // Handles arrive signed: a miss (-1) is then an IndexError like any other handle that the list cannot have.
    nb::class_<LruList>(m, "LruList")
        .def(nb::init<std::uint32_t>(), "max_handles"_a)
        .def("push", [](LruList& list, std::int64_t handle) { list.push(handle); }, "handle"_a)
        .def("touch_many", touch_many, "rows"_a, "reverse"_a = false)
        .def("remove", [](LruList& list, std::int64_t handle) { return list.remove(handle); }, "handle"_a)
        .def("oldest", &LruList::oldest)
        .def("newer", [](const LruList& list, std::int64_t handle) { return list.newer(handle); }, "handle"_a)
        .def("__len__", &LruList::size)
        .def("__contains__", [](const LruList& list, std::int64_t handle) { return list.contains(handle); },
             "handle"_a);
    m.def("use_unleased", &use_unleased, "index"_a, "orders"_a, "chunk"_a, "now_ms"_a);
}

}  // namespace kvstore
