#include "buffer.hpp"

#include <cstring>

namespace kvstore {

namespace {

[[noreturn]] void raise_not_contiguous(const char* name, bool writable) {
    nb::python_error cause;
    const std::string wanted = writable ? "a writable, C-contiguous buffer" : "a C-contiguous buffer";
    const std::string message = std::string(name) + " must be " + wanted + ": " + nb::str(cause.value()).c_str();
    throw nb::value_error(message.c_str());
}

template <typename T>
T load_item(const std::uint8_t* base, std::size_t i) {
    T value;
    std::memcpy(&value, base + i * sizeof value, sizeof value);
    return value;
}

}  // namespace

BufferView::BufferView(nb::handle object, const char* name, bool writable)
    : BufferView(object, name, writable ? PyBUF_WRITABLE : 0) {}

BufferView::BufferView(nb::handle object, const char* name, int flags) {
    if (!PyObject_CheckBuffer(object.ptr())) {
        const std::string message = std::string(name) + " must be a buffer (bytes, memoryview, NumPy array), got " +
                                    nb::type_name(object.type()).c_str();
        throw nb::type_error(message.c_str());
    }
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS | flags) != 0)
        raise_not_contiguous(name, (flags & PyBUF_WRITABLE) != 0);
}

BufferView::~BufferView() { PyBuffer_Release(&view_); }

bool BufferView::has_items_of(const char* letters) const {
    const char* format = view_.format;
    if (format == nullptr) return false;
    if (*format == '@' || *format == '=' || *format == '<') ++format;
    return format[0] != '\0' && format[1] == '\0' && std::strchr(letters, format[0]) != nullptr;
}

Words::Words(nb::handle object, const char* name) : view_(BufferView::of_items(object, name)) {
    if (view_.item_bytes() != sizeof(std::uint64_t) || !view_.has_items_of("LlQq"))
        throw nb::type_error((std::string(name) + " must be an array of uint64").c_str());
}

std::uint64_t Words::operator[](std::size_t i) const { return load_item<std::uint64_t>(view_.data(), i); }

Rows::Rows(nb::handle object, const char* name)
    : view_(BufferView::of_items(object, name)), is_signed_(view_.has_items_of("lqi")) {
    if ((view_.item_bytes() != 8 && view_.item_bytes() != 4) || !view_.has_items_of("LlQqIi"))
        throw nb::type_error((std::string(name) + " must be an array of int64 or uint32").c_str());
}

std::uint64_t Rows::operator[](std::size_t i) const {
    if (view_.item_bytes() == 8) return load_item<std::uint64_t>(view_.data(), i);
    if (!is_signed_) return load_item<std::uint32_t>(view_.data(), i);
    return static_cast<std::uint64_t>(std::int64_t{load_item<std::int32_t>(view_.data(), i)});
}

NewArray::NewArray(const char* dtype, std::size_t length) { allocate(dtype, nb::int_(length)); }

NewArray::NewArray(const char* dtype, std::size_t length, std::size_t width) {
    allocate(dtype, nb::make_tuple(length, width));
}

void NewArray::allocate(const char* dtype, nb::object shape) {
    // Never released: an interpreter that is ending must not call back into it.
    static PyObject* const empty = nb::module_::import_("numpy").attr("empty").inc_ref().ptr();
    array_ = nb::handle(empty)(shape, dtype);
    const BufferView view(array_, "array", true);
    data_ = view.data();
}

}  // namespace kvstore
