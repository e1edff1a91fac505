// The arena's allocator.
#include "allocator.hpp"
#include "bind.hpp"

namespace kvstore {

namespace nb = nanobind;

void bind_allocator(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<Allocator>(m, "Allocator")
        .def(nb::init<std::uint64_t, std::uint64_t>(), "capacity"_a, "granularity"_a = 4096)
        .def("alloc", &Allocator::allocate, "nbytes"_a)
        .def("free", &Allocator::release, "offset"_a, "nbytes"_a)
        .def_prop_ro("capacity", &Allocator::capacity)
        .def_prop_ro("granularity", &Allocator::granularity)
        .def_prop_ro("used", &Allocator::used)
        .def_prop_ro("free_bytes", &Allocator::free_bytes)
        .def_prop_ro("largest_hole", &Allocator::largest_hole)
        .def_prop_ro("holes", &Allocator::holes);
}

}  // namespace kvstore
