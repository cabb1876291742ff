// Runs the sparse kernels over a file of cases (cases.py) and compares with what they are to give: driver FILE.
// It needs neither Python nor PyTorch, so that it can be run on another processor or under a checker of memory.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../helper/sparse/kernels.cpp"

// called through these, so that each is a function of its own, whose instructions can be counted
static auto* volatile gather_of = &gather_float;
static auto* volatile weight_gradient_of = &weight_gradient_float;
static auto* volatile normalise_of = &normalise_float;
static auto* volatile normalise_backward_of = &normalise_backward_float;

enum Operation { GATHER, WEIGHT_GRADIENT, BOTH_GRADIENTS, NORMALISE, NORMALISE_BACKWARD, NORMED_GATHER, NORMED_GRADIENTS, SUM };
enum Role { GIVEN, RESULT, ADDED_TO, SCRATCH, ABSENT };  // of an array; what is added to is zero before

constexpr double ALLOWED = 1e-5;  // relative error
static FILE* file;

static double larger_error(double a, double b) { return b <= a ? a : b; }  // NaN is the largest

static void read(void* to, size_t bytes) {
    if (bytes && std::fread(to, bytes, 1, file) != 1) {
        std::fprintf(stderr, "the file of cases ends too early\n");
        std::exit(2);
    }
}

static int64_t number() {
    int64_t value;
    read(&value, sizeof value);
    return value;
}

static size_t count() { return size_t(number()); }

struct Array {  // of exactly the size that it is to have, so that whoever watches memory sees one step too far
    Role role = ABSENT;
    size_t bytes = 0;
    void* data = nullptr;
    std::vector<char> expected;

    void load() {
        role = Role(number());
        bytes = count();
        if (role == ABSENT) return;
        data = role == ADDED_TO ? std::calloc(bytes, 1) : std::malloc(bytes);
        expected.resize(role == RESULT || role == ADDED_TO ? bytes : 0);
        read(role == GIVEN ? data : expected.data(), role == SCRATCH ? 0 : bytes);
    }
    double error() const {  // of a result, relative
        double wrong = 0, all = 0;
        for (size_t i = 0; i < expected.size() / sizeof(float); i++) {
            float e;
            std::memcpy(&e, expected.data() + i * sizeof e, sizeof e);
            const double difference = double(static_cast<float*>(data)[i]) - e;
            wrong += difference * difference;
            all += double(e) * e;
        }
        return all > 0 ? std::sqrt(wrong / all) : wrong;
    }
};

struct Case {
    Operation operation;
    std::vector<int64_t> sizes;
    Plan plan, back;  // the second one for gradients of inputs
    std::vector<Array> plan_arrays, back_arrays, arrays;

    float* floats(size_t i) const { return static_cast<float*>(arrays[i].data); }
    const int32_t* indices(size_t i) const { return static_cast<int32_t*>(arrays[i].data); }
    int64_t* integers(size_t i) const { return static_cast<int64_t*>(arrays[i].data); }

    static void load_plan(Plan& plan, std::vector<Array>& arrays) {
        arrays.resize(count());
        if (!arrays.empty()) read(&plan, sizeof plan);
        for (size_t i = 0; i < arrays.size(); i++) {  // its addresses come first
            arrays[i].load();
            std::memcpy(reinterpret_cast<char*>(&plan) + i * sizeof(void*), &arrays[i].data, sizeof(void*));
        }
    }
    void load() {
        operation = Operation(number());
        sizes.resize(count());
        for (int64_t& size : sizes) size = number();
        load_plan(plan, plan_arrays);
        load_plan(back, back_arrays);
        arrays.resize(count());
        for (Array& array : arrays) array.load();
    }

