// Frames for Python. Waiting is done without the interpreter's lock.
#include "arrival.hpp"
#include "bind.hpp"
#include "buffer.hpp"
#include "frames.hpp"
#include "held_part.hpp"
#include "staged_puts_object.hpp"

#include <nanobind/stl/vector.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <limits>
#include <list>

namespace kvstore {

namespace {

struct Frame {
    std::uint16_t method;
    std::uint16_t flags;
    nb::bytes message;
    std::uint64_t payload;
};

std::span<const std::uint8_t> bytes_of(const BufferView& view) { return {view.data(), view.bytes()}; }

iovec piece_of(const void* data, std::size_t bytes) { return {const_cast<void*>(data), bytes}; }

nb::object frame_in(const FrameBuffer& buffer) {
    return nb::cast(Frame{buffer.head.method, buffer.head.flags,
                          nb::bytes(buffer.message.data(), buffer.message.size()), buffer.head.payload});
}

void require_message(std::size_t bytes) {
    if (bytes > std::numeric_limits<std::uint32_t>::max()) throw nb::value_error("a message has less than 4 GiB");
}

nb::bytes encode(std::uint16_t method, nb::handle message_object, std::uint16_t flags, std::uint64_t payload) {
    const BufferView message(message_object, "message");
    require_message(message.bytes());
    const FrameHead head = frame_head(method, flags, bytes_of(message), payload);
    PyObject* const frame = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(kHeadBytes + message.bytes()));
    if (frame == nullptr) throw nb::python_error();
    char* const out = PyBytes_AS_STRING(frame);
    std::memcpy(out, &head, kHeadBytes);
    if (message.bytes() > 0) std::memcpy(out + kHeadBytes, message.data(), message.bytes());
    return nb::steal<nb::bytes>(frame);
}

// Buffers of any kind, held while they are sent.
class Pieces {
public:
    explicit Pieces(nb::handle objects) {
        for (nb::handle each : objects) {
            views_.emplace_back(each, "piece");
            total_ += views_.back().bytes();
            parts_.push_back(piece_of(views_.back().data(), views_.back().bytes()));
        }
    }
    void put_first(const void* data, std::size_t bytes) { parts_.insert(parts_.begin(), piece_of(data, bytes)); }
    std::size_t total() const { return total_; }
    std::span<iovec> parts() { return parts_; }

private:
    std::list<BufferView> views_;  // which cannot move
    std::vector<iovec> parts_;
    std::size_t total_ = 0;
};

bool check_signals() {
    const nb::gil_scoped_acquire acquire;
    return PyErr_CheckSignals() == 0;
}

// Deadlines are None or seconds on the clock of time.monotonic.
FrameLimit limit_of(nb::handle deadline, double patience) {
    if (deadline.is_none()) return {std::numeric_limits<double>::infinity(), patience};
    return {nb::cast<double>(deadline), patience};
}

// The outcome of a call that Python is told as a number; what is an exception to it is raised.
nb::object told(FrameOutcome outcome, int error) {
    if (outcome == FrameOutcome::raised) throw nb::python_error();
    if (outcome == FrameOutcome::failed) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        throw nb::python_error();
    }
    return nb::int_(static_cast<int>(outcome));
}

class Wire {
public:
    Wire(int fd, bool takes_descriptors) : socket_(fd, takes_descriptors, check_signals) {}

    nb::object send(std::uint16_t method, nb::handle message_object, std::uint16_t flags, nb::handle payload,
                    nb::handle descriptors, nb::handle deadline, double patience) {
        const BufferView message(message_object, "message");
        require_message(message.bytes());
        Pieces pieces(payload);
        const FrameHead head = frame_head(method, flags, bytes_of(message), pieces.total());
        pieces.put_first(message.data(), message.bytes());
        pieces.put_first(&head, kHeadBytes);
        return send_pieces(pieces.parts(), descriptors, limit_of(deadline, patience));
    }

    nb::object send_raw(nb::handle objects, nb::handle descriptors, nb::handle deadline, double patience) {
        Pieces pieces(objects);
        return send_pieces(pieces.parts(), descriptors, limit_of(deadline, patience));
    }

    nb::object receive(nb::handle deadline, double patience, bool idle, std::size_t longest) {
        const FrameLimit limit = limit_of(deadline, patience);
        return outcome_of([&] { return socket_.receive(limit, idle, longest); }, true);
    }

