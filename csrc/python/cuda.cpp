// Bindings of the CUDA driver and of the tables that choose instances of the CUDA kernels.
#include "../cuda/driver.h"
#include "../cuda/kernels/attention.h"
#include "../cuda/kernels/choice.h"
#include "../cuda/kernels/ddim_step.h"
#include "../cuda/kernels/group_norm.h"
#include "../cuda/kernels/norm_silu_conv3x3.h"
#include "../cuda/kernels/tail.h"
#include "arguments.h"

namespace swk::python {
namespace {

py::tuple as_tuple(const cuda::Choice& choice) {
    if (choice.name == nullptr) throw py::value_error("no instance of the CUDA kernel serves these sizes");
    return py::make_tuple(choice.name, choice.threads, choice.shared_bytes, choice.units);
}

void launch(std::string image, std::string kernel, int device, unsigned grid, unsigned threads, unsigned shared_bytes,
            std::vector<uint64_t> pointers, std::vector<int32_t> integers, std::vector<float> floats, uint64_t stream) {
    const cuda::Launch asked{std::move(image),    std::move(kernel),   device,
                             grid,                threads,             shared_bytes,
                             std::move(pointers), std::move(integers), std::move(floats),
                             stream};
    py::gil_scoped_release unlocked;
    cuda::launch(asked);
}

py::tuple device_facts(int device) {
    const cuda::DeviceFacts found = cuda::device_facts(device);
    return py::make_tuple(found.major, found.minor, found.multiprocessors, found.shared_bytes);
}

// The tables of csrc/cuda/kernels/*.h. Each gives (name, threads, shared bytes, units) or raises ValueError.
template <typename... Numbers>
void bind_choice(py::module_& module, const char* name, cuda::Choice (*choose)(Numbers...)) {
    module.def(name, [choose](Numbers... numbers) { return as_tuple(choose(numbers...)); });
}

}  // namespace

void bind_cuda(py::module_& module) {
    py::register_exception<cuda::DriverError>(module, "CudaDriverError", PyExc_RuntimeError);
    module.def("cuda_driver_absent", &cuda::why_absent, "Why libcuda.so.1 cannot be used, or an empty string.");
    module.def("cuda_driver_version", &cuda::driver_version, "1000 * major + 10 * minor of the CUDA that it knows.");
    module.def("cuda_device_facts", &device_facts, py::arg("device"),
               "(major, minor, multiprocessors, dynamic shared bytes of a block)");
    module.def("cuda_launch", &launch, py::kw_only(), py::arg("image"), py::arg("kernel"), py::arg("device"),
               py::arg("grid"), py::arg("threads"), py::arg("shared_bytes"), py::arg("pointers"), py::arg("integers"),
               py::arg("floats"), py::arg("stream"), "csrc/cuda/driver.h");
    bind_choice(module, "cuda_choose_attention", &cuda::choose_attention);
    bind_choice(module, "cuda_choose_tail", &cuda::choose_tail);
    bind_choice(module, "cuda_choose_conv3x3", &cuda::choose_conv3x3);
    bind_choice(module, "cuda_choose_ddim_step", &cuda::choose_ddim_step);
    bind_choice(module, "cuda_choose_group_norm_apply", &cuda::choose_group_norm_apply);
    bind_choice(module, "cuda_choose_group_norm_statistics", &cuda::choose_group_norm_statistics);
    bind_choice(module, "cuda_choose_group_norm_table", &cuda::choose_group_norm_table);
}

}  // namespace swk::python