    void run() const {
        const double eps = 1e-5;
        const int threads = 1;
        const int64_t blocks = sizes[0], lanes = sizes[1];
        if (operation == GATHER) {
            gather_of(&plan, floats(4), floats(7), floats(0), integers(1), floats(2), floats(3), floats(5), floats(6), nullptr,
                      nullptr, nullptr, blocks, lanes, threads);
        } else if (operation == WEIGHT_GRADIENT) {
            weight_gradient_of(&plan, floats(0), floats(1), integers(2), floats(3), floats(4), nullptr, nullptr, nullptr,
                               nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, blocks, lanes,
                               sizes[2], sizes[3], threads);
        } else if (operation == BOTH_GRADIENTS) {
            weight_gradient_of(&plan, floats(0), floats(1), integers(2), floats(3), floats(4), &back, floats(5), integers(2),
                               floats(6), floats(7), floats(8), floats(9), nullptr, nullptr, nullptr, nullptr, nullptr, blocks,
                               lanes, sizes[2], sizes[3], threads);
        } else if (operation == NORMED_GATHER) {
            const int64_t channels = plan.source_size / plan.source_plane;
            const Norm<float> norm = {floats(5), floats(6), floats(7), floats(8), floats(9), channels, sizes[2]};
            const Windows<float> windows = {floats(10), indices(11), channels, sizes[3], sizes[4]};
            const Statistics<float> statistics = {
                floats(13), floats(14), floats(15), static_cast<Moments*>(arrays[16].data), eps, 0.1, plan.rows, 0};
            gather_of(&plan, floats(4), floats(12), floats(0), integers(1), floats(2), floats(3), nullptr, nullptr, &norm,
                      &windows, &statistics, blocks, lanes, threads);
        } else if (operation == NORMED_GRADIENTS) {
            const int64_t channels = plan.source_size / plan.source_plane;
            const Norm<float> norm = {floats(10), floats(11), floats(12), nullptr, floats(13), channels, sizes[2]};
            const NormSums<float> sums = {static_cast<double*>(arrays[14].data), floats(15), floats(16), floats(17), 0};
            const NormBack<float> outputs = {floats(18), floats(19), floats(20), plan.rows, 0};
            const Windows<float> windows = {floats(21), indices(22), channels, sizes[4], sizes[5]};
            const Windows<float> output_windows = {floats(23), indices(24), plan.rows, sizes[6], sizes[7]};
            weight_gradient_of(&plan, floats(0), floats(1), integers(2), floats(3), floats(4), &back, floats(5), integers(2),
                               floats(6), floats(7), floats(8), floats(9), &norm, &sums, &outputs,
                               norm.y ? nullptr : &windows, &output_windows, blocks, lanes, sizes[3], 1, threads);
        } else if (operation == NORMALISE) {
            const Norm<float> norm = {floats(5), floats(3), floats(4), floats(1), floats(2), sizes[1], sizes[4]};
            const Statistics<float> statistics = {floats(5), floats(6), floats(7), nullptr, eps, 0.1, sizes[1], sizes[3]};
            normalise_of(&norm, &statistics, floats(0), blocks, sizes[2], threads);
        } else if (operation == SUM) {
            Call<float> call = {};
            call.kind = Kind::ADD;
            call.x = floats(0), call.g = floats(1), call.y = floats(2), call.lanes = sizes[0];
            run_float(&call, 1, threads);
        } else {
            const Norm<float> norm = {floats(10), floats(8), floats(9), nullptr, floats(1), sizes[1], sizes[4]};
            const NormSums<float> sums = {static_cast<double*>(arrays[11].data), floats(7), floats(5), floats(6), sizes[3]};
            normalise_backward_of(&norm, floats(0), floats(2), floats(3), floats(4), &sums, blocks, sizes[2], threads);
        }
    }

    double error() const {
        double worst = 0;
        for (const Array& array : arrays) worst = larger_error(worst, array.error());
        return worst;
    }
    void free() {
        for (Array& array : plan_arrays) std::free(array.data);
        for (Array& array : back_arrays) std::free(array.data);
        for (Array& array : arrays) std::free(array.data);
    }
};

int main(int argc, char** argv) {
    file = argc > 1 ? std::fopen(argv[1], "rb") : nullptr;
    if (!file) return 2;
    const int64_t n = number();
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        Case one;
        one.load();
        one.run();
        if (!(one.error() <= ALLOWED)) std::printf("case %lld: error %g\n", (long long)i, one.error());
        worst = larger_error(worst, one.error());
        one.free();
    }
    std::fclose(file);
    std::printf("%lld cases, vectors of %d bytes, error %g\n", (long long)n, vector_bytes(), worst);
    return worst <= ALLOWED ? 0 : 1;
}
