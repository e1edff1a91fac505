// Brings a mapping's pages into being ahead of use.
#include "bind.hpp"
#include "buffer.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace kvstore {

namespace {

// For kernels before 5.14. Adding nothing atomically keeps what another thread writes meanwhile.
void touch_pages(std::uint8_t* begin, std::uint8_t* end, std::size_t page) {
    for (std::uint8_t* p = begin; p < end; p += page) __atomic_fetch_add(p, 0, __ATOMIC_RELAXED);
}

int populate_pages(std::uint8_t* data, std::size_t bytes) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t before = reinterpret_cast<std::uintptr_t>(data) % page;
    if (madvise(data - before, bytes + before, MADV_POPULATE_WRITE) == 0) return 0;
    if (errno != EINVAL) return errno;
    touch_pages(data - before, data + bytes, page);
    return 0;
}

void populate(nb::handle object) {
    const BufferView buffer(object, "buffer", true);
    if (buffer.bytes() == 0) return;
    int error;
    {
        const ReleaseGilFor release(buffer.bytes());
        error = populate_pages(buffer.data(), buffer.bytes());
    }
    if (error != 0) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        throw nb::python_error();
    }
}

}  // namespace

void bind_populate(nb::module_& m) {
    using namespace nb::literals;
    m.def("populate", populate, "buffer"_a);
}

}  // namespace kvstore
