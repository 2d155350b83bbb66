/* Activations gathered by feature, and what follows from them, compiled.
 *
 * A feature of few firings keeps its activations. One of many keeps how often it had each of them, in
 * pages: activations are stored with few bits, so there are not many. What each function gives is
 * stated by `gathered.py`, which has its plain counterpart.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdlib.h>

#include "_bands.h"
#include "_sort.h"

enum {
    EXPONENTS = 512,  /* A sign and an exponent: what a page is of. */
    VALUES = 1024,    /* Activations of a page: ten bits of mantissa. */
    AHEAD = 16,       /* Rows. */
};
enum { DONE, FULL, TOO_FINE };

static void release(Py_buffer *given, int n)
{
    for (int i = 0; i < n; i++)
        PyBuffer_Release(&given[i]);
}

static float float_of(uint32_t raw)
{
    float value;
    memcpy(&value, &raw, 4);
    return value;
}

PyDoc_STRVAR(count_doc,
             "count(feature i32, low, rows i64): add how often each feature from `low` on is there.");

static PyObject *count(PyObject *self, PyObject *args)
{
    Py_buffer b[2];
    long long low;
    if (!PyArg_ParseTuple(args, "y*Lw*", &b[0], &low, &b[1]))
        return NULL;
    const int32_t *feature = b[0].buf;
    int64_t *rows = b[1].buf;
    const int64_t n = b[0].len / 4, n_features = b[1].len / 8;
    if (low < 0 || low > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "no feature is as low, or as high");
        release(b, 2);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    for (int64_t i = 0; i < n; i++) {
        const int64_t f = feature[i] - low;
        if (f >= 0 && f < n_features)
            rows[f]++;
    }
    Py_END_ALLOW_THREADS
    release(b, 2);
    Py_RETURN_NONE;
}

typedef struct {
    const int32_t *feature;
    const uint32_t *activation;
    const int8_t *kind;
    int64_t low, n_features, n_pages;
    int64_t *next;
    const int64_t *stop;
    uint32_t *values;
    int32_t *pages;
    uint32_t *pool;
    int64_t *used;
} Gathering;

/* Keep the activations of rows `i` to `stop`, which are of feature `f`; whether there was room. */
static int keep(const Gathering *g, int64_t f, int64_t i, int64_t stop)
{
    const int64_t room = g->stop[f];
    int64_t next = g->next[f];
    for (; i < stop; i++)
        if (g->kind[i] != KIND_BOS) {
            if (next >= room)
                return 0;
            g->values[next++] = g->activation[i];
        }
    g->next[f] = next;
    return 1;
}

/* Count them in the feature's pages; return the first that could not be, and say why in `status`. */
static int64_t tally(const Gathering *g, int64_t f, int64_t i, int64_t stop, int *status)
{
    int32_t *pages = g->pages + (-1 - g->stop[f]) * EXPONENTS;
    uint32_t *pool = g->pool;
    int64_t taken = 0;
    for (*status = DONE; i < stop; i++) {
        /* Each count is a line of its own, and most are not in the cache. */
        const uint32_t ahead = key_of(g->activation[i + AHEAD < stop ? i + AHEAD : i]);
        const int64_t next = pages[ahead >> 23] < 0 ? 0 : pages[ahead >> 23];
        __builtin_prefetch(pool + next * VALUES + ((ahead >> FINE_BITS) & (VALUES - 1)), 1);
        const uint32_t raw = g->activation[i], key = key_of(raw);
        if (g->kind[i] == KIND_BOS)
            continue;
        if (raw & FINE) {
            *status = TOO_FINE;
            break;
        }
        int32_t *page = pages + (key >> 23);
        if (*page < 0) {
            if (*g->used >= g->n_pages) {
                *status = FULL;
                break;
            }
            *page = (int32_t)(*g->used)++;
            memset(pool + (int64_t)*page * VALUES, 0, VALUES * sizeof(*pool));
        }
        if (*page >= g->n_pages)
            return -1;
        pool[(int64_t)*page * VALUES + ((key >> FINE_BITS) & (VALUES - 1))]++;
        taken++;
    }
    g->next[f] += taken;
    return i;
}

/* Take rows `i` to `n`; return how far that came, or -1, and say why in `status`. */
static int64_t gather_rows(const Gathering *g, int64_t i, int64_t n, int *status)
{
    *status = DONE;
    while (i < n) {
        const int32_t feature = g->feature[i];
        const int64_t f = feature - g->low;
        int64_t stop = i + 1;
        while (stop < n && g->feature[stop] == feature)
            stop++;
        if (f >= 0 && f < g->n_features) {
            if (g->stop[f] >= 0) {
                if (!keep(g, f, i, stop))
                    return -1;
            } else if ((i = tally(g, f, i, stop, status)) != stop) {
                return i;
            }
        }
        i = stop;
    }
    return n;
}

