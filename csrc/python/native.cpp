// The extension module. Only this folder uses Python: it converts tensors to argument structs, checks their sizes and
// releases the GIL while a kernel runs. Every argument is passed by name.
#include <algorithm>

#include "../base/parallel.h"
#include "../dispatch/dispatch.h"
#include "../dispatch/peak.h"
#include "arguments.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace {

namespace py = pybind11;

double peak(const std::string& dtype, int threads) {
    swk::python::expect_threads(threads);
    if (dtype != "float32" && dtype != "bfloat16") throw py::value_error("dtype must be 'float32' or 'bfloat16'");
    py::gil_scoped_release unlocked;
    return dtype == "float32" ? swk::peak_float32(threads) : swk::peak_bfloat16(threads);
}

// Makes the process keep freed memory, up to `most` bytes at the end of the heap. glibc accepts mmap thresholds up to
// 32 MiB; larger blocks are still returned to the operating system. False if the allocator is not glibc's.
bool keep_freed_memory(int64_t most) {
#if defined(__GLIBC__)
    constexpr int64_t kMostInHeap = 32 << 20, kMost = INT32_MAX;
    return mallopt(M_MMAP_THRESHOLD, static_cast<int>(std::min(most, kMostInHeap))) &&
           mallopt(M_TRIM_THRESHOLD, static_cast<int>(std::min(most, kMost)));
#else
    return most < 0;
#endif
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Native kernels: raw pointers, sizes and strides; knows no torch.";
    module.def("supported_isas", &swk::supported_isas, "Instruction sets that this machine runs, the preferred first.");
    module.def("isa", [] { return swk::kernels().isa; }, "The instruction set in use; SWINTORMER_ISA forces one.");
    module.def("has_bfloat16", [] { return swk::kernels().bfloat16; },
               "Whether products of bfloat16 are instructions of the instruction set in use, not emulated.");
    module.def("use_isa", &swk::use_isa, py::arg("isa"), "Take another instruction set from now on.");
    module.def("thread_source", &swk::thread_source, "Whose threads the kernels take: 'openmp' (torch's) or 'own'.");
    module.def("use_own_threads", &swk::use_own_threads, py::arg("own"), "Take the package's own threads, or torch's.");
    module.def("keep_freed_memory", &keep_freed_memory, py::arg("most"), "Whether the allocator can be told.");
    module.def("peak_gflops", &peak, py::arg("dtype"), py::arg("threads"), "csrc/dispatch/peak.h; 0 for none.");
    swk::python::bind_denoiser(module);
    swk::python::bind_block(module);
    swk::python::bind_cuda(module);
}
