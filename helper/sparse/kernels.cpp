// Linear and convolutional layers of which only some weights are there, and BatchNorm beside them, on a CPU.
//
// Activations are stored (blocks, channels, pixels, lanes): `lanes` examples of a block lie side by side, so that one weight
// multiplies a contiguous vector of examples. All sums have an order that depends neither on the number of threads nor on
// chance, so that training can be repeated to the bit.
//
// A plan says what a layer with one set of weights does. Target pixels fall into kinds, by the taps of the kernel that hit
// the image; each kind has its own rows of entries, one row per target channel. An entry is a weight and the distance, in
// pixels over all channels, between what it reads and the source of its run; a run is a piece of an image row of one kind.
// With source and target exchanged, the same plan of the transposed layer gives the gradient of the inputs.

#include <cstdint>  // no more: reading the standard library's headers takes as long as compiling all of this
#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define REGISTERS 16  // for sums, of 32
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define REGISTERS 8
#else
#define VECTOR_BYTES 16
#define REGISTERS 8
#endif
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")

struct Run {
    int64_t target, source;  // its first pixel, and the pixel from which its entries count
    int32_t pixels, kind;
};

struct Plan {
    const int64_t* starts;   // (kinds, rows + 1): where each row of entries begins
    const int32_t* offsets;  // (entries): distance in pixels
    const int32_t* which;    // (entries): number of the active weight
    const Run* runs;
    int64_t n_runs, rows, n_entries, n_active;
    int64_t source_size, target_size;  // pixels of all channels
    int64_t target_plane;              // pixels of a channel
};

struct Weights {  // of a layer, as its plan sees them
    int64_t targets, taps, sources, group_targets;  // `sources` of one group
    int64_t target_stride, source_stride;           // in the weight's memory
    const int64_t* tap_places;
};

struct Entries {  // active weights by row, tap and channel, and what one kind of pixels makes of them
    int64_t rows, taps, plane;
    const int64_t* starts;    // (rows * taps + 1)
    const int32_t* channels;  // of what they read
    const int32_t* numbers;   // null: as they come
    const uint8_t* hits;
    const int64_t* distances;
};

namespace {

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

template <typename T>
struct Vector;
template <>
struct Vector<float> {
    typedef float type __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
};
template <>
struct Vector<double> {
    typedef double type __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
};
template <typename T>
using Vec = typename Vector<T>::type;
template <typename T>
constexpr int WIDTH = VECTOR_BYTES / int(sizeof(T));
template <typename T>
constexpr int SUMS = sizeof(T) == 4 ? REGISTERS : 2;  // vectors at a time; double is for checks, and compiled fast

template <typename T>
INLINE Vec<T> load(const T* p) {
    return *reinterpret_cast<const Vec<T>*>(p);
}
template <typename T>
INLINE void store(T* p, Vec<T> v) {
    *reinterpret_cast<Vec<T>*>(p) = v;
}

// The first `n` elements of a vector; what lies behind them in memory is neither read nor written.
template <typename T>
struct Part {
    int n;
    explicit Part(int n) : n(n) {}
    Vec<T> load(const T* p) const {
        T kept[WIDTH<T>] = {};
        for (int i = 0; i < n; i++) kept[i] = p[i];
        return ::load<T>(kept);
    }
    void store(T* p, Vec<T> v) const {
        for (int i = 0; i < n; i++) p[i] = v[i];
    }
};
#if defined(__AVX512F__)
template <>
struct Part<float> {
    __mmask16 mask;
    explicit Part(int n) : mask(__mmask16((1u << n) - 1)) {}
    Vec<float> load(const float* p) const { return Vec<float>(_mm512_maskz_loadu_ps(mask, p)); }
    void store(float* p, Vec<float> v) const { _mm512_mask_storeu_ps(p, mask, __m512(v)); }
};
#elif defined(__AVX__)
template <>
struct Part<float> {
    __m256i mask;
    explicit Part(int n) {
        int32_t bits[8];
        for (int i = 0; i < 8; i++) bits[i] = i < n ? -1 : 0;
        mask = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits));
    }
    Vec<float> load(const float* p) const { return Vec<float>(_mm256_maskload_ps(p, mask)); }
    void store(float* p, Vec<float> v) const { _mm256_maskstore_ps(p, mask, __m256(v)); }
};
#endif

