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
//
// BatchNorm between two layers takes no pass over memory. A layer adds up the moments of what it gives while that is in the
// cache. The next one normalises what it reads, rows of pixels at a time, into a window in the cache; on the way back it gives
// the sums that BatchNorm's gradient takes, which the former layer applies where it reads it.

#include <cstdint>  // no more: reading the standard library's headers takes as long as compiling all of this

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
#if defined(_OPENMP)
extern "C" int omp_get_thread_num(void);
#else
static inline int omp_get_thread_num(void) { return 0; }
#endif
#define INLINE static inline __attribute__((always_inline))
#define ONCE __attribute__((noinline))  // compiled once, not in every place that calls it
#if defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif

struct Run {
    int64_t target, source;  // its first pixel, and the pixel from which its entries count
    int32_t pixels, kind;
};

struct Plan {
    const int64_t* starts;   // (kinds, rows + 1): where each row of entries begins
    const int32_t* offsets;  // (entries): distance in pixels
    const int32_t* which;    // (entries): number of the active weight
    const Run* runs;
    const int64_t* bands;    // (bands + 1): where, in `runs`, each band of image rows begins; there, kinds lie side by side
    const int64_t* reach;    // (bands, 2): from which pixel of a channel on, and before which, each band reads; both ascend
    int64_t n_runs, n_bands, rows, n_entries, n_active;
    int64_t source_size, target_size;    // pixels of all channels
    int64_t source_plane, target_plane;  // pixels of a channel
    int64_t band_pixels;                 // of all bands but the last, which may be smaller
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
constexpr int WIDTH = VECTOR_BYTES / int(sizeof(T));
template <typename T>
constexpr int SUMS = sizeof(T) == 4 ? REGISTERS : 2;  // vectors at a time; double is for checks, and compiled fast
template <typename T, int W>
struct Vector {
    typedef T type __attribute__((vector_size(W * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <typename T, int W = WIDTH<T>>
using Vec = typename Vector<T, W>::type;

template <typename T, int W = WIDTH<T>>
INLINE Vec<T, W> load(const T* p) {
    return *reinterpret_cast<const Vec<T, W>*>(p);
}
template <typename T, int W = WIDTH<T>>
INLINE void store(T* p, Vec<T, W> v) {
    *reinterpret_cast<Vec<T, W>*>(p) = v;
}

template <typename T, int W>
INLINE T total(Vec<T, W> v) {
    T kept[W];
    __builtin_memcpy(kept, &v, sizeof v);
    UNROLLED for (int half = W / 2; half; half /= 2)
        UNROLLED for (int i = 0; i < half; i++) kept[i] += kept[i + half];
    return kept[0];
}

// The elements of `v` from `first` on and before `end`, and zeros in place of the others.
template <typename T, int W>
INLINE Vec<T, W> between(int64_t first, int64_t end, Vec<T, W> v) {
    Vec<T, W> place = {};
    UNROLLED for (int i = 0; i < W; i++) place[i] = T(i);
    return ((place >= T(first)) & (place < T(end))) ? v : Vec<T, W>{};
}

// Of two vectors that each hold sums in segments of `S` elements: the same sums in segments half as long, u's and then v's.
template <typename T, int W, int S>
INLINE Vec<T, W> halved(Vec<T, W> u, Vec<T, W> v) {
#if defined(__clang__)
    Vec<T, W> result;
    UNROLLED for (int i = 0; i < W; i++) {
        const int half = S / 2, at = i % (W / 2), place = at / half * S + at % half;
        result[i] = i < W / 2 ? u[place] + u[place + half] : v[place] + v[place + half];
    }
    return result;
#else
    decltype(u < v) left;  // places in u and, behind them, v
    UNROLLED for (int i = 0; i < W; i++) {
        const int half = S / 2, at = i % (W / 2);
        left[i] = at / half * S + at % half + (i < W / 2 ? 0 : W);
    }
    return __builtin_shuffle(u, v, left) + __builtin_shuffle(u, v, left + S / 2);
#endif
}

// What the elements of each of `N` vectors add up to; `results` has room for a whole vector.
template <typename T, int W, int N, int S = W>
INLINE void totals(const Vec<T, W>* vectors, T* results) {
    if constexpr (S == 1) {
        store<T, W>(results, vectors[0]);
    } else {
        constexpr int HALF = (N + 1) / 2;
        Vec<T, W> fewer[HALF];
        UNROLLED for (int i = 0; i < HALF; i++)
            fewer[i] = halved<T, W, S>(vectors[2 * i], vectors[2 * i + 1 < N ? 2 * i + 1 : 2 * i]);
        totals<T, W, HALF, S / 2>(fewer, results);
    }
}

// ------------------------------------------------------------------------------------------------ elements and moments

constexpr int64_t SHORT = 2048;  // elements that are added up in their own precision, before the sums are in double

// Calls `f(i, n)` for the vectors of `size` elements from `begin` on, each of which has `n`. Where the size is no multiple of a
// vector's, the last one begins earlier, so that `f` sees some elements twice.
template <typename T, typename F>
INLINE void each(int64_t begin, int64_t size, F f) {
    constexpr int W = WIDTH<T>;
    int64_t i = 0;
    for (; i + W <= size; i += W) f(begin + i, W);
    if (i < size) f(begin + larger(0, size - W), int(smaller(W, size)));
}

// Adds to `sums` those of `term(i, n, vectors)` over `size` elements.
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
        for (; i < end; i += W) {
            const int64_t at = smaller(i, larger(0, end - W));
            term(at, int(smaller(W, end)), terms);
            UNROLLED for (int s = 0; s < N; s++) parts[0][s] += between<T, WIDTH<T>>(i - at, end - at, terms[s]);
        }
        UNROLLED for (int s = 0; s < N; s++)
            sums[s] += double(total<T, W>((parts[0][s] + parts[1][s]) + (parts[2][s] + parts[3][s])));
    }
}

// The first `n` elements of a vector; what lies behind them in memory is neither read nor written.
template <typename T>
INLINE Vec<T> first(const T* p, int n) {
    if (n == WIDTH<T>) return load<T>(p);
    Vec<T> v = {};
    __builtin_memcpy(&v, p, n * sizeof(T));
    return v;
}
template <typename T>
INLINE void put(T* p, Vec<T> v, int n) {
    if (n == WIDTH<T>) return store<T>(p, v);
    __builtin_memcpy(p, &v, n * sizeof(T));
}
// `v` where `of` is above zero or no number, as PyTorch's ReLU and its gradient have it; zero elsewhere.
template <typename T>
INLINE Vec<T> where_positive(Vec<T> of, Vec<T> v) {
    return of <= Vec<T>{} ? Vec<T>{} : v;
}

struct Moments {  // of numbers that have been seen
    double n, mean, squares;  // the last are of distances from the mean

    void join(const Moments& other) {  // Chan et al. (1979)
        if (!other.n) return;
        const double distance = other.mean - mean, all = n + other.n;
        squares += other.squares + distance * distance * n * other.n / all;
        n = all;
        mean += distance * other.n / n;
    }
};

// In one pass, as distances from the mean of the first numbers, so that little cancels.
template <typename T>
ONCE Moments moments(const T* x, int64_t size) {
    const int some = int(smaller(size, WIDTH<T>));
    const T centre = size ? total<T, WIDTH<T>>(first<T>(x, some)) / T(some) : T(0);
    double sums[2] = {};
    add_up<T>(size, sums, [=](int64_t i, int k, Vec<T>* terms) {
        terms[0] = first<T>(x + i, k) - centre;
        terms[1] = terms[0] * terms[0];
    });
    const double n = double(size), off = size ? sums[0] / n : 0;
    return {n, double(centre) + off, sums[1] - off * sums[0]};
}

template <typename T>
struct Statistics {  // of what BatchNorm is given
    T* values;                           // (3, channels): mean, variance, 1 / deviation
    T *running_mean, *running_variance;  // (channels), of which `share` becomes this batch's
    Moments* parts;                      // of each channel of each band of each block
    double eps, share;
    int64_t channels, given;  // the running ones are those to use, and stay

    void set(int64_t c, double mean, double variance) const {
        values[c] = T(mean);
        values[channels + c] = T(variance);
        values[2 * channels + c] = T(1 / __builtin_sqrt(variance + eps));
    }
    void take(int64_t c, const Moments& found) const {
        if (given) return set(c, double(running_mean[c]), double(running_variance[c]));
        set(c, found.mean, found.squares / found.n);
        running_mean[c] += T(share) * (T(found.mean) - running_mean[c]);
        running_variance[c] += T(share) * (T(found.squares / (found.n - 1)) - running_variance[c]);
    }
};

template <typename T>
struct Norm {  // BatchNorm, plus a residual if there is one, and the positive part if asked for
    const T *statistics, *weight, *bias;  // as above, and (channels)
    const T* residual;
    T* y;  // what comes out; null: it is made where it is read
    int64_t channels, relu;

    struct Scale {  // of one channel
        T factor, shift;
    };
    Scale scale(int64_t c) const {
        const T factor = weight[c] * statistics[2 * channels + c];
        return {factor, bias[c] - statistics[c] * factor};
    }
    // Of `size` elements of channel `c` from `at` on.
    ONCE void apply(int64_t c, const T* x, int64_t at, int64_t size, T* to) const {
        const Scale by = scale(c);
        const T *from = x + at, *with = residual ? residual + at : nullptr;
        const bool positive = relu;
        each<T>(0, size, [=](int64_t i, int k) {
            Vec<T> v = first<T>(from + i, k) * by.factor + by.shift;
            if (with) v += first<T>(with + i, k);
            put<T>(to + i, positive ? where_positive<T>(v, v) : v, k);
        });
    }
};

template <typename T>
struct NormBack {  // the gradient of what BatchNorm is given: (g - even - (x - mean) * along) * factor
    const T *factors, *x, *mean;  // (3, channels): factor, even, along; null: the gradient is as it is. Then x and its mean
    int64_t channels, given;      // then even and along do not count

    ONCE void apply(int64_t c, const T* g, int64_t at, int64_t size, T* to) const {
        const T factor = factors[c], even = factors[channels + c], along = factors[2 * channels + c], centre = mean[c];
        const T *from = g + at, *values = x + at;
        if (given) return each<T>(0, size, [=](int64_t i, int k) { put<T>(to + i, first<T>(from + i, k) * factor, k); });
        each<T>(0, size, [=](int64_t i, int k) {
            put<T>(to + i, (first<T>(from + i, k) - even - (first<T>(values + i, k) - centre) * along) * factor, k);
        });
    }
};

template <typename T>
struct NormSums {  // what the gradients of BatchNorm take
    double* parts;              // (pieces, channels, 2): the gradient below the ReLU, and its products with x - mean
    T *factors, *weight, *bias;  // results: as above, and the gradients of weight and bias
    int64_t given;  // the statistics do not depend on x

    void finish(const Norm<T>& norm, int64_t c, int64_t pieces, double n) const {
        double sum = 0, product = 0;
        for (int64_t piece = 0; piece < pieces; piece++) {
            sum += parts[(piece * norm.channels + c) * 2];
            product += parts[(piece * norm.channels + c) * 2 + 1];
        }
        const double inverse = double(norm.statistics[2 * norm.channels + c]);
        bias[c] = T(sum);
        weight[c] = T(product * inverse);
        factors[c] = norm.scale(c).factor;
        factors[norm.channels + c] = T(sum / n);
        factors[2 * norm.channels + c] = T(product / n * inverse * inverse);
    }
};

// Of a piece of a channel: lets the gradient `g` of what BatchNorm gave, `y`, through where its ReLU did, in place.
template <typename T>
ONCE void norm_sums(const Norm<T>& norm, int64_t c, const T* x, const T* y, T* g, int64_t size, double* parts) {
    const T mean = norm.statistics[c];
    const bool relu = norm.relu;
    double sums[2] = {};
    add_up<T>(size, sums, [=](int64_t i, int k, Vec<T>* terms) {
        terms[0] = first<T>(g + i, k);
        if (relu) put<T>(g + i, terms[0] = where_positive<T>(first<T>(y + i, k), terms[0]), k);
        terms[1] = terms[0] * (first<T>(x + i, k) - mean);
    });
    parts[0] = sums[0];
    parts[1] = sums[1];
}

template <typename T>
struct Windows {  // into a block of images, one for each thread, small enough for the cache
    T* to;                   // (threads, channels, stride, lanes)
    const int32_t* offsets;  // of a plan that reads there: its own, with `stride` pixels from channel to channel
    int64_t channels, room, stride;  // `room` pixels of a channel are there at a time
};

template <typename T>
struct Window {  // rows of pixels that are read in place of those in memory, made as they are needed
    T* to;
    const Windows<T>& of;
    int64_t lanes;
    int64_t start = 0, done = 0;  // pixels from the first one to before the second are there

    Window(const Windows<T>& all, int64_t n_lanes)
        : to(all.to + omp_get_thread_num() * all.channels * all.stride * n_lanes), of(all), lanes(n_lanes) {}

    // Calls `make(c, pixel, n, place)` for pixels up to `end` that are not there yet; none before `begin` are needed any more.
    template <typename F>
    void reach(int64_t begin, int64_t end, F make) {
        if (end <= done) return;
        const int64_t from = larger(begin, done);
        if (end > start + of.room) {
            for (int64_t c = 0; c < of.channels && from > begin; c++) {
                T* channel = to + c * of.stride * lanes;
                __builtin_memmove(channel, channel + (begin - start) * lanes, uint64_t((from - begin) * lanes) * sizeof(T));
            }
            start = begin;
        }
        for (int64_t c = 0; c < of.channels; c++) make(c, from, end - from, to + (c * of.stride + from - start) * lanes);
        done = end;
    }
    // The same for pixels that nobody reads here, in as many pieces as it takes.
    template <typename F>
    void pass(int64_t end, F make) {
        while (done < end) reach(done, smaller(end, done + of.room), make);
    }
    // From where a channel's pixels are `stride` apart from the next one's.
    const T* origin() const { return to - start * lanes; }
};

// ---------------------------------------------------------------------------------------------- weighted sums of sources

// The weight of every entry. Without `active`, the weight is that of the active ones alone, and there is nothing to compact;
// without a weight, the values are there.
template <typename T>
struct Weight {
    const T* weight;
    const int64_t* active;
    T *compact, *values;

    void fill(const Plan& plan, int threads) const {
        if (!weight) return;
        const T* from = active ? compact : weight;
#pragma omp parallel num_threads(threads)
        {
            if (active) {
#pragma omp for schedule(static)
                for (int64_t i = 0; i < plan.n_active; i++) compact[i] = weight[active[i]];
            }
#pragma omp for schedule(static)
            for (int64_t e = 0; e < plan.n_entries; e++) values[e] = from[plan.which[e]];
        }
    }
};

template <typename T>
struct Rows {  // of one run: what is read, where the sums go
    const int64_t* starts;
    const int32_t* offsets;
    const T* values;
    const T* bias;
    int64_t first, last, lanes, target_plane;
};

// `B` vectors of every row, side by side but for the last, which begins at `last`. They stay in registers over all of a row.
template <typename T, int W, int B>
void sum_rows(const Rows<T>& rows, const T* x, const T* more, T* y, int64_t last) {
    for (int64_t k = rows.first; k < rows.last; k++) {
        Vec<T, W> sums[B];
        const Vec<T, W> begin = Vec<T, W>{} + (rows.bias ? rows.bias[k] : T(0));
        if (more) {
            const T* from = more + k * rows.target_plane * rows.lanes;
            UNROLLED for (int i = 0; i < B - 1; i++) sums[i] = load<T, W>(from + i * W) + begin;
            sums[B - 1] = load<T, W>(from + last) + begin;
        } else {
            UNROLLED for (int i = 0; i < B; i++) sums[i] = begin;
        }
        for (int64_t e = rows.starts[k]; e < rows.starts[k + 1]; e++) {
            const T* from = x + rows.offsets[e] * rows.lanes;
            const T value = rows.values[e];
            UNROLLED for (int i = 0; i < B - 1; i++) sums[i] += value * load<T, W>(from + i * W);
            sums[B - 1] += value * load<T, W>(from + last);
        }
        T* to = y + k * rows.target_plane * rows.lanes;
        UNROLLED for (int i = 0; i < B - 1; i++) store<T, W>(to + i * W, sums[i]);
        store<T, W>(to + last, sums[B - 1]);
    }
}

template <typename T, int W, int B>
void sum_rows_of(int64_t vectors, const Rows<T>& rows, const T* x, const T* more, T* y, int64_t last) {
    if constexpr (B > 1)
        if (vectors < B) return sum_rows_of<T, W, B - 1>(vectors, rows, x, more, y, last);
    sum_rows<T, W, B>(rows, x, more, y, last);
}

// In pieces of about the same size, because one or two vectors alone would wait for each other's sums. Where the length is no
// multiple of a vector's, the last one begins earlier and gives the same sums once more; a short run has shorter vectors.
template <typename T, int W = WIDTH<T>>
void sum_run(const Rows<T>& rows, const T* x, const T* more, T* y, int64_t length) {
    if constexpr (W > 1)
        if (length < W) return sum_run<T, W / 2>(rows, x, more, y, length);
    constexpr int MOST = W == WIDTH<T> ? SUMS<T> : 2;
    const int64_t vectors = (length + W - 1) / W, pieces = (vectors + MOST - 1) / MOST;
    for (int64_t piece = 0; piece < pieces; piece++) {
        const int64_t first = vectors * piece / pieces, end = vectors * (piece + 1) / pieces;
        const int64_t begin = first * W, last = smaller(end * W, length) - W - begin;
        sum_rows_of<T, W, MOST>(end - first, rows, x + begin, more ? more + begin : nullptr, y + begin, last);
    }
}

template <typename T>
struct Gather {  // of one plan: y = the sums over what it reads of x, plus `bias` of the row and `more` of the same place
    const Plan& plan;
    const T *values, *bias, *more;  // the last two may be null
    T* y;
    int64_t lanes;

    // Rows of a band of a block, whose sources are at `x`, as far apart as `offsets` say.
    void band(const T* x, const int32_t* offsets, int64_t block, int64_t band, int64_t first, int64_t last) const {
        for (const Run* run = plan.runs + plan.bands[band]; run < plan.runs + plan.bands[band + 1]; run++) {
            const Rows<T> rows = {plan.starts + run->kind * (plan.rows + 1), offsets, values, bias, first, last, lanes,
                                  plan.target_plane};
            const int64_t to = (block * plan.target_size + run->target) * lanes;
            sum_run<T>(rows, x + run->source * lanes, more ? more + to : nullptr, y + to, run->pixels * lanes);
        }
    }
    int64_t band_begin(int64_t band) const { return smaller(band * plan.band_pixels, plan.target_plane); }
    // Where a row of a band lies in a block, and its size.
    int64_t place(int64_t row, int64_t band) const { return (row * plan.target_plane + band_begin(band)) * lanes; }
    int64_t size(int64_t band) const { return (band_begin(band + 1) - band_begin(band)) * lanes; }
    void add_moments(const Statistics<T>* to, int64_t block, int64_t band, int64_t first, int64_t last) const {
        if (!to || to->given) return;
        for (int64_t row = first; row < last; row++)
            to->parts[(block * plan.n_bands + band) * plan.rows + row] =
                moments(y + block * plan.target_size * lanes + place(row, band), size(band));
    }
};

// Of `norm` of x where that is given, read through `windows`, and with statistics of y where these are.
template <typename T>
void gather(const Gather<T>& g, const T* x, const Norm<T>* norm, const Windows<T>* windows, const Statistics<T>* statistics,
            int64_t blocks, int threads) {
    const Plan& plan = g.plan;
    const int64_t wanted = 4 * int64_t(threads), lanes = g.lanes, n_bands = plan.n_bands, plane = plan.source_plane;
    const int64_t segments = norm && blocks ? smaller(n_bands, (wanted + blocks - 1) / blocks) : n_bands;
    const int64_t pieces = blocks * segments, n_rows = plan.rows;
    const int64_t parts = pieces ? larger(1, smaller(n_rows, (wanted + pieces - 1) / pieces)) : 1;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < pieces * parts; task++) {
            const int64_t part = task % parts, block = task / parts / segments, segment = task / parts % segments;
            const int64_t begin = n_bands * segment / segments, end = n_bands * (segment + 1) / segments;
            const int64_t first = n_rows * part / parts, last = n_rows * (part + 1) / parts;
            const int64_t at = block * plan.source_size * lanes;
            if (norm) {
                Window<T> window(*windows, lanes);
                T* kept = part == 0 ? norm->y : nullptr;  // of which each segment writes a share
                const int64_t own = plane * segment / segments, others = plane * (segment + 1) / segments;
                const auto make = [=](int64_t c, int64_t pixel, int64_t n, T* to) {
                    const int64_t from = larger(pixel, own), behind = smaller(pixel + n, others);
                    norm->apply(c, x, at + (c * plane + pixel) * lanes, n * lanes, to);
                    if (kept && from < behind)
                        __builtin_memcpy(kept + at + (c * plane + from) * lanes, to + (from - pixel) * lanes,
                                         uint64_t((behind - from) * lanes) * sizeof(T));
                };
                if (kept) window.done = smaller(own, plan.reach[2 * begin]);
                for (int64_t band = begin; band < end; band++) {
                    if (kept) window.pass(plan.reach[2 * band], make);
                    window.reach(plan.reach[2 * band], plan.reach[2 * band + 1], make);
                    g.band(window.origin(), windows->offsets, block, band, first, last);
                    g.add_moments(statistics, block, band, first, last);
                }
                if (kept) window.pass(others, make);
            } else {
                for (int64_t band = begin; band < end; band++) {
                    g.band(x + at, plan.offsets, block, band, first, last);
                    g.add_moments(statistics, block, band, first, last);
                }
            }
        }
        if (statistics) {
#pragma omp for schedule(static)
            for (int64_t row = 0; row < n_rows; row++) {
                Moments all = {};
                if (!statistics->given)
                    for (int64_t piece = 0; piece < blocks * n_bands; piece++)
                        all.join(statistics->parts[piece * n_rows + row]);
                statistics->take(row, all);
            }
        }
    }
}

// -------------------------------------------------------------------------------------------- gradients of active weights

// Adds to `sums` the inner products of `g` with what `N` entries read, over runs of one kind with at least `W` elements each.
template <typename T, int W, int N>
void products(const Run* run, const Run* end, const T* g, const T* x, const int32_t* offsets, const int32_t* which,
              int64_t lanes, T* sums) {
    constexpr int U = W < WIDTH<T> ? 1 : N >= 4 ? 2 : N >= 2 ? 4 : 8;  // enough sums at a time that none waits for another
    Vec<T, W> parts[N][U] = {}, all[N];
    const T* from[N];
    UNROLLED for (int i = 0; i < N; i++) from[i] = x + offsets[i] * lanes;
    for (; run < end; run++) {
        const T* with = g + run->target * lanes;
        const int64_t source = run->source * lanes, length = run->pixels * lanes;
        int64_t j = 0;
        for (; j + U * W <= length; j += U * W)
            UNROLLED for (int u = 0; u < U; u++) {
                const Vec<T, W> shared = load<T, W>(with + j + u * W);
                UNROLLED for (int i = 0; i < N; i++) parts[i][u] += shared * load<T, W>(from[i] + source + j + u * W);
            }
        for (; j + W <= length; j += W) {
            const Vec<T, W> shared = load<T, W>(with + j);
            UNROLLED for (int i = 0; i < N; i++) parts[i][0] += shared * load<T, W>(from[i] + source + j);
        }
        if (j < length) {  // the last vector begins with elements that have been added already
            const int64_t at = length - W;
            const Vec<T, W> shared = load<T, W>(with + at);
            UNROLLED for (int i = 0; i < N; i++)
                parts[i][0] += between<T, W>(j - at, W, shared * load<T, W>(from[i] + source + at));
        }
    }
    UNROLLED for (int i = 0; i < N; i++) {
        all[i] = parts[i][0];
        UNROLLED for (int u = 1; u < U; u++) all[i] += parts[i][u];
    }
    T found[W];
    totals<T, W, N>(all, found);
    UNROLLED for (int i = 0; i < N; i++) sums[which[i]] += found[i];
}

template <typename T, int N>
void products_of(int n, const Run* run, const Run* end, const T* g, const T* x, const int32_t* offsets, const int32_t* which,
                 int64_t lanes, int64_t, T* sums) {
    if constexpr (N > 1)
        if (n < N) return products_of<T, N - 1>(n, run, end, g, x, offsets, which, lanes, 0, sums);
    products<T, WIDTH<T>, N>(run, end, g, x, offsets, which, lanes, sums);
}

// The same, one entry after the other, where the shortest run has less than a vector.
template <typename T, int W>
void short_products(int n, const Run* run, const Run* end, const T* g, const T* x, const int32_t* offsets,
                    const int32_t* which, int64_t lanes, int64_t shortest, T* sums) {
    if constexpr (W > 1)
        if (shortest < W) return short_products<T, W / 2>(n, run, end, g, x, offsets, which, lanes, shortest, sums);
    for (int i = 0; i < n; i++) products<T, W, 1>(run, end, g, x, offsets + i, which + i, lanes, sums);
}

template <typename T>
struct Back {  // of a layer: where the gradients of its inputs go, and what lies before and behind it
    const Gather<T>* inputs;         // null: nobody asks for them
    const Norm<T>* norm;             // of x, which gives what is read; null: x is
    const NormSums<T>* sums;         // of that
    const NormBack<T>* outputs;      // of what the layer gives; null: `g` is its gradient
    const Windows<T>*windows, *output_windows;  // for x where `norm` is not in memory, and for g where `outputs` are given
};

// `parts` and `row_parts` say how the work is divided; sums (parts, active) are added up in their order. The
// gradient is laid out like the weight, or it is that of the active ones alone. Gradients of inputs are computed on the way, of
// each band while its part of `g` is in the cache.
template <typename T>
void weight_gradient(const Plan& plan, const T* x, const T* g, const int64_t* active, T* sums, T* gradient, const Back<T>& back,
                     int64_t blocks, int64_t lanes, int64_t parts, int64_t row_parts, int threads) {
    constexpr int TOGETHER = SUMS<T> / 2;
    const int64_t pieces = blocks * plan.n_bands;
    const Gather<T>* inputs = back.inputs;
    const Norm<T>* norm = back.norm;
    const int64_t channels = norm ? norm->channels : 0, back_bands = inputs ? inputs->plan.n_bands : 0;
    const Windows<T> none = {};
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; part++)
            __builtin_memset(sums + part * plan.n_active, 0, uint64_t(plan.n_active) * sizeof(T));
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < parts * row_parts; task++) {
            const int64_t part = task / row_parts, row_part = task % row_parts;
            const int64_t first = plan.rows * row_part / row_parts, last = plan.rows * (row_part + 1) / row_parts;
            Window<T> sources(back.windows ? *back.windows : none, lanes);
            Window<T> targets(back.output_windows ? *back.output_windows : none, lanes);
            for (int64_t piece = pieces * part / parts; piece < pieces * (part + 1) / parts; piece++) {
                const int64_t block = piece / plan.n_bands, band = piece % plan.n_bands;
                const int64_t x_at = block * plan.source_size * lanes, g_at = block * plan.target_size * lanes;
                const int64_t begin = back_bands * band / plan.n_bands, end = back_bands * (band + 1) / plan.n_bands;
                if (!band) sources.done = sources.start = targets.done = targets.start = 0;
                const T *from = (norm && norm->y ? norm->y : x) + x_at, *with = g + g_at;
                const int32_t *offsets = plan.offsets, *back_offsets = inputs ? inputs->plan.offsets : nullptr;
                int64_t source_plane = plan.source_plane, target_plane = plan.target_plane;
                if (back.windows) {
                    sources.reach(smaller(plan.reach[2 * band], inputs->band_begin(begin)),
                                  larger(plan.reach[2 * band + 1], inputs->band_begin(end)),
                                  [=](int64_t c, int64_t pixel, int64_t n, T* to) {
                                      norm->apply(c, x, x_at + (c * plan.source_plane + pixel) * lanes, n * lanes, to);
                                  });
                    from = sources.origin(), offsets = back.windows->offsets, source_plane = back.windows->stride;
                }
                if (back.output_windows) {
                    int64_t near = band * plan.band_pixels, far = smaller(near + plan.band_pixels, plan.target_plane);
                    if (begin < back_bands) near = smaller(near, inputs->plan.reach[2 * begin]);
                    if (begin < end) far = larger(far, inputs->plan.reach[2 * end - 1]);
                    targets.reach(near, far, [=](int64_t c, int64_t pixel, int64_t n, T* to) {
                        back.outputs->apply(c, g, g_at + (c * plan.target_plane + pixel) * lanes, n * lanes, to);
                    });
                    with = targets.origin(), back_offsets = back.output_windows->offsets;
                    target_plane = back.output_windows->stride;
                }
                const Run *run = plan.runs + plan.bands[band], *behind = plan.runs + plan.bands[band + 1];
                while (run < behind) {
                    const Run* same = run;
                    int64_t shortest = run->pixels * lanes;
                    for (; same < behind && same->kind == run->kind; same++)
                        shortest = smaller(shortest, same->pixels * lanes);
                    const int64_t* starts = plan.starts + run->kind * (plan.rows + 1);
                    const auto add = shortest < WIDTH<T> ? short_products<T, WIDTH<T> / 2> : products_of<T, TOGETHER>;
                    for (int64_t k = first; k < last; k++)
                        for (int64_t e = starts[k]; e < starts[k + 1]; e += TOGETHER)
                            add(int(smaller(TOGETHER, starts[k + 1] - e)), run, same, with + k * target_plane * lanes, from,
                                offsets + e, plan.which + e, lanes, shortest, sums + part * plan.n_active);
                    run = same;
                }
                for (int64_t one = begin; one < end; one++) {
                    const int64_t n_rows = inputs->plan.rows, own = n_rows * row_part / row_parts;
                    const int64_t others = n_rows * (row_part + 1) / row_parts;
                    inputs->band(with, back_offsets, block, one, own, others);
                    for (int64_t c = own; norm && c < others; c++) {
                        const int64_t at = x_at + inputs->place(c, one);
                        norm_sums(*norm, c, x + at, from + (c * source_plane + inputs->band_begin(one)) * lanes, inputs->y + at,
                                  inputs->size(one), back.sums->parts + ((block * back_bands + one) * channels + c) * 2);
                    }
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < plan.n_active; i++) {
            T sum = 0;
            for (int64_t part = 0; part < parts; part++) sum += sums[part * plan.n_active + i];
            gradient[active ? active[i] : i] = sum;
        }
#pragma omp for schedule(static)
        for (int64_t c = 0; c < channels; c++)
            back.sums->finish(*norm, c, blocks * back_bands, double(blocks * plan.source_plane * lanes));
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

// ------------------------------------------------------------------------------------------------- BatchNorm by itself

// What `norm` gives for x; where `statistics` are given, they are found first.
template <typename T>
void normalise(const Norm<T>& norm, const Statistics<T>* statistics, const T* x, int64_t blocks, int64_t size, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t c = 0; c < norm.channels; c++) {
        const int64_t slab = norm.channels * size;
        if (statistics) {
            Moments all = {};
            for (int64_t b = 0; b < blocks && !statistics->given; b++) all.join(moments(x + b * slab + c * size, size));
            statistics->take(c, all);
        }
        for (int64_t b = 0; b < blocks; b++) norm.apply(c, x, b * slab + c * size, size, norm.y + b * slab + c * size);
    }
}

// Gradients of inputs, weight and bias; that below the ReLU where `g_below` asks for it. Where a ReLU comes after a residual,
// `norm.y` says what it let through; without a residual that follows from x, which is read in any case. Without `gx`, that is
// left to whoever reads `g_below` with the factors.
template <typename T>
void normalise_backward(const Norm<T>& norm, const T* x, const T* g, T* gx, T* g_below, const NormSums<T>& results,
                        int64_t blocks, int64_t size, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t c = 0; c < norm.channels; c++) {
        const T mean = norm.statistics[c], *y = norm.y;
        const auto scale = norm.scale(c);
        const bool relu = norm.relu;
        const auto below = [=](int64_t i, int k, Vec<T> at) {
            const Vec<T> v = first<T>(g + i, k);
            if (!relu) return v;
            return where_positive<T>(y ? first<T>(y + i, k) : at * scale.factor + scale.shift, v);
        };
        double sums[2] = {};
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t slab = (b * norm.channels + c) * size;
            add_up<T>(size, sums, [=](int64_t i, int k, Vec<T>* terms) {
                const Vec<T> at = first<T>(x + slab + i, k);
                terms[0] = below(slab + i, k, at);
                terms[1] = terms[0] * (at - mean);
                if (g_below) put<T>(g_below + slab + i, terms[0], k);
            });
        }
        results.parts[2 * c] = sums[0];
        results.parts[2 * c + 1] = sums[1];
        results.finish(norm, c, 1, double(blocks * size));
        if (!gx) continue;
        const T factor = scale.factor, even = results.factors[norm.channels + c];
        const T along = results.factors[2 * norm.channels + c];
        const bool given = results.given;
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t slab = (b * norm.channels + c) * size;
            each<T>(slab, size, [=](int64_t i, int k) {
                const Vec<T> at = first<T>(x + i, k), v = g_below ? first<T>(g_below + i, k) : below(i, k, at);
                put<T>(gx + i, given ? v * factor : (v - even - (at - mean) * along) * factor, k);
            });
        }
    }
}