    // Waits for a frame without limit, and answers the puts and gets that come meanwhile.
    nb::object serve(StagedPutsObject* puts, PartSource* gets, double patience, std::size_t longest) {
        const FrameLimit limit{std::numeric_limits<double>::infinity(), patience};
        return outcome_of(
            [&] {
                for (;;) {
                    const FrameOutcome outcome = socket_.receive(limit, true, longest);
                    if (outcome != FrameOutcome::done || !socket_.descriptors().empty()) return outcome;
                    const std::optional<FrameOutcome> sent = answer(puts, gets, limit);
                    if (!sent) return outcome;
                    if (*sent != FrameOutcome::done) return *sent;
                }
            },
            true);
    }

    nb::object exchange(std::uint16_t method, nb::handle message_object, nb::handle ahead_object, nb::handle deadline,
                        double patience, std::size_t longest) {
        const BufferView message(message_object, "message");
        const BufferView ahead(ahead_object, "ahead");
        require_message(message.bytes());
        const FrameHead head = frame_head(method, 0, bytes_of(message), 0);
        std::array<iovec, 3> pieces = {piece_of(ahead.data(), ahead.bytes()), piece_of(&head, kHeadBytes),
                                       piece_of(message.data(), message.bytes())};
        const FrameLimit limit = limit_of(deadline, patience);
        return outcome_of([&] { return ask(pieces, limit, longest); }, true);
    }

    // `exchange` for an answer whose payload fills `out`: it is read if there is just as much of it.
    // Gives 0 then, and otherwise what `exchange` does.
    nb::object fill(std::uint16_t method, nb::handle message_object, nb::handle out_object, nb::handle deadline,
                    double patience, std::size_t longest) {
        const BufferView message(message_object, "message");
        const BufferView out(out_object, "out", true);
        require_message(message.bytes());
        const FrameHead head = frame_head(method, 0, bytes_of(message), 0);
        std::array<iovec, 2> pieces = {piece_of(&head, kHeadBytes), piece_of(message.data(), message.bytes())};
        const FrameLimit limit = limit_of(deadline, patience);
        bool other = false;
        const nb::object found = outcome_of(
            [&] {
                const FrameOutcome outcome = ask(pieces, limit, longest);
                other = outcome == FrameOutcome::done && !answers(method, out.bytes());
                return other || outcome != FrameOutcome::done ? outcome : socket_.read({out.data(), out.bytes()}, limit);
            },
            false);
        return other ? frame_in(socket_.buffer()) : found;
    }

    // `exchange` for a get of one whole raw part: its payload is read and checked if the answer announces just that.
    // Gives the numbers of damaged layer groups then, and otherwise what `exchange` does.
    nb::object fetch(std::uint16_t method, nb::handle message_object, const RawPart& part, const nb::bytes& item,
                     nb::handle out_object, nb::handle deadline, double patience, std::size_t longest) {
        const BufferView message(message_object, "message");
        const BufferView out(out_object, "out", true);
        require_message(message.bytes());
        if (out.bytes() != part.bytes()) throw nb::value_error("the destination has not the length of the part");
        const auto asked = record_of<ItemRef>(item, "item");
        const FrameLimit limit = limit_of(deadline, patience);
        const FrameHead head = frame_head(method, 0, bytes_of(message), 0);
        std::array<iovec, 2> pieces = {piece_of(&head, kHeadBytes), piece_of(message.data(), message.bytes())};
        std::optional<std::vector<std::uint32_t>> damaged;
        nb::object found = outcome_of(
            [&] {
                const FrameOutcome outcome = ask(pieces, limit, longest);
                if (outcome != FrameOutcome::done || !answers(method, out.bytes())) return outcome;
                return take_part(part, asked, {out.data(), out.bytes()}, limit, damaged);
            },
            true);
        return damaged ? nb::cast(*damaged) : found;
    }

    nb::object read(nb::handle out_object, nb::handle deadline, double patience) {
        const BufferView out(out_object, "out", true);
        const FrameLimit limit = limit_of(deadline, patience);
        return outcome_of([&] { return socket_.read({out.data(), out.bytes()}, limit); }, false);
    }

    int take_descriptor() {
        std::vector<int>& all = socket_.descriptors();
        if (all.empty()) return -1;
        const int first = all.front();
        all.erase(all.begin());
        return first;
    }

    void drop_descriptors() {
        for (const int each : socket_.descriptors()) ::close(each);
        socket_.descriptors().clear();
    }

