// Tensors of drive_ops.cpp: in heap buffers that end at their last element, with a guard between elements.
#pragma once

#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/base/dispatch.h"
#include "../../csrc/base/parallel.h"

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kGuard = -12345.0f;  // between the elements of an output with gaps
std::mt19937 generator(0);

void expect(bool true_, const std::string& what) {
    if (!true_) throw std::runtime_error(what);
}

// `count` floats on the heap, 64-byte aligned and not one longer.
class Buffer {
public:
    explicit Buffer(int64_t count, float value = kNaN) : count_(count) {
        void* memory = nullptr;
        expect(posix_memalign(&memory, 64, count ? count * sizeof(float) : 1) == 0, "out of memory");
        data_.reset(static_cast<float*>(memory));
        for (int64_t i = 0; i < count; ++i) data_.get()[i] = value;
    }

    Buffer& randomise(float scale) {
        std::normal_distribution<float> normal(0.0f, scale);
        for (int64_t i = 0; i < count_; ++i) data_.get()[i] = normal(generator);
        return *this;
    }

    float* data() const { return data_.get(); }
    int64_t count() const { return count_; }

private:
    struct Free {
        void operator()(float* memory) const { free(memory); }
    };
    int64_t count_;
    std::unique_ptr<float, Free> data_;
};

using Sizes = std::vector<int64_t>;

enum class Layout { kNchw, kChannelsLast, kEverySecondColumn };
constexpr Layout kLayouts[] = {Layout::kNchw, Layout::kChannelsLast, Layout::kEverySecondColumn};

Sizes strides_of(Layout layout, const Sizes& sizes) {
    const int64_t c = sizes[1], h = sizes[2], w = sizes[3];
    if (layout == Layout::kChannelsLast) return {h * w * c, 1, w * c, c};
    const int64_t step = layout == Layout::kEverySecondColumn ? 2 : 1;
    return {c * h * w * step, h * w * step, w * step, step};
}

int64_t elements(const Sizes& sizes) {
    return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<int64_t>());
}

// Calls visit(offset) for each element, in the order of the indices.
template <class Visit>
void each_element(const Sizes& sizes, const Sizes& strides, const Visit& visit) {
    for (int64_t i = 0, count = elements(sizes); i < count; ++i) {
        int64_t offset = 0, left = i;
        for (size_t dim = sizes.size(); dim-- > 0; left /= sizes[dim]) offset += left % sizes[dim] * strides[dim];
        visit(offset);
    }
}

// A tensor in a buffer that ends at its last element.
struct Tensor {
    Sizes sizes, strides;
    Buffer buffer;

    Tensor(Sizes sizes_, Sizes strides_)
        : sizes(std::move(sizes_)), strides(std::move(strides_)), buffer(span(sizes, strides), kGuard) {}

    static int64_t span(const Sizes& sizes, const Sizes& strides) {
        if (elements(sizes) == 0) return 0;
        int64_t last = 0;
        for (size_t dim = 0; dim < sizes.size(); ++dim) last += (sizes[dim] - 1) * strides[dim];
        return last + 1;
    }

    Tensor& fill(const std::vector<float>& values) {
        size_t i = 0;
        each_element(sizes, strides, [&](int64_t offset) { buffer.data()[offset] = values[i++]; });
        return *this;
    }

    // The elements; throws if one was not written (NaN), or if anything between them was.
    std::vector<float> take_output() {
        std::vector<float> values;
        each_element(sizes, strides, [&](int64_t offset) {
            float& at = buffer.data()[offset];
            expect(std::isfinite(at) && at != kGuard, "an element of the output was not written, or is not finite");
            values.push_back(at), at = kGuard;
        });
        for (int64_t i = 0; i < buffer.count(); ++i) expect(buffer.data()[i] == kGuard, "a gap was written to");
        return values;
    }

    swk::ImageView image() const { return {buffer.data(), strides[0], strides[1], strides[2], strides[3]}; }
};

std::vector<float> random_values(int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(generator);
    return values;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    if (a.size() != b.size()) return false;
    return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace
