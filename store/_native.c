/* Firings put in order of their features, and selected for peaks and samples, compiled.
 *
 * Columns come as buffers (context i64, position i32, feature i32, activation f32, kind i8), results
 * are bytearrays. What each function gives is stated by its counterpart in numpy (native.py).
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_bands.h"

enum { N_COLUMNS = 5 };

typedef struct {
    const int64_t *context;
    const int32_t *position, *feature;
    const float *activation;
    const int8_t *kind;
    Py_ssize_t n;
} Firings;

/* An array that grows; `failed` once memory is out. */
typedef struct {
    char *data;
    size_t used, room;
    int failed;
} Growing;

static void append(Growing *g, const void *value, size_t size)
{
    if (g->used + size > g->room) {
        size_t room = g->room ? 2 * g->room : 1 << 16;
        char *data = realloc(g->data, room);
        if (!data) {
            g->failed = 1;
            return;
        }
        g->data = data, g->room = room;
    }
    memcpy(g->data + g->used, value, size);
    g->used += size;
}

static PyObject *to_bytes(const Growing *g)
{
    return PyByteArray_FromStringAndSize(g->data, (Py_ssize_t)g->used);
}

static const Py_ssize_t SIZES[N_COLUMNS] = {8, 4, 4, 4, 1};

/* Whether the buffers are columns of one length, all of whose features are below `width`. */
static int view(Py_buffer *given, int64_t width, Firings *f)
{
    f->n = given[4].len;
    for (int i = 0; i < N_COLUMNS; i++)
        if (given[i].len != f->n * SIZES[i]) {
            PyErr_SetString(PyExc_ValueError, "columns of firings are of different lengths");
            return 0;
        }
    f->context = given[0].buf, f->position = given[1].buf, f->feature = given[2].buf;
    f->activation = given[3].buf, f->kind = given[4].buf;
    int outside = 0;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < f->n; i++)
        outside |= f->feature[i] < 0 || f->feature[i] >= width;
    Py_END_ALLOW_THREADS
    if (outside)
        PyErr_Format(PyExc_ValueError, "a feature is not below %lld", (long long)width);
    return !outside;
}

static void release(Py_buffer *given, int n)
{
    for (int i = 0; i < n; i++)
        PyBuffer_Release(&given[i]);
}

PyDoc_STRVAR(by_feature_doc,
             "by_feature(context, position, feature, activation, kind, width) -> the five columns, "
             "stably sorted by feature.");

static PyObject *by_feature(PyObject *self, PyObject *args)
{
    Py_buffer b[N_COLUMNS];
    long long width;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*L", &b[0], &b[1], &b[2], &b[3], &b[4], &width))
        return NULL;
    Firings f;
    PyObject *made[N_COLUMNS] = {NULL}, *all = NULL;
    int64_t *next = NULL;
    if (!view(b, width, &f))
        goto done;
    next = calloc((size_t)width + 1, sizeof(*next));
    if (!next) {
        PyErr_NoMemory();
        goto done;
    }
    for (int i = 0; i < N_COLUMNS; i++)
        if (!(made[i] = PyByteArray_FromStringAndSize(NULL, f.n * SIZES[i])))
            goto done;
    int64_t *context = (int64_t *)PyByteArray_AsString(made[0]);
    int32_t *position = (int32_t *)PyByteArray_AsString(made[1]);
    int32_t *feature = (int32_t *)PyByteArray_AsString(made[2]);
    float *activation = (float *)PyByteArray_AsString(made[3]);
    int8_t *kind = (int8_t *)PyByteArray_AsString(made[4]);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < f.n; i++)
        next[f.feature[i] + 1]++;
    for (int64_t i = 0; i < width; i++) {
        for (int64_t j = 0; j < next[i + 1]; j++)
            feature[next[i] + j] = (int32_t)i;
        next[i + 1] += next[i];
    }
    for (Py_ssize_t i = 0; i < f.n; i++) {
        int64_t at = next[f.feature[i]]++;
        context[at] = f.context[i];
        position[at] = f.position[i];
        activation[at] = f.activation[i];
        kind[at] = f.kind[i];
    }
    Py_END_ALLOW_THREADS
    all = PyTuple_Pack(N_COLUMNS, made[0], made[1], made[2], made[3], made[4]);