/* Whether all that is written to lies within its buffer. */
static int fits(const Gathering *g, const Py_buffer *b)
{
    const int64_t n_values = b[5].len / 4, n_paged = b[6].len / 4 / EXPONENTS;
    if (b[4].len != b[3].len || b[8].len != 8 || *g->used < 0 || *g->used > g->n_pages)
        return 0;
    if (g->low < 0 || g->low > INT32_MAX)
        return 0;
    for (int64_t i = 0; i < g->n_features; i++) {
        const int64_t stop = g->stop[i];
        if (g->next[i] < 0 || g->next[i] > INT64_MAX / 2)
            return 0;
        if (stop >= 0 ? stop > n_values : -1 - stop >= n_paged)
            return 0;
    }
    return 1;
}

PyDoc_STRVAR(gather_doc,
             "gather(feature i32, activation f32, kind i8, next i64, stop i64, values f32, pages i32, "
             "pool u32, used i64 [1], low, first) -> (row, status): take rows from `first` on.");

static PyObject *gather(PyObject *self, PyObject *args)
{
    Py_buffer b[9];
    long long low, first;
    if (!PyArg_ParseTuple(args, "y*y*y*w*y*w*w*w*w*LL", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5],
                          &b[6], &b[7], &b[8], &low, &first))
        return NULL;
    const Gathering g = {
        b[0].buf, b[1].buf, b[2].buf, low, b[3].len / 8, b[7].len / 4 / VALUES,
        b[3].buf, b[4].buf, b[5].buf, b[6].buf, b[7].buf, b[8].buf,
    };
    const Py_ssize_t n = b[2].len;
    PyObject *found = NULL;
    if (b[0].len != 4 * n || b[1].len != 4 * n || first < 0 || first > n) {
        PyErr_SetString(PyExc_ValueError, "columns of firings are of different lengths");
    } else if (!fits(&g, b)) {
        PyErr_SetString(PyExc_ValueError, "there is no room for these features");
    } else {
        int status;
        int64_t row;
        Py_BEGIN_ALLOW_THREADS
        row = gather_rows(&g, first, n, &status);
        Py_END_ALLOW_THREADS
        if (row < 0)
            PyErr_SetString(PyExc_ValueError, "there is room for fewer firings");
        else
            found = Py_BuildValue("Li", (long long)row, status);
    }
    release(b, 9);
    return found;
}

/* The longest of runs that begin at `start` and have `n` values, or -1 where one is not of
 * `n_values`. Whoever calls must not change them meanwhile. */
static int64_t longest_of(const int64_t *start, const int64_t *n, int64_t n_runs, int64_t n_values)
{
    int64_t longest = 0;
    for (int64_t i = 0; i < n_runs; i++) {
        if (start[i] < 0 || n[i] < 0 || n[i] > n_values || start[i] > n_values - n[i])
            return -1;
        longest = n[i] > longest ? n[i] : longest;
    }
    return longest;
}

PyDoc_STRVAR(sort_doc, "sort(values f32, starts i64, counts i64): sort each run of values, in place.");

