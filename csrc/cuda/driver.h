// Launching of kernels from fatbins with the CUDA driver, loaded at run time: neither cudart nor torch at link.
//
// The kernels run in the device's primary context, which is torch's, and on the stream of the caller. A fatbin is
// loaded at its first use and kept. Loading is not allowed while a stream is captured, so a graph needs a call before.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace swk::cuda {

// The driver refused. what() is one sentence without full stop.
struct DriverError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Why libcuda.so.1 cannot be used, or "".
std::string why_absent();

// Version of CUDA that the driver knows: 1000 * major + 10 * minor. Throws DriverError without a driver.
int driver_version();

struct DeviceFacts {
    int major, minor;     // compute capability
    int multiprocessors;
    int shared_bytes;     // dynamic shared memory that a block may ask for
};

// Facts of the device with this ordinal. Throws DriverError.
DeviceFacts device_facts(int device);

// One launch. The kernel takes one struct by value: the pointers, the integers, the floats, in this order.
struct Launch {
    std::string image;  // path of the fatbin
    std::string kernel;
    int device;         // ordinal
    unsigned grid, threads, shared_bytes;
    std::vector<uint64_t> pointers;
    std::vector<int32_t> integers;
    std::vector<float> floats;
    uint64_t stream;  // CUstream; 0 is the legacy default stream
};

// Queues the launch. Throws DriverError.
void launch(const Launch& asked);

}  // namespace swk::cuda