    bool sent() const { return sent_; }
    std::size_t held() { return socket_.buffer().held(); }
    nb::object announced() {
        const FrameHead& head = socket_.buffer().head;
        return nb::make_tuple(head.length, head.payload);
    }
    void forget() { socket_.forget(); }

private:
    nb::object send_pieces(std::span<iovec> pieces, nb::handle descriptors, FrameLimit limit) {
        std::vector<int> passed;
        for (nb::handle each : descriptors) passed.push_back(nb::cast<int>(each));
        if (passed.size() > kMaxDescriptors)
            throw nb::value_error(("a frame carries up to " + std::to_string(kMaxDescriptors) + " descriptors").c_str());
        return outcome_of([&] { return socket_.send(pieces, passed, limit); }, false);
    }

    // Answers the frame that has come, if it is a put or a get of the plain kind; nothing if it is not.
    std::optional<FrameOutcome> answer(StagedPutsObject* puts, PartSource* gets, FrameLimit limit) {
        const FrameBuffer& buffer = socket_.buffer();
        if (puts != nullptr && puts->take(buffer.head, buffer.message, socket_.fd())) {
            iovec piece = piece_of(puts->answer().data(), puts->answer().size());
            return socket_.send({&piece, 1}, {}, limit);
        }
        const std::unique_ptr<HeldPart> held = gets ? gets->find(buffer.head, buffer.message) : nullptr;
        if (!held) return {};
        const FrameHead head = frame_head(buffer.head.method, 0, held->message, held->payload.size());
        std::array<iovec, 3> pieces = {piece_of(&head, kHeadBytes),
                                       piece_of(held->message.data(), held->message.size()),
                                       piece_of(held->payload.data(), held->payload.size())};
        return socket_.send(pieces, {}, limit);
    }

    // Sends a question and receives the next frame.
    FrameOutcome ask(std::span<iovec> pieces, FrameLimit limit, std::size_t longest) {
        sent_ = false;
        const FrameOutcome outcome = socket_.send(pieces, {}, limit);
        if (outcome != FrameOutcome::done) return outcome;
        sent_ = true;
        return socket_.receive(limit, false, longest);
    }

    // Whether the frame that has come is a plain answer of this method with so much payload.
    bool answers(std::uint16_t method, std::size_t payload) {
        const FrameHead& head = socket_.buffer().head;
        return head.method == method && head.flags == 0 && head.payload == payload;
    }

    // Reads the payload of the frame that has come, if that is what was asked for: then there is a list in `damaged`.
    FrameOutcome take_part(const RawPart& part, const ItemRef& asked, std::span<std::uint8_t> out, FrameLimit limit,
                           std::optional<std::vector<std::uint32_t>>& damaged) {
        std::optional<Digests> digests = part.digests(socket_.buffer().message, asked);
        if (!digests) return FrameOutcome::done;
        PartArrival arrival(part.groups(), std::move(*digests));
        while (!out.empty()) {
            std::size_t read = 0;
            const FrameOutcome outcome = socket_.read_some(out, limit, read);
            if (outcome != FrameOutcome::done) return outcome;
            arrival.take(out.first(read));
            out = out.subspan(read);
        }
        damaged = arrival.damaged();
        return FrameOutcome::done;
    }

    template <typename Act>
    nb::object outcome_of(Act act, bool receives) {
        if (busy_.test_and_set()) throw std::runtime_error("a stream belongs to one thread at a time");
        FrameOutcome outcome;
        int error;
        {
            const nb::gil_scoped_release release;
            outcome = act();
            error = errno;
        }
        busy_.clear();
        if (receives && outcome == FrameOutcome::done) return frame_in(socket_.buffer());
        return told(outcome, error);
    }

    FrameSocket socket_;
    std::atomic_flag busy_;
    bool sent_ = false;
};

// What Python has received itself: from OpenSSL.
class Received {
public:
    void feed(nb::handle object) {
        const BufferView data(object, "data");
        std::size_t done = 0;
        while (done < data.bytes()) {
            const std::span<std::uint8_t> room = buffer_.room();
            if (room.empty()) throw nb::value_error("more than one frame can take: call next() first");
            const std::size_t count = std::min(room.size(), data.bytes() - done);
            std::memcpy(room.data(), data.data() + done, count);
            buffer_.filled(count);
            done += count;
        }
    }
    nb::object next(std::size_t longest) {
        const FrameOutcome outcome = buffer_.next(longest);
        return outcome == FrameOutcome::done ? frame_in(buffer_) : nb::int_(static_cast<int>(outcome));
    }
    std::size_t take(nb::handle object) {
        const BufferView out(object, "out", true);
        return buffer_.take(out.data(), out.bytes());
    }
    std::size_t held() const { return buffer_.held(); }
    std::size_t room() { return buffer_.room().size(); }
    nb::object announced() const { return nb::make_tuple(buffer_.head.length, buffer_.head.payload); }

private:
    FrameBuffer buffer_;
};

}  // namespace

