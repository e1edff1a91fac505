// Mappings whose place and pages are chosen.
#include "bind.hpp"
#include "buffer.hpp"
#include "memory.hpp"
#include "persist.hpp"

#include <nanobind/ndarray.h>
#include <sys/mman.h>

#include <cerrno>

namespace kvstore {

namespace {

void check(int error) {
    if (error == 0) return;
    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
    throw nb::python_error();
}

struct Mapping {
    void* data;
    std::size_t bytes;
};

nb::tuple map_aligned(int fd, std::size_t bytes, std::size_t alignment, bool sync) {
    const MappedMemory mapped = map_memory(fd, bytes, alignment, sync);
    check(mapped.error);
    nb::capsule owner(new Mapping{mapped.data, bytes}, [](void* object) noexcept {
        auto* ended = static_cast<Mapping*>(object);
        munmap(ended->data, ended->bytes);
        delete ended;
    });
    auto array = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>(mapped.data, {bytes}, owner);
    return nb::make_tuple(nb::cast(array), mapped.synced);
}

// On all of a writable buffer, without the interpreter's lock.
template <typename Change>
void change(nb::handle object, Change&& apply) {
    const BufferView buffer(object, "buffer", true);
    if (buffer.bytes() == 0) return;
    int error;
    {
        const nb::gil_scoped_release release;
        error = apply(buffer.data(), buffer.bytes());
    }
    check(error);
}

int node_at(nb::handle object) {
    const BufferView buffer(object, "buffer", true);
    if (buffer.bytes() == 0) throw nb::value_error("an empty buffer lies nowhere");
    int node = -1;
    check(node_of(buffer.data(), node));
    return node;
}

}  // namespace

void bind_memory(nb::module_& m) {
    using namespace nb::literals;
    m.def("map_aligned", map_aligned, "fd"_a, "nbytes"_a, "alignment"_a = 4096, "sync"_a = false);
    m.def("bind_to_node", [](nb::handle object, unsigned node, bool strict) {
        change(object, [&](std::uint8_t* data, std::size_t bytes) { return bind_to_node(data, bytes, node, strict); });
    }, "buffer"_a, "node"_a, "strict"_a = true);
    m.def("node_of", node_at, "buffer"_a);
    m.def("advise_huge", [](nb::handle object) { change(object, advise_huge); }, "buffer"_a);
    m.def("collapse_huge", [](nb::handle object) { change(object, collapse_huge); }, "buffer"_a);
    m.def("lock_memory", [](nb::handle object) { change(object, lock_memory); }, "buffer"_a);
    m.def("persist", [](nb::handle object) {
        change(object, [](std::uint8_t* data, std::size_t bytes) {
            write_back(data, bytes);
            drain();
            return 0;
        });
    }, "buffer"_a);
}

}  // namespace kvstore