template <typename T>
INLINE T total(Vec<T> v) {
    T kept[WIDTH<T>];
    __builtin_memcpy(kept, &v, sizeof v);
    UNROLLED for (int half = WIDTH<T> / 2; half; half /= 2)
        UNROLLED for (int i = 0; i < half; i++) kept[i] += kept[i + half];
    return kept[0];
}

// ---------------------------------------------------------------------------------------------- weighted sums of sources

template <typename T>
struct Rows {  // of one run: what is read, where the sums go
    const int64_t* starts;
    const int32_t* offsets;
    const T* values;
    const T* bias;
    int64_t first, last, lanes, target_plane;
};

// `B` vectors of every row, the last of them of `n` elements if it is a part. They stay in registers over all of a row.
template <typename T, int B, bool PART>
void sum_rows(const Rows<T>& rows, const T* x, T* y, int n) {
    constexpr int W = WIDTH<T>, FULL = PART ? B - 1 : B;
    const Part<T> part(PART ? n : W - 1);
    for (int64_t k = rows.first; k < rows.last; k++) {
        Vec<T> sums[B];
        const Vec<T> begin = Vec<T>{} + (rows.bias ? rows.bias[k] : T(0));
        UNROLLED for (int i = 0; i < B; i++) sums[i] = begin;
        for (int64_t e = rows.starts[k]; e < rows.starts[k + 1]; e++) {
            const T* from = x + rows.offsets[e] * rows.lanes;
            const T value = rows.values[e];
            UNROLLED for (int i = 0; i < FULL; i++) sums[i] += value * load<T>(from + i * W);
            if (PART) sums[B - 1] += value * part.load(from + FULL * W);
        }
        T* to = y + k * rows.target_plane * rows.lanes;
        UNROLLED for (int i = 0; i < FULL; i++) store<T>(to + i * W, sums[i]);
        if (PART) part.store(to + FULL * W, sums[B - 1]);
    }
}

template <typename T, int B>
void sum_rows_of(int vectors, int n, const Rows<T>& rows, const T* x, T* y) {
    if constexpr (B > 0) {
        if (vectors < B) return sum_rows_of<T, B - 1>(vectors, n, rows, x, y);
        if (n) return sum_rows<T, B, true>(rows, x, y, n);
        return sum_rows<T, B, false>(rows, x, y, 0);
    }
}

// In pieces of about the same size, because one or two vectors alone would wait for each other's sums.
template <typename T>
void sum_run(const Rows<T>& rows, const T* x, T* y, int64_t length) {
    constexpr int W = WIDTH<T>;
    const int64_t vectors = (length + W - 1) / W, pieces = (vectors + SUMS<T> - 1) / SUMS<T>;
    for (int64_t piece = 0; piece < pieces; piece++) {
        const int64_t first = vectors * piece / pieces, last = vectors * (piece + 1) / pieces;
        const int n = last == vectors ? int(length % W) : 0;
        sum_rows_of<T, SUMS<T>>(int(last - first), n, rows, x + first * W, y + first * W);
    }
}

template <typename T>
void gather(const Plan& plan, const T* x, T* y, const T* values, const T* bias, int64_t blocks, int64_t lanes, int threads) {
    const int64_t pieces = blocks * plan.n_runs, wanted = 4 * int64_t(threads);
    const int64_t parts = pieces ? larger(1, smaller(plan.rows, (wanted + pieces - 1) / pieces)) : 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < pieces * parts; task++) {
        const int64_t part = task % parts, piece = task / parts, block = piece / plan.n_runs;
        const Run& run = plan.runs[piece % plan.n_runs];
        const Rows<T> rows = {plan.starts + run.kind * (plan.rows + 1), plan.offsets, values, bias,
                              plan.rows * part / parts, plan.rows * (part + 1) / parts, lanes, plan.target_plane};
        const T* from = x + (block * plan.source_size + run.source) * lanes;
        sum_run<T>(rows, from, y + (block * plan.target_size + run.target) * lanes, run.pixels * lanes);
    }
}

template <typename T>
void fill(const Plan& plan, const T* weight, const int64_t* active, T* compact, T* values, int threads) {
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < plan.n_active; i++) compact[i] = weight[active[i]];
#pragma omp for schedule(static)
        for (int64_t e = 0; e < plan.n_entries; e++) values[e] = compact[plan.which[e]];
    }
}

// -------------------------------------------------------------------------------------------- gradients of active weights

