// The instance of a kernel that serves given sizes: what the pure tables choose_<op> in this folder return. They are
// plain C++, so that the same choice is made for a GPU and for the emulated device.
#pragma once

namespace swk::cuda {

struct Choice {
    const char* name = nullptr;  // of the extern "C" entry; nullptr if no instance serves
    int threads = 0;             // of a block
    int shared_bytes = 0;        // dynamic shared memory of a block
    int units = 0;               // work of one block: pixels, vectors or windows, see each table
};

}  // namespace swk::cuda
