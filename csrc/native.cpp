// Python binding: the only native file that knows Python. It turns (pointer, sizes, strides) tuples into argument
// structs, checks that they agree, and lets go of the GIL while the kernel runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/elementwise.h"
#include "cpu/parallel.h"

namespace py = pybind11;

namespace {

// A tensor as Python hands it over: (data_ptr, shape, strides), strides in elements.
template <class T>
struct View {
    T* data = nullptr;
    std::vector<int64_t> sizes, strides;

    explicit View(const py::tuple& tensor) {
        if (tensor.size() != 3) throw py::type_error("a tensor is passed as (data_ptr, shape, strides)");
        data = reinterpret_cast<T*>(tensor[0].cast<uintptr_t>());
        sizes = tensor[1].cast<std::vector<int64_t>>();
        strides = tensor[2].cast<std::vector<int64_t>>();
        if (sizes.size() != strides.size()) throw py::value_error("a tensor needs one stride for each size");
        if (sizes.size() > swk::kMaxRank) throw py::value_error("a tensor may have at most 64 dimensions");
    }
};

using Output = View<float>;
using Input = View<const float>;

template <class A, class B>
void expect_same_shape(const A& a, const B& b) {
    if (a.sizes != b.sizes) throw py::value_error("the tensors differ in shape");
}

void ddim_step(const py::tuple& out_view, const py::tuple& z_view, const py::tuple& noise_view,
               const std::optional<py::tuple>& fresh_view, const std::vector<float>& coefficients, int threads) {
    const Output out(out_view);
    const Input z(z_view), noise(noise_view);
    expect_same_shape(out, z);
    expect_same_shape(out, noise);
    if (coefficients.size() != 6) throw py::value_error("ddim_step takes six coefficients");

    swk::DdimStepArgs args{};
    args.rank = static_cast<int>(out.sizes.size());
    args.sizes = out.sizes.data();
    args.out = out.data, args.out_strides = out.strides.data();
    args.z = z.data, args.z_strides = z.strides.data();
    args.noise = noise.data, args.noise_strides = noise.strides.data();
    std::optional<Input> fresh;
    if (fresh_view) {
        fresh.emplace(*fresh_view);
        expect_same_shape(out, *fresh);
        args.fresh = fresh->data, args.fresh_strides = fresh->strides.data();
    }
    args.coefficients = {coefficients[0], coefficients[1], coefficients[2],
                         coefficients[3], coefficients[4], coefficients[5]};
    args.threads = threads;
    const swk::Kernels& kernels = swk::kernels();

    py::gil_scoped_release unlocked;
    kernels.ddim_step(args);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Native kernels: raw pointers, sizes and strides; knows no torch.";
    module.attr("has_cuda") = false;
    module.def("supported_isas", &swk::supported_isas, "Instruction sets that this machine runs, the preferred first.");
    module.def("isa", [] { return swk::kernels().isa; }, "The instruction set in use; SWINTORMER_ISA forces one.");
    module.def("use_isa", &swk::use_isa, py::arg("isa"), "Take another instruction set from now on.");
    module.def("thread_source", &swk::thread_source, "Whose threads the kernels take: 'openmp' (torch's) or 'own'.");
    module.def("use_own_threads", &swk::use_own_threads, py::arg("own"), "Take the package's own threads, or torch's.");
    module.def("ddim_step", &ddim_step, py::arg("out"), py::arg("z"), py::arg("noise_pred"), py::arg("fresh"),
               py::arg("coefficients"), py::arg("threads"), "csrc/ops/ddim_step.h");
}