// Adds to `sums` the inner products of `g` with what `N` entries read.
template <typename T, int N>
void products(const T* g, const T* x, const int32_t* offsets, const int32_t* which, int64_t lanes, int64_t length, T* sums) {
    constexpr int W = WIDTH<T>, U = N >= 4 ? 2 : N >= 2 ? 4 : 8;  // enough sums at a time that none waits for another
    Vec<T> parts[N][U] = {};
    const T* from[N];
    UNROLLED for (int i = 0; i < N; i++) from[i] = x + offsets[i] * lanes;
    int64_t j = 0;
    for (; j + U * W <= length; j += U * W)
        UNROLLED for (int u = 0; u < U; u++) {
            const Vec<T> shared = load<T>(g + j + u * W);
            UNROLLED for (int i = 0; i < N; i++) parts[i][u] += shared * load<T>(from[i] + j + u * W);
        }
    for (; j + W <= length; j += W) {
        const Vec<T> shared = load<T>(g + j);
        UNROLLED for (int i = 0; i < N; i++) parts[i][0] += shared * load<T>(from[i] + j);
    }
    if (j < length) {
        const Part<T> part(int(length - j));
        const Vec<T> shared = part.load(g + j);
        UNROLLED for (int i = 0; i < N; i++) parts[i][0] += shared * part.load(from[i] + j);
    }
    UNROLLED for (int i = 0; i < N; i++) {
        UNROLLED for (int u = 1; u < U; u++) parts[i][0] += parts[i][u];
        sums[which[i]] += total<T>(parts[i][0]);
    }
}

template <typename T, int N>
void products_of(int n, const T* g, const T* x, const int32_t* offsets, const int32_t* which, int64_t lanes, int64_t length,
                 T* sums) {
    if constexpr (N > 0) {
        if (n < N) return products_of<T, N - 1>(n, g, x, offsets, which, lanes, length, sums);
        products<T, N>(g, x, offsets, which, lanes, length, sums);
    }
}

// `parts` and `row_parts` say how the work is divided; sums (parts, active) are zero, and are added up in their order.
template <typename T>
void weight_gradient(const Plan& plan, const T* x, const T* g, const int64_t* active, T* sums, T* gradient, int64_t blocks,
                     int64_t lanes, int64_t parts, int64_t row_parts, int threads) {
    constexpr int TOGETHER = SUMS<T> / 2;
    const int64_t pieces = blocks * plan.n_runs;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < parts * row_parts; task++) {
            const int64_t part = task / row_parts, row_part = task % row_parts;
            const int64_t first = plan.rows * row_part / row_parts, last = plan.rows * (row_part + 1) / row_parts;
            for (int64_t piece = pieces * part / parts; piece < pieces * (part + 1) / parts; piece++) {
                const Run& run = plan.runs[piece % plan.n_runs];
                const int64_t block = piece / plan.n_runs;
                const int64_t* starts = plan.starts + run.kind * (plan.rows + 1);
                const T* from = x + (block * plan.source_size + run.source) * lanes;
                const T* with = g + (block * plan.target_size + run.target) * lanes;
                for (int64_t k = first; k < last; k++)
                    for (int64_t e = starts[k]; e < starts[k + 1]; e += TOGETHER)
                        products_of<T, TOGETHER>(int(smaller(TOGETHER, starts[k + 1] - e)),
                                                 with + k * plan.target_plane * lanes, from, plan.offsets + e,
                                                 plan.which + e, lanes, run.pixels * lanes, sums + part * plan.n_active);
            }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < plan.n_active; i++) {
            T sum = 0;
            for (int64_t part = 0; part < parts; part++) sum += sums[part * plan.n_active + i];
            gradient[active[i]] = sum;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------- plans

// The first `n` bools of a piece of a mask, at most 64, as bits.
INLINE uint64_t bits_of(const uint8_t* p, int64_t n) {
    uint64_t bits = 0;
    for (int64_t i = 0; i < n; i += 8) {
        uint64_t bytes = 0;
        __builtin_memcpy(&bytes, p + i, smaller(8, n - i));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        bytes = __builtin_bswap64(bytes);
#endif
        bits |= (bytes * 0x0102040810204080u >> 56) << i;  // the product's highest byte has one bit of each bool
    }
    return bits;
}

// Numbers of the true ones among `length` bools, of every piece of them.
void count_active(const uint8_t* mask, int64_t pieces, int64_t length, int64_t* counts, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t piece = 0; piece < pieces; piece++) {
        int64_t count = 0;
        for (int64_t i = 0; i < length; i += 64)
            count += __builtin_popcountll(bits_of(mask + piece * length + i, smaller(64, length - i)));
        counts[piece] = count;
    }
}

