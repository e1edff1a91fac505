// The entropy coder for Python; kvstore/codecs/rans.py checks dtypes and shapes.
#include "bind.hpp"
#include "buffer.hpp"
#include "rans.hpp"

#include <memory>

namespace kvstore {

namespace {

using rans::Bank;
using rans::Format;
using rans::Status;
using rans::Target;

std::span<const std::uint8_t> bytes_of(const BufferView& view) { return {view.data(), view.bytes()}; }

[[noreturn]] void refuse(const std::string& reason) { throw nb::value_error(reason.c_str()); }

// Whether it was a stream that an encoder makes.
bool told(Status status) {
    if (status == Status::no_such_table) refuse("a column's table is not in the bank");
    return status == Status::ok;
}

std::size_t tokens_of(std::size_t bytes, std::size_t columns, std::size_t item) {
    if (columns == 0 || bytes == 0 || bytes % (columns * item) != 0)
        refuse(std::to_string(bytes) + " bytes are no tokens of " + std::to_string(columns) + " columns");
    return bytes / (columns * item);
}

Format format_of(const std::string& name) {
    if (name == "bfloat16") return Format::bf16;
    if (name == "float16") return Format::fp16;
    if (name == "float32") return Format::fp32;
    refuse("values are bfloat16, float16 or float32, not " + name);
}

class RansBank {
public:
    explicit RansBank(nb::handle freqs_object) : bank_(made(freqs_object)) {}

    nb::bytes encode(nb::handle symbols_object, nb::handle tables_object) const {
        const BufferView symbols(symbols_object, "symbols");
        const BufferView tables(tables_object, "tables");
        const std::size_t columns = tables.bytes();
        const std::size_t tokens = tokens_of(symbols.bytes(), columns, 1);
        const std::size_t room = rans::encode_bound(tokens, columns);
        const auto memory = std::make_unique_for_overwrite<std::uint8_t[]>(room);
        std::span<const std::uint8_t> stream;
        Status status;
        {
            const ReleaseGilFor release(symbols.bytes());
            status = rans::encode(bank_, symbols.data(), columns, bytes_of(tables), tokens, {memory.get(), room}, stream);
        }
        if (status == Status::absent_symbol) refuse("a symbol has no frequency in its column's table");
        told(status);
        return nb::bytes(stream.data(), stream.size());
    }

    bool decode(nb::handle data, nb::handle tables, nb::handle out) const {
        return decode_into(data, tables, out, 1, {Format::symbols, nullptr, 0});
    }

    bool decode_levels(nb::handle data, nb::handle tables, nb::handle out) const {
        return decode_into(data, tables, out, 2, {Format::levels, nullptr, 0});
    }

    bool dequantize(nb::handle data, nb::handle tables, nb::handle scale_object, nb::handle mean_object,
                    nb::handle out, const std::string& dtype) const {
        const BufferView scale(scale_object, "scale");
        const BufferView mean(mean_object, "mean");
        const Format format = format_of(dtype);
        const std::size_t columns = BufferView(tables, "tables").bytes();
        if (scale.bytes() != 4 * columns || mean.bytes() != 4 * columns)
            refuse("scale and mean have a float32 for each of the " + std::to_string(columns) + " columns");
        const Target target{format, nullptr, 0, reinterpret_cast<const float*>(scale.data()),
                            reinterpret_cast<const float*>(mean.data())};
        return decode_into(data, tables, out, format == Format::fp32 ? 4 : 2, target);
    }

    std::size_t tables() const { return bank_.tables(); }

private:
    static Bank made(nb::handle freqs_object) {
        const BufferView freqs(freqs_object, "freqs");
        std::optional<Bank> bank =
            Bank::make({reinterpret_cast<const std::uint16_t*>(freqs.data()), freqs.bytes() / 2});
        if (!bank) refuse("a bank is uint16 [1 to 256 tables, 256 symbols], each table summing to 4096");
        return std::move(*bank);
    }

    bool decode_into(nb::handle data_object, nb::handle tables_object, nb::handle out_object, std::size_t item,
                     Target target) const {
        const BufferView data(data_object, "data");
        const BufferView tables(tables_object, "tables");
        const BufferView out(out_object, "out", true);
        const std::size_t columns = tables.bytes();
        const std::size_t tokens = tokens_of(out.bytes(), columns, item);
        target.data = out.data();
        target.stride = columns;
        Status status;
        {
            const ReleaseGilFor release(out.bytes());
            status = rans::decode(bank_, bytes_of(data), bytes_of(tables), tokens, target);
        }
        return told(status);
    }

    Bank bank_;
};

}  // namespace

void bind_rans(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<RansBank>(m, "RansBank")
        .def(nb::init<nb::handle>(), "freqs"_a)
        .def("encode", &RansBank::encode, "symbols"_a, "tables"_a)
        .def("decode", &RansBank::decode, "data"_a, "tables"_a, "out"_a)
        .def("decode_levels", &RansBank::decode_levels, "data"_a, "tables"_a, "out"_a)
        .def("dequantize", &RansBank::dequantize, "data"_a, "tables"_a, "scale"_a, "mean"_a, "out"_a, "dtype"_a)
        .def_prop_ro("tables", &RansBank::tables);
}

}  // namespace kvstore
