// Files in memory: what two processes share.
#include "bind.hpp"
#include "buffer.hpp"

#include <nanobind/ndarray.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace kvstore {

namespace {

[[noreturn]] void fail(int error) {
    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
    throw nb::python_error();
}

struct Mapping {
    void* data;
    std::size_t bytes;
};

// The array is the only owner: the memory is unmapped when nothing stands on it any more. mmap.mmap would keep a
// descriptor open for each mapping.
nb::object map_file(int fd, std::size_t bytes, bool writable) {
    if (bytes == 0) fail(EINVAL);
    const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void* data = mmap(nullptr, bytes, protection, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) fail(errno);
    auto* mapping = new Mapping{data, bytes};
    nb::capsule owner(mapping, [](void* object) noexcept {
        auto* ended = static_cast<Mapping*>(object);
        munmap(ended->data, ended->bytes);
        delete ended;
    });
    if (writable)
        return nb::cast(nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>(data, {bytes}, owner));
    return nb::cast(nb::ndarray<nb::numpy, const std::uint8_t, nb::ndim<1>>(data, {bytes}, owner));
}

int populate_for_reading(std::uint8_t* data, std::size_t bytes) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t before = reinterpret_cast<std::uintptr_t>(data) % page;
    // Before Linux 5.14 the first readers pay for their pages.
    if (madvise(data - before, bytes + before, MADV_POPULATE_READ) == 0 || errno == EINVAL) return 0;
    return errno;
}

void populate_read(nb::handle object) {
    const BufferView buffer(object, "buffer");
    if (buffer.bytes() == 0) return;
    int error;
    {
        const ReleaseGilFor release(buffer.bytes());
        error = populate_for_reading(buffer.data(), buffer.bytes());
    }
    if (error != 0) fail(error);
}

}  // namespace

void bind_mapping(nb::module_& m) {
    using namespace nb::literals;
    m.def("map_file", map_file, "fd"_a, "nbytes"_a, "writable"_a = false);
    m.def("populate_read", populate_read, "buffer"_a);
}

}  // namespace kvstore