// Active weights by target, tap and source: the source of each, and where it lies in the weight's memory.
void list_active(const Weights& weights, const uint8_t* mask, const int64_t* starts, int32_t* channels, int64_t* places,
                 int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t piece = 0; piece < weights.targets * weights.taps; piece++) {
        const int64_t target = piece / weights.taps, length = weights.sources, at = starts[piece];
        const int64_t first = target / weights.group_targets * length;
        const int64_t place = target * weights.target_stride + weights.tap_places[piece % weights.taps];
        int64_t n = at;
        for (int64_t i = 0; i < length; i += 64)
            for (uint64_t bits = bits_of(mask + piece * length + i, smaller(64, length - i)); bits; bits &= bits - 1) {
                const int64_t source = i + __builtin_ctzll(bits);
                channels[n] = int32_t(first + source);
                places[n++] = place + source * weights.source_stride;
            }
    }
}

// The same weights by source, tap and target: the target of each, and its number in the order of `list_active`. `next`,
// (threads, sources * taps), is zero: where each thread's part of the targets goes on.
void transpose(int64_t targets, int64_t taps, int64_t sources, const int64_t* starts, const int32_t* channels,
               int64_t* back_starts, int32_t* back_channels, int32_t* numbers, int64_t* next, int threads) {
    const int64_t keys = sources * taps;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        int64_t* counts = next + part * keys;
        for (int64_t piece = targets * part / threads * taps; piece < targets * (part + 1) / threads * taps; piece++)
            for (int64_t e = starts[piece]; e < starts[piece + 1]; e++) counts[channels[e] * taps + piece % taps]++;
    }
    int64_t sum = 0;
    for (int64_t key = 0; key < keys; key++) {
        back_starts[key] = sum;
        for (int part = 0; part < threads; part++) {
            const int64_t count = next[part * keys + key];
            next[part * keys + key] = sum;
            sum += count;
        }
    }
    back_starts[keys] = sum;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        int64_t* to = next + part * keys;
        for (int64_t piece = targets * part / threads * taps; piece < targets * (part + 1) / threads * taps; piece++)
            for (int64_t e = starts[piece]; e < starts[piece + 1]; e++) {
                const int64_t at = to[channels[e] * taps + piece % taps]++;
                back_channels[at] = int32_t(piece / taps);
                numbers[at] = int32_t(e);
            }
    }
}

