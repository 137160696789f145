// Argument types of the bindings: memory with its size, which is checked before a kernel gets the address. It is float32,
// except for an Image, which may be bfloat16.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../base/elementwise.h"

namespace swk::python {

namespace py = pybind11;

// Contiguous float32 memory: (address, floats, owner), or None. Keeps the owner, a tensor, alive.
struct Buffer {
    float* data = nullptr;
    int64_t floats = 0;
    py::object owner;

    // The address. Throws value_error with `name` in its message if the size is not `needed` floats.
    float* exactly(int64_t needed, const char* name) const {
        if (floats != needed) refuse("", needed, name);
        return data;
    }

    // The same, or nullptr for None.
    float* exactly_or_none(int64_t needed, const char* name) const {
        return data ? exactly(needed, name) : nullptr;
    }

    // For scratch, which may be larger than needed.
    float* at_least(int64_t needed, const char* name) const {
        if (floats < needed) refuse("at least ", needed, name);
        return data;
    }

private:
    void refuse(const char* least, int64_t needed, const char* name) const {
        throw py::value_error(std::string(name) + " must hold " + least + std::to_string(needed) + " floats, found " +
                              std::to_string(floats));
    }
};

// A float32 tensor: (address, shape, strides in elements, owner). The tuple keeps the owner alive during the call.
struct View {
    float* data = nullptr;
    std::vector<int64_t> sizes, strides;
};

// A view of four dimensions whose elements may be bfloat16: the same tuple with True for bfloat16 at its end.
struct Image {
    View view;
    bool bfloat16 = false;
};

inline void expect(bool holds, const char* otherwise) {
    if (!holds) throw py::value_error(otherwise);
}

inline void expect_same_shape(const View& a, const View& b) {
    expect(a.sizes == b.sizes, "the tensors differ in shape");
}

inline void expect_image(const View& tensor) { expect(tensor.sizes.size() == 4, "an image has four dimensions"); }

inline void expect_threads(int threads) { expect(threads >= 1, "threads must be at least 1"); }

inline int64_t filled(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

void bind_block(py::module_& module);
void bind_cuda(py::module_& module);
void bind_denoiser(py::module_& module);

}  // namespace swk::python

namespace pybind11::detail {

template <>
struct type_caster<swk::python::Buffer> {
    PYBIND11_TYPE_CASTER(swk::python::Buffer, const_name("tuple[int, int, object] | None"));

    bool load(handle source, bool) {
        if (source.is_none()) return true;
        if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 3) return false;
        value.data = static_cast<float*>(PyLong_AsVoidPtr(PyTuple_GET_ITEM(source.ptr(), 0)));
        value.floats = PyLong_AsLongLong(PyTuple_GET_ITEM(source.ptr(), 1));
        value.owner = reinterpret_borrow<object>(PyTuple_GET_ITEM(source.ptr(), 2));
        const bool wrong = PyErr_Occurred() || value.floats < 0;
        PyErr_Clear();
        return !wrong;
    }
};

template <>
struct type_caster<swk::python::View> {
    PYBIND11_TYPE_CASTER(swk::python::View, const_name("tuple[int, tuple[int, ...], tuple[int, ...], object]"));

    bool load(handle source, bool) {
        if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 4) return false;
        value.data = static_cast<float*>(PyLong_AsVoidPtr(PyTuple_GET_ITEM(source.ptr(), 0)));
        const bool taken = read(PyTuple_GET_ITEM(source.ptr(), 1), value.sizes) &&
                           read(PyTuple_GET_ITEM(source.ptr(), 2), value.strides) && !PyErr_Occurred();
        PyErr_Clear();
        if (!taken) return false;
        swk::python::expect(value.sizes.size() == value.strides.size(), "a tensor needs one stride for each size");
        swk::python::expect(value.sizes.size() <= swk::kMaxRank, "a tensor may have at most 64 dimensions");
        return true;
    }

private:
    static bool read(PyObject* numbers, std::vector<int64_t>& to) {
        if (!PyTuple_Check(numbers)) return false;
        to.resize(PyTuple_GET_SIZE(numbers));
        for (size_t i = 0; i < to.size(); ++i) to[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(numbers, i));
        return true;
    }
};

template <>
struct type_caster<swk::python::Image> {
    PYBIND11_TYPE_CASTER(swk::python::Image, const_name("tuple[int, tuple[int, ...], tuple[int, ...], object, bool]"));

    bool load(handle source, bool convert) {
        if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 5) return false;
        const object tensor = reinterpret_steal<object>(PyTuple_GetSlice(source.ptr(), 0, 4));
        make_caster<swk::python::View> view;
        if (!view.load(tensor, convert)) return false;
        value.view = cast_op<swk::python::View&>(view);
        value.bfloat16 = PyTuple_GET_ITEM(source.ptr(), 4) == Py_True;
        return true;
    }
};

}  // namespace pybind11::detail
