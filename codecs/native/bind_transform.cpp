// The transform codec for Python; codecs/transform/native.py gives it what an artefact holds.
#include "bind.hpp"
#include "buffer.hpp"
#include "transform.hpp"

#include <memory>

namespace kvstore {

namespace {

using transform::Dtype;
using transform::Elements;
using transform::Plan;
using transform::Rotary;
using transform::SectionSource;
using transform::Status;
using transform::Style;

[[noreturn]] void refuse(const std::string& reason) { throw nb::value_error(reason.c_str()); }

template <typename T>
std::span<const T> items_of(const BufferView& view) {
    return {reinterpret_cast<const T*>(view.data()), view.bytes() / sizeof(T)};
}

Dtype dtype_of(const std::string& name) {
    if (name == "bfloat16") return Dtype::bf16;
    if (name == "float16") return Dtype::fp16;
    if (name == "float32") return Dtype::fp32;
    refuse("values are bfloat16, float16 or float32, not " + name);
}

// The arrays of (column, matrix, scale, mean, forward), held while a plan is made of them.
struct SectionViews {
    explicit SectionViews(nb::tuple given)
        : column(nb::cast<std::size_t>(given[0])), matrix(given[1], "matrix"), scale(given[2], "scale"),
          mean(given[3], "mean"), forward(given[4], "forward") {}

    SectionSource source() const {
        const std::size_t channels = scale.bytes() / sizeof(float);
        const std::size_t live = channels > 0 ? matrix.bytes() / channels : 0;
        if (matrix.bytes() != live * channels || mean.bytes() != scale.bytes() ||
            forward.bytes() != live * channels * sizeof(float))
            refuse("a section's arrays do not fit one another");
        return {column, live, channels, reinterpret_cast<const std::int8_t*>(matrix.data()),
                items_of<float>(scale).data(), items_of<float>(mean).data(), items_of<float>(forward).data()};
    }

    std::size_t column;
    BufferView matrix, scale, mean, forward;
};

Plan planned(nb::handle freqs_object, nb::handle tables_object, nb::handle shift_object, nb::handle rounding_object,
             const nb::list& sections, const nb::list& rotary, std::size_t planes, std::size_t heads, std::size_t dim) {
    const BufferView freqs(freqs_object, "freqs");
    const BufferView tables(tables_object, "tables");
    const BufferView shift(shift_object, "shift");
    const BufferView rounding(rounding_object, "rounding");
    std::vector<std::unique_ptr<SectionViews>> views;
    std::vector<SectionSource> sources;
    for (const nb::handle each : sections) {
        views.push_back(std::make_unique<SectionViews>(nb::cast<nb::tuple>(each)));
        sources.push_back(views.back()->source());
    }
    std::vector<Rotary> turns;
    for (const nb::handle each : rotary) {
        const auto given = nb::cast<nb::tuple>(each);
        turns.push_back({nb::cast<std::size_t>(given[0]), nb::cast<std::size_t>(given[1]),
                         nb::cast<bool>(given[2]) ? Style::interleaved : Style::half});
    }
    std::optional<Plan> made = Plan::make(items_of<std::uint16_t>(freqs), items_of<std::uint8_t>(tables),
                                          items_of<std::uint8_t>(shift), items_of<float>(rounding), sources, turns,
                                          planes, heads, dim);
    if (!made) refuse("the parts of a plan do not fit one another");
    return *std::move(made);
}

// What Python says of a block's elements, checked: nothing outside `data` is reached.
class Given {
public:
    Given(const Plan& plan, const BufferView& data, const std::string& dtype, std::size_t tokens, std::size_t sinks,
          const nb::tuple& strides, const nb::list& tables) {
        elements_ = {data.data(), dtype_of(dtype), tokens, sinks, {}, {}, {}};
        if (sinks > tokens || strides.size() != elements_.strides.size()) refuse("the elements have another shape");
        const std::array<std::size_t, 5> sizes{plan.layers(), plan.planes, tokens, plan.heads, plan.dim};
        std::size_t last = 0;
        for (std::size_t i = 0; i < sizes.size(); ++i) {
            elements_.strides[i] = nb::cast<std::size_t>(strides[i]);
            if (elements_.strides[i] > data.bytes()) refuse("a stride is beyond the block");
            last += (sizes[i] - 1) * elements_.strides[i];
        }
        if (tokens == 0 || tokens > 1U << 16 || (last + 1) * elements_.item() > data.bytes())
            refuse(std::to_string(data.bytes()) + " bytes do not hold the block");
        if (tables.size() != plan.layers()) refuse("every layer has its cosines and sines");
        for (std::size_t layer = 0; layer < plan.layers(); ++layer) take(plan, layer, nb::cast<nb::tuple>(tables[layer]));
    }
    const Elements& elements() const { return elements_; }

private:
    void take(const Plan& plan, std::size_t layer, const nb::tuple& pair) {
        const std::size_t bytes = (elements_.tokens - elements_.sinks) * plan.rotary[layer].pairs * sizeof(float);
        for (std::size_t i = 0; i < 2; ++i) {
            views_.push_back(std::make_unique<BufferView>(pair[i], "rotary table"));
            if (views_.back()->bytes() != bytes) refuse("a rotary table has another size");
            (i == 0 ? elements_.cos : elements_.sin).push_back(items_of<float>(*views_.back()).data());
        }
    }