// Rows of entries of one kind of target pixels: of each active weight whose tap hits the source at `distances` from its run.
void list_entries(const Entries& of, const int64_t* row_starts, int32_t* offsets, int32_t* which, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < of.rows; row++) {
        int64_t n = row_starts[row];
        for (int64_t tap = 0; tap < of.taps; tap++) {
            if (!of.hits[tap]) continue;
            for (int64_t e = of.starts[row * of.taps + tap]; e < of.starts[row * of.taps + tap + 1]; e++, n++) {
                offsets[n] = int32_t(of.channels[e] * of.plane + of.distances[tap]);
                which[n] = of.numbers ? of.numbers[e] : int32_t(e);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------- BatchNorm

constexpr int64_t SHORT = 2048;  // elements that are added up in their own precision, before the sums are in double

// Calls `f(i, n)` for the vectors of elements begin to end, `n` of them in the last one.
template <typename T, typename F>
INLINE void each(int64_t begin, int64_t end, F f) {
    int64_t i = begin;
    for (; i + WIDTH<T> <= end; i += WIDTH<T>) f(i, WIDTH<T>);
    if (i < end) f(i, int(end - i));
}

// Adds to `sums` those of `term(i, n, vectors)` over `size` elements; it puts zeros behind their end.
template <typename T, int N, typename Term>
INLINE void add_up(int64_t size, double (&sums)[N], Term term) {
    constexpr int W = WIDTH<T>, U = 4;
    for (int64_t begin = 0; begin < size; begin += SHORT) {
        const int64_t end = smaller(begin + SHORT, size);
        Vec<T> parts[U][N] = {}, terms[N];
        int64_t i = begin;
        for (; i + U * W <= end; i += U * W)
            UNROLLED for (int u = 0; u < U; u++) {
                term(i + u * W, W, terms);
                UNROLLED for (int s = 0; s < N; s++) parts[u][s] += terms[s];
            }
        each<T>(i, end, [&](int64_t i, int n) {
            term(i, n, terms);
            UNROLLED for (int s = 0; s < N; s++) parts[0][s] += terms[s];
        });
        UNROLLED for (int s = 0; s < N; s++)
            sums[s] += double(total<T>((parts[0][s] + parts[1][s]) + (parts[2][s] + parts[3][s])));
    }
}

template <typename T>
INLINE Vec<T> first(const T* p, int n) {
    return n == WIDTH<T> ? load<T>(p) : Part<T>(n).load(p);
}
template <typename T>
INLINE void put(T* p, Vec<T> v, int n) {
    if (n == WIDTH<T>) return store<T>(p, v);
    Part<T>(n).store(p, v);
}
// `v` where `of` is above zero or no number, as PyTorch's ReLU and its gradient have it; zero elsewhere.
template <typename T>
INLINE Vec<T> where_positive(Vec<T> of, Vec<T> v) {
    return of <= Vec<T>{} ? Vec<T>{} : v;
}

template <typename T>
struct Norm {
    int64_t blocks, channels, size;  // elements of a channel in a block
    const T *weight, *bias;          // (channels)
    T *mean, *variance;              // (channels), of this batch or given
    double eps;
    int given, relu;
};

template <typename T>
struct Scale {  // of one channel: y = x * factor + shift
    T factor, shift;
    Scale(const Norm<T>& norm, int64_t c)
        : factor(T(norm.weight[c] / __builtin_sqrt(double(norm.variance[c]) + norm.eps))),
          shift(norm.bias[c] - norm.mean[c] * factor) {}
};

template <typename T>
void moments(const Norm<T>& norm, const T* x, int64_t c) {
    const double n = double(norm.blocks * norm.size);
    double sum[1] = {}, squares[1] = {};
    for (int64_t b = 0; b < norm.blocks; b++) {
        const T* from = x + (b * norm.channels + c) * norm.size;
        add_up<T>(norm.size, sum, [=](int64_t i, int k, Vec<T>* terms) { terms[0] = first<T>(from + i, k); });
    }
    const T mean = T(sum[0] / n);
    for (int64_t b = 0; b < norm.blocks; b++) {
        const T* from = x + (b * norm.channels + c) * norm.size;
        add_up<T>(norm.size, squares, [=](int64_t i, int k, Vec<T>* terms) {
            Vec<T> d = first<T>(from + i, k) - mean;
            if (k < WIDTH<T>) d = Part<T>(k).load(reinterpret_cast<const T*>(&d));
            terms[0] = d * d;
        });
    }
    norm.mean[c] = mean;
    norm.variance[c] = T(squares[0] / n);
}

// y = (x - mean) / sqrt(variance + eps) * weight + bias, plus `residual` if there is one, and its positive part if asked for.
template <typename T>
void normalise(const Norm<T>& norm, const T* x, const T* residual, T* y, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t c = 0; c < norm.channels; c++) {
        if (!norm.given) moments<T>(norm, x, c);
        const Scale<T> scale(norm, c);
        for (int64_t b = 0; b < norm.blocks; b++) {
            const int64_t slab = (b * norm.channels + c) * norm.size;
            each<T>(slab, slab + norm.size, [=](int64_t i, int k) {
                Vec<T> v = first<T>(x + i, k) * scale.factor + scale.shift;
                if (residual) v += first<T>(residual + i, k);
                put<T>(y + i, norm.relu ? where_positive<T>(v, v) : v, k);
            });
        }
    }
}

// Gradients of inputs, weight and bias; that of the residual where `g_residual` asks for it. Where a ReLU comes after a
// residual, `y` says what it let through; without a residual that follows from x, which is read in any case.
template <typename T>
void normalise_backward(const Norm<T>& norm, const T* x, const T* y, const T* g, T* gx, T* g_residual, T* g_weight, T* g_bias,
                        int threads) {
    const double n = double(norm.blocks * norm.size);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t c = 0; c < norm.channels; c++) {
        const T mean = norm.mean[c];
        const Scale<T> scale(norm, c);
        const double deviations = 1 / __builtin_sqrt(double(norm.variance[c]) + norm.eps);
        const auto before = [=](int64_t i, int k, Vec<T> at) {  // the gradient below the ReLU
            const Vec<T> v = first<T>(g + i, k);
            if (!norm.relu) return v;
            return where_positive<T>(y ? first<T>(y + i, k) : at * scale.factor + scale.shift, v);
        };
        double sums[2] = {};  // of the gradient, and of its products with x - mean
        for (int64_t b = 0; b < norm.blocks; b++) {
            const int64_t slab = (b * norm.channels + c) * norm.size;
            add_up<T>(norm.size, sums, [=](int64_t i, int k, Vec<T>* terms) {
                const Vec<T> at = first<T>(x + slab + i, k);
                terms[0] = before(slab + i, k, at);
                terms[1] = terms[0] * (at - mean);
            });
        }
        g_bias[c] = T(sums[0]);
        g_weight[c] = T(sums[1] * deviations);
        const T even = norm.given ? T(0) : T(sums[0] / n);
        const T along = norm.given ? T(0) : T(sums[1] / n * deviations * deviations);
        for (int64_t b = 0; b < norm.blocks; b++) {
            const int64_t slab = (b * norm.channels + c) * norm.size;
            each<T>(slab, slab + norm.size, [=](int64_t i, int k) {
                const Vec<T> at = first<T>(x + i, k), v = before(i, k, at);
                if (g_residual) put<T>(g_residual + i, v, k);
                put<T>(gx + i, norm.given ? v * scale.factor : (v - even - (at - mean) * along) * scale.factor, k);
            });
        }
    }
}

}  // namespace