// y = a + b, each of which may be null; then it counts as zeros.
template <typename T>
void add(const T* a, const T* b, T* y, int64_t size, int threads) {
    const int64_t pieces = (size + SHORT - 1) / SHORT;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t piece = 0; piece < pieces; piece++)
        each<T>(piece * SHORT, smaller(SHORT, size - piece * SHORT), [=](int64_t i, int k) {
            put<T>(y + i, (a ? first<T>(a + i, k) : Vec<T>{}) + (b ? first<T>(b + i, k) : Vec<T>{}), k);
        });
}

enum class Kind : int64_t { GATHER, GRADIENTS, NORMALISE, NORMALISE_BACKWARD, ADD };

template <typename T>
struct Call {  // of one of the functions below, whose parameters have these names; what it does not take is zero
    const Plan *plan, *back;
    const T* x;
    T* y;  // where the gradient below a ReLU goes as well
    const T *g, *weight;
    const int64_t* active;
    T *compact, *values;
    const T *bias, *more;
    const int64_t* places;
    T *sums, *gradient, *of_inputs;
    Norm<T> norm;
    Statistics<T> statistics;
    NormSums<T> norm_sums;
    NormBack<T> outputs;
    Windows<T> windows, output_windows;
    Kind kind;
    int64_t blocks, lanes, parts, row_parts;  // `lanes` of all pixels, where there is no plan
};

}  // namespace