static PyObject *sort(PyObject *self, PyObject *args)
{
    Py_buffer b[3];
    if (!PyArg_ParseTuple(args, "w*y*y*", &b[0], &b[1], &b[2]))
        return NULL;
    uint32_t *value = b[0].buf;
    const int64_t *start = b[1].buf, *n = b[2].buf, n_runs = b[1].len / 8;
    const int64_t longest =
        b[2].len == b[1].len ? longest_of(start, n, n_runs, b[0].len / 4) : -1;
    uint32_t *other = longest < 0 ? NULL : malloc((size_t)longest * 4 + 4);
    if (longest < 0) {
        PyErr_SetString(PyExc_ValueError, "the runs are of other values");
    } else if (!other) {
        PyErr_NoMemory();
    } else {
        Py_BEGIN_ALLOW_THREADS
        for (int64_t i = 0; i < n_runs; i++)
            sort_run(value + start[i], other, n[i]);
        Py_END_ALLOW_THREADS
    }
    free(other);
    release(b, 3);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(summarize_doc,
             "summarize(values f32, starts i64, counts i64, sums f64, bins i64 [runs, BANDS]): write "
             "each run's sum, added up one after the other, and add its values to its bins.");

static PyObject *summarize(PyObject *self, PyObject *args)
{
    Py_buffer b[5];
    if (!PyArg_ParseTuple(args, "y*y*y*w*w*", &b[0], &b[1], &b[2], &b[3], &b[4]))
        return NULL;
    const float *value = b[0].buf;
    const int64_t *start = b[1].buf, *n = b[2].buf, n_runs = b[1].len / 8;
    double *sum = b[3].buf;
    int64_t *bins = b[4].buf;
    const int fitting = b[2].len == b[1].len && b[3].len == b[1].len &&
                        b[4].len == b[1].len * BANDS &&
                        longest_of(start, n, n_runs, b[0].len / 4) >= 0;
    if (fitting) {
        Py_BEGIN_ALLOW_THREADS
        for (int64_t i = 0; i < n_runs; i++, bins += BANDS) {
            double total = 0;
            for (const float *v = value + start[i]; v < value + start[i] + n[i]; v++) {
                total += *v;
                bins[band_of(*v)]++;
            }
            sum[i] = total;
        }
        Py_END_ALLOW_THREADS
    }
    release(b, 5);
    if (fitting)
        Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, "the runs are of other values");
    return NULL;
}

typedef struct {
    const int32_t *page;
    const uint32_t *pool;
    const int64_t *rank;
    int64_t n_ranks;
} Paged;

/* Walk a feature's activations from the least. */
static void walk(const Paged *p, float *found, double *sum, int64_t *bins)
{
    int64_t before = 0;
    *sum = 0;
    for (uint32_t exponent = 0; exponent < EXPONENTS; exponent++) {
        if (p->page[exponent] < 0)
            continue;
        const uint32_t *counts = p->pool + (int64_t)p->page[exponent] * VALUES;
        for (uint32_t i = 0; i < VALUES; i++) {
            if (!counts[i])
                continue;
            /* Below zero the bits that are not kept are ones in a key, and zeros in the float. */
            const uint32_t low = exponent < EXPONENTS / 2 ? FINE : 0;
            const float value = float_of(raw_of(exponent << 23 | i << FINE_BITS | low));
            for (int64_t r = 0; r < p->n_ranks; r++)
                if (p->rank[r] >= before && p->rank[r] < before + counts[i])
                    found[r] = value;
            before += counts[i];
            *sum += value * (double)counts[i];
            bins[band_of(value)] += counts[i];
        }
    }
}

PyDoc_STRVAR(paged_doc,
             "paged(pages i32, pool u32, ranks i64 [features, ranks], values f32, sums f64, bins i64): "
             "write the activation at each rank, each feature's sum and its bins.");

static PyObject *paged(PyObject *self, PyObject *args)
{
    Py_buffer b[6];
    if (!PyArg_ParseTuple(args, "y*y*y*w*w*w*", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5]))
        return NULL;
    const int32_t *pages = b[0].buf;
    const int64_t n = b[4].len / 8, n_pages = b[1].len / 4 / VALUES;
    int fitting = b[0].len == n * EXPONENTS * 4 && b[5].len == n * BANDS * 8 &&
                  b[3].len * 2 == b[2].len && (n == 0 || b[2].len % (n * 8) == 0);
    for (int64_t i = 0; fitting && i < n * EXPONENTS; i++)
        fitting = pages[i] < n_pages;
    if (fitting) {
        Paged p = {pages, b[1].buf, b[2].buf, n ? b[2].len / (n * 8) : 0};
        float *found = b[3].buf;
        double *sum = b[4].buf;
        int64_t *bins = b[5].buf;
        Py_BEGIN_ALLOW_THREADS
        for (int64_t i = 0; i < n; i++) {
            walk(&p, found, sum + i, bins + i * BANDS);
            p.page += EXPONENTS, p.rank += p.n_ranks, found += p.n_ranks;
        }
        Py_END_ALLOW_THREADS
    }
    release(b, 6);
    if (fitting)
        Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, "the pages are of other features");
    return NULL;
}

static PyMethodDef METHODS[] = {
    {"count", count, METH_VARARGS, count_doc},
    {"gather", gather, METH_VARARGS, gather_doc},
    {"sort", sort, METH_VARARGS, sort_doc},
    {"summarize", summarize, METH_VARARGS, summarize_doc},
    {"paged", paged, METH_VARARGS, paged_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_statistics", "Activations gathered by feature, compiled.", 0, METHODS,
};

PyMODINIT_FUNC PyInit__statistics(void) { return PyModule_Create(&MODULE); }