#define LAYER(NAME, T)                                                                                                    \
    extern "C" void fill_##NAME(const Plan* plan, const T* weight, const int64_t* active, T* compact, T* values,          \
                                int threads) {                                                                            \
        fill<T>(*plan, weight, active, compact, values, threads);                                                         \
    }                                                                                                                     \
    extern "C" void gather_##NAME(const Plan* plan, const T* x, T* y, const T* values, const T* bias, int64_t blocks,     \
                                  int64_t lanes, int threads) {                                                           \
        gather<T>(*plan, x, y, values, bias, blocks, lanes, threads);                                                     \
    }                                                                                                                     \
    extern "C" void weight_gradient_##NAME(const Plan* plan, const T* x, const T* g, const int64_t* active, T* sums,      \
                                           T* gradient, int64_t blocks, int64_t lanes, int64_t parts, int64_t row_parts,  \
                                           int threads) {                                                                 \
        weight_gradient<T>(*plan, x, g, active, sums, gradient, blocks, lanes, parts, row_parts, threads);                \
    }                                                                                                                     \
    extern "C" void normalise_##NAME(const T* x, const T* residual, T* y, const T* weight, const T* bias, T* mean,        \
                                     T* variance, int64_t blocks, int64_t channels, int64_t size, double eps, int given,  \
                                     int relu, int threads) {                                                             \
        normalise<T>({blocks, channels, size, weight, bias, mean, variance, eps, given, relu}, x, residual, y, threads);  \
    }                                                                                                                     \
    extern "C" void normalise_backward_##NAME(const T* x, const T* y, const T* g, T* gx, T* g_residual, T* g_weight,      \
                                              T* g_bias, const T* weight, const T* bias, T* mean, T* variance,            \
                                              int64_t blocks, int64_t channels, int64_t size, double eps, int given,      \
                                              int relu, int threads) {                                                    \
        normalise_backward<T>({blocks, channels, size, weight, bias, mean, variance, eps, given, relu}, x, y, g, gx,      \
                              g_residual, g_weight, g_bias, threads);                                                     \
    }
#define LAYER_OF(T) LAYER(T, T)
LAYER_OF(REAL)  // float, or double in a library of its own for checks

extern "C" void plan_counts(const uint8_t* mask, int64_t pieces, int64_t length, int64_t* counts, int threads) {
    count_active(mask, pieces, length, counts, threads);
}
extern "C" void plan_active(const Weights* weights, const uint8_t* mask, const int64_t* starts, int32_t* channels,
                            int64_t* places, int threads) {
    list_active(*weights, mask, starts, channels, places, threads);
}
extern "C" void plan_transpose(int64_t targets, int64_t taps, int64_t sources, const int64_t* starts, const int32_t* channels,
                               int64_t* back_starts, int32_t* back_channels, int32_t* numbers, int64_t* next,
                               int threads) {
    transpose(targets, taps, sources, starts, channels, back_starts, back_channels, numbers, next, threads);
}
extern "C" void plan_entries(const Entries* of, const int64_t* row_starts, int32_t* offsets, int32_t* which, int threads) {
    list_entries(*of, row_starts, offsets, which, threads);
}

extern "C" int vector_bytes() { return VECTOR_BYTES; }