done:
    for (int i = 0; i < N_COLUMNS; i++)
        Py_XDECREF(made[i]);
    free(next);
    release(b, N_COLUMNS);
    return all;
}

/* Keys whose ascending order is the descending order of activations. */
static uint32_t descending(float activation)
{
    uint32_t raw;
    activation += 0.0f;
    memcpy(&raw, &activation, 4);
    return raw >> 31 ? raw : ~(raw | 1u << 31);
}

static uint32_t priority(int64_t context, int32_t position, int32_t feature)
{
    uint64_t x = (uint64_t)context * 0x9E3779B97F4A7C15u;
    x ^= (uint64_t)(int64_t)position * 0xC2B2AE3D27D4EB4Fu;
    x ^= (uint64_t)(int64_t)feature * 0x165667B19E3779F9u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)((x ^ (x >> 31)) >> 33);
}

/* The k smallest of what is offered: a heap whose root is the largest. */
typedef struct {
    uint64_t *values;
    int n, k;
} Heap;

static void offer(Heap *h, uint64_t value)
{
    uint64_t *v = h->values;
    int at;
    if (h->n < h->k) {
        for (at = h->n++; at && v[(at - 1) / 2] < value; at = (at - 1) / 2)
            v[at] = v[(at - 1) / 2];
        v[at] = value;
        return;
    }
    if (value >= v[0])
        return;
    for (at = 0;;) {
        int child = 2 * at + 1;
        if (child >= h->n)
            break;
        if (child + 1 < h->n && v[child + 1] > v[child])
            child++;
        if (v[child] <= value)
            break;
        v[at] = v[child];
        at = child;
    }
    v[at] = value;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

typedef struct {
    Firings f;
    const uint32_t *peak_bounds, *sample_bounds;
    Heap peaks, bands[BANDS];
    Growing peak_index, sample_index, sample_band, sample_priority;
} Selection;

/* The largest key or priority that can still be among the smallest: they lie above the places. */
static uint32_t bound_of(const Heap *h, uint32_t bound)
{
    if (h->n < h->k)
        return bound;
    const uint32_t last = (uint32_t)(h->values[0] >> 32);
    return last < bound ? last : bound;
}

/* Offer the strongest firing of each context: [start, stop) are of one feature. Those beyond the
 * bound are left out first, which few of them pass. */
static void offer_peaks(Selection *s, int64_t start, int64_t stop)
{
    const Firings *f = &s->f;
    const uint32_t given = s->peak_bounds[f->feature[start]];
    uint32_t bound = bound_of(&s->peaks, given), highest = 0;
    int64_t best = -1;
    for (int64_t i = start; i < stop; i++) {
        const uint32_t key = descending(f->activation[i]);
        if (key > bound || f->kind[i] == KIND_BOS)
            continue;
        if (best >= 0 && f->context[i] == f->context[best]) {
            if (key < highest)
                best = i, highest = key;
            continue;
        }
        if (best >= 0) {
            offer(&s->peaks, (uint64_t)highest << 32 | (uint64_t)(best - start));
            bound = bound_of(&s->peaks, given);
        }
        best = i, highest = key;
    }
    if (best >= 0)
        offer(&s->peaks, (uint64_t)highest << 32 | (uint64_t)(best - start));
}

static void offer_samples(Selection *s, int64_t start, int64_t stop)
{
    const Firings *f = &s->f;
    const int32_t feature = f->feature[start];
    uint32_t bounds[BANDS];
    memcpy(bounds, s->sample_bounds + (int64_t)feature * BANDS, sizeof(bounds));
    for (int64_t i = start; i < stop; i++) {
        const uint32_t drawn = priority(f->context[i], f->position[i], feature);
        const int band = band_of(f->activation[i]);
        if (drawn > bounds[band] || f->kind[i] == KIND_BOS)
            continue;
        offer(&s->bands[band], (uint64_t)drawn << 32 | (uint64_t)(i - start));
        bounds[band] = bound_of(&s->bands[band], bounds[band]);
    }
}

static void emit(Selection *s, int64_t start)
{
    Heap *h = &s->peaks;
    qsort(h->values, h->n, sizeof(*h->values), compare);
    for (int i = 0; i < h->n; i++) {
        int64_t at = start + (int64_t)(h->values[i] & 0xFFFFFFFFu);
        append(&s->peak_index, &at, sizeof(at));
    }
    h->n = 0;
    for (int band = 0; band < BANDS; band++) {
        h = &s->bands[band];
        qsort(h->values, h->n, sizeof(*h->values), compare);
        for (int i = 0; i < h->n; i++) {
            int64_t at = start + (int64_t)(h->values[i] & 0xFFFFFFFFu);
            int32_t drawn = (int32_t)(h->values[i] >> 32);
            int8_t of = (int8_t)band;
            append(&s->sample_index, &at, sizeof(at));
            append(&s->sample_band, &of, sizeof(of));
            append(&s->sample_priority, &drawn, sizeof(drawn));
        }
        h->n = 0;
    }
}

static int run_selection(Selection *s, int k_peaks, int per_band)
{
    uint64_t *room = malloc(((size_t)k_peaks + (size_t)per_band * BANDS) * sizeof(*room));
    if (!room)
        return 0;
    s->peaks = (Heap){room, 0, k_peaks};
    for (int band = 0; band < BANDS; band++)
        s->bands[band] = (Heap){room + k_peaks + (size_t)band * per_band, 0, per_band};
    for (int64_t start = 0, stop; start < s->f.n; start = stop) {
        for (stop = start; stop < s->f.n && s->f.feature[stop] == s->f.feature[start];)
            stop++;
        offer_peaks(s, start, stop);
        offer_samples(s, start, stop);
        emit(s, start);
    }
    free(room);
    return !(s->peak_index.failed || s->sample_index.failed || s->sample_band.failed ||
             s->sample_priority.failed);
}

PyDoc_STRVAR(select_doc,
             "select(context, position, feature, activation, kind, peak_bounds, sample_bounds, "
             "k_peaks, per_band) -> (index of peaks i64, index of samples i64, their bands i8, "
             "their priorities i32), of feature-major firings.");

static PyObject *select_(PyObject *self, PyObject *args)
{
    Py_buffer b[N_COLUMNS + 2];
    int k_peaks, per_band, done = 0;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*y*y*ii", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &b[6],
                          &k_peaks, &per_band))
        return NULL;
    Selection s = {.peak_bounds = b[5].buf, .sample_bounds = b[6].buf};
    PyObject *found = NULL;
    if (k_peaks < 1 || per_band < 1 || b[6].len != b[5].len * BANDS) {
        PyErr_SetString(PyExc_ValueError, "bounds are of different features, or nothing is kept");
        goto done;
    }
    if (!view(b, b[5].len / 4, &s.f))
        goto done;
    Py_BEGIN_ALLOW_THREADS
    done = run_selection(&s, k_peaks, per_band);
    Py_END_ALLOW_THREADS
    found = done ? Py_BuildValue("(NNNN)", to_bytes(&s.peak_index), to_bytes(&s.sample_index),
                                 to_bytes(&s.sample_band), to_bytes(&s.sample_priority))
                 : PyErr_NoMemory();
done:
    free(s.peak_index.data);
    free(s.sample_index.data);
    free(s.sample_band.data);
    free(s.sample_priority.data);
    release(b, N_COLUMNS + 2);
    return found;
}

static PyMethodDef METHODS[] = {
    {"by_feature", by_feature, METH_VARARGS, by_feature_doc},
    {"select", select_, METH_VARARGS, select_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_native", "Firings in order, and selected, compiled.", 0,
    METHODS,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&MODULE); }