#define LAYER(NAME, T)                                                                                                    \
    extern "C" void gather_##NAME(const Plan* plan, const T* x, T* y, const T* weight, const int64_t* active, T* compact, \
                                  T* values, const T* bias, const T* more, const Norm<T>* norm,                           \
                                  const Windows<T>* windows, const Statistics<T>* statistics, int64_t blocks,             \
                                  int64_t lanes, int threads) {                                                           \
        Weight<T>{weight, active, compact, values}.fill(*plan, threads);                                                  \
        gather<T>({*plan, values, bias, more, y, lanes}, x, norm, windows, statistics, blocks, threads);                  \
    }                                                                                                                     \
    extern "C" void weight_gradient_##NAME(const Plan* plan, const T* x, const T* g, const int64_t* places, T* sums,      \
                                           T* gradient, const Plan* back, const T* weight, const int64_t* active,         \
                                           T* compact, T* values, const T* more, T* of_inputs, const Norm<T>* norm,       \
                                           const NormSums<T>* norm_sums, const NormBack<T>* outputs,                      \
                                           const Windows<T>* windows, const Windows<T>* output_windows, int64_t blocks,   \
                                           int64_t lanes, int64_t parts, int64_t row_parts, int threads) {                \
        if (back) Weight<T>{weight, active, compact, values}.fill(*back, threads);                                        \
        const Gather<T> inputs = {back ? *back : *plan, values, nullptr, more, of_inputs, lanes};                         \
        const Back<T> all = {back ? &inputs : nullptr, norm, norm_sums, outputs, windows, output_windows};                \
        weight_gradient<T>(*plan, x, g, places, sums, gradient, all, blocks, lanes, parts, row_parts, threads);           \
    }                                                                                                                     \
    extern "C" void normalise_##NAME(const Norm<T>* norm, const Statistics<T>* statistics, const T* x, int64_t blocks,    \
                                     int64_t size, int threads) {                                                         \
        normalise<T>(*norm, statistics, x, blocks, size, threads);                                                        \
    }                                                                                                                     \
    extern "C" void normalise_backward_##NAME(const Norm<T>* norm, const T* x, const T* g, T* gx, T* g_below,             \
                                              const NormSums<T>* results, int64_t blocks, int64_t size, int threads) {    \
        normalise_backward<T>(*norm, x, g, gx, g_below, *results, blocks, size, threads);                                 \
    }                                                                                                                     \
    extern "C" void run_##NAME(const Call<T>* calls, int64_t n, int threads) {                                            \
        for (const Call<T>* c = calls; c < calls + n; c++) {                                                              \
            const Norm<T>* norm = c->norm.statistics ? &c->norm : nullptr;                                                \
            const Statistics<T>* statistics = c->statistics.values ? &c->statistics : nullptr;                            \
            const NormSums<T>* norm_sums = c->norm_sums.factors ? &c->norm_sums : nullptr;                                \
            const NormBack<T>* outputs = c->outputs.factors ? &c->outputs : nullptr;                                      \
            const Windows<T>* windows = c->windows.stride ? &c->windows : nullptr;                                        \
            const Windows<T>* output_windows = c->output_windows.stride ? &c->output_windows : nullptr;                   \
            if (c->kind == Kind::GATHER)                                                                                  \
                gather_##NAME(c->plan, c->x, c->y, c->weight, c->active, c->compact, c->values, c->bias, c->more, norm,   \
                              windows, statistics, c->blocks, c->lanes, threads);                                         \
            else if (c->kind == Kind::GRADIENTS)                                                                          \
                weight_gradient_##NAME(c->plan, c->x, c->g, c->places, c->sums, c->gradient, c->back, c->weight,          \
                                       c->active, c->compact, c->values, c->more, c->of_inputs, norm, norm_sums,          \
                                       outputs, windows, output_windows, c->blocks, c->lanes, c->parts, c->row_parts,     \
                                       threads);                                                                          \
            else if (c->kind == Kind::NORMALISE)                                                                          \
                normalise_##NAME(norm, statistics, c->x, c->blocks, c->lanes, threads);                                   \
            else if (c->kind == Kind::NORMALISE_BACKWARD)                                                                 \
                normalise_backward_##NAME(norm, c->x, c->g, c->of_inputs, c->y, norm_sums, c->blocks, c->lanes, threads); \
            else                                                                                                          \
                add<T>(c->x, c->g, c->y, c->lanes, threads);                                                              \
        }                                                                                                                 \
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