    Elements elements_;
    std::vector<std::unique_ptr<BufferView>> views_;
};

class TransformPlan {
public:
    TransformPlan(nb::handle freqs, nb::handle tables, nb::handle shift, nb::handle rounding, const nb::list& sections,
                  const nb::list& rotary, std::size_t planes, std::size_t heads, std::size_t dim)
        : plan_(planned(freqs, tables, shift, rounding, sections, rotary, planes, heads, dim)) {}

    bool decode(nb::handle body_object, nb::handle out_object, const std::string& dtype, std::size_t tokens,
                std::size_t sinks, const nb::tuple& strides, const nb::list& tables) const {
        const BufferView body(body_object, "body");
        const BufferView out(out_object, "out", true);
        const Given given(plan_, out, dtype, tokens, sinks, strides, tables);
        const nb::gil_scoped_release release;
        return transform::decode(plan_, {body.data(), body.bytes()}, given.elements()) == Status::ok;
    }

    nb::bytes encode(nb::handle data_object, const std::string& dtype, std::size_t tokens, std::size_t sinks,
                     const nb::tuple& strides, const nb::list& tables) const {
        const BufferView data(data_object, "data");
        const Given given(plan_, data, dtype, tokens, sinks, strides, tables);
        std::vector<std::uint8_t> body;
        Status status;
        {
            const nb::gil_scoped_release release;
            status = transform::encode(plan_, given.elements(), body);
        }
        if (status == Status::not_finite) refuse("NaN or infinity");
        if (status != Status::ok) refuse("components that are more than 32,767 steps from the mean, or too large in sum");
        return nb::bytes(body.data(), body.size());
    }

private:
    Plan plan_;
};

}  // namespace

void bind_transform(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<TransformPlan>(m, "TransformPlan")
        .def(nb::init<nb::handle, nb::handle, nb::handle, nb::handle, nb::list, nb::list, std::size_t, std::size_t,
                      std::size_t>(),
             "freqs"_a, "tables"_a, "shift"_a, "rounding"_a, "sections"_a, "rotary"_a, "planes"_a, "heads"_a, "dim"_a)
        .def("decode", &TransformPlan::decode, "body"_a, "out"_a, "dtype"_a, "tokens"_a, "sinks"_a, "strides"_a,
             "tables"_a)
        .def("encode", &TransformPlan::encode, "data"_a, "dtype"_a, "tokens"_a, "sinks"_a, "strides"_a, "tables"_a);
}

}  // namespace kvstore