void bind_frames(nb::module_& m) {
    using namespace nb::literals;
    m.attr("FRAME_SENT") = static_cast<int>(FrameOutcome::done);
    m.attr("FRAME_PARTIAL") = static_cast<int>(FrameOutcome::partial);
    m.attr("FRAME_ENDED") = static_cast<int>(FrameOutcome::ended);
    m.attr("FRAME_LATE") = static_cast<int>(FrameOutcome::late);
    m.attr("FRAME_CUT_OFF") = static_cast<int>(FrameOutcome::cut_off);
    m.attr("FRAME_NONE") = static_cast<int>(FrameOutcome::no_frame);
    m.attr("FRAME_DAMAGED") = static_cast<int>(FrameOutcome::damaged);
    m.attr("FRAME_TOO_LARGE") = static_cast<int>(FrameOutcome::too_large);
    m.attr("FRAME_TOO_MANY_DESCRIPTORS") = static_cast<int>(FrameOutcome::too_many_descriptors);
    m.attr("FRAME_OVERSHOOT_S") = kFrameOvershoot;
    m.attr("MAX_PAYLOAD") = kMaxPayload;
    m.attr("MAX_DESCRIPTORS") = kMaxDescriptors;
    nb::class_<Frame>(m, "Frame")
        .def("__init__", [](Frame* self, std::uint16_t method, std::uint16_t flags, nb::bytes message,
                            std::uint64_t payload) { new (self) Frame{method, flags, std::move(message), payload}; },
             "method"_a, "flags"_a, "message"_a, "payload"_a)
        .def_ro("method", &Frame::method)
        .def_ro("flags", &Frame::flags)
        .def_ro("message", &Frame::message)
        .def_ro("payload", &Frame::payload);
    m.def("encode_frame", encode, "method"_a, "message"_a, "flags"_a, "payload"_a);
    m.def("peer_has_ended", peer_has_ended, "fd"_a);
    nb::class_<Received>(m, "FrameBuffer")
        .def(nb::init<>())
        .def("feed", &Received::feed, "data"_a)
        .def("next", &Received::next, "longest"_a)
        .def("take", &Received::take, "out"_a)
        .def_prop_ro("held", &Received::held)
        .def_prop_ro("room", &Received::room)
        .def_prop_ro("announced", &Received::announced);
    nb::class_<Wire>(m, "FrameSocket")
        .def(nb::init<int, bool>(), "fd"_a, "takes_descriptors"_a)
        .def("send", &Wire::send, "method"_a, "message"_a, "flags"_a, "payload"_a, "descriptors"_a,
             "deadline"_a.none(), "patience"_a)
        .def("send_raw", &Wire::send_raw, "pieces"_a, "descriptors"_a, "deadline"_a.none(), "patience"_a)
        .def("receive", &Wire::receive, "deadline"_a.none(), "patience"_a, "idle"_a, "longest"_a)
        .def("serve", &Wire::serve, "puts"_a.none(), "gets"_a.none(), "patience"_a, "longest"_a)
        .def("exchange", &Wire::exchange, "method"_a, "message"_a, "ahead"_a, "deadline"_a.none(), "patience"_a,
             "longest"_a)
        .def("fill", &Wire::fill, "method"_a, "message"_a, "out"_a, "deadline"_a.none(), "patience"_a, "longest"_a)
        .def("fetch", &Wire::fetch, "method"_a, "message"_a, "part"_a, "item"_a, "out"_a, "deadline"_a.none(),
             "patience"_a, "longest"_a)
        .def("read", &Wire::read, "out"_a, "deadline"_a.none(), "patience"_a)
        .def("take_descriptor", &Wire::take_descriptor)
        .def("drop_descriptors", &Wire::drop_descriptors)
        .def("forget", &Wire::forget)
        .def_prop_ro("sent", &Wire::sent)
        .def_prop_ro("held", &Wire::held)
        .def_prop_ro("announced", &Wire::announced);
}

}  // namespace kvstore
