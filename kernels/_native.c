/* Encoding on CPUs: the encoder product, the threshold and the compaction in one pass.

   Tokens are packed once. A task takes a block of tokens and some features; it packs their columns
   of the weights, multiplies tile by tile in cache, and appends what fires. No [tokens, width]
   array exists. Tasks leave the interpreter lock, so threads of Python's run them side by side.

   Arrays are C-contiguous. A piece is (counts i32[n_tokens], features i32, activations f32): the
   firings of a block of tokens, token after token, features ascending. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__GNUC__)
#error "GCC's vector extensions are needed: build with gcc or clang"
#endif

/* The input width is summed in blocks of DEPTH, each from 0: what they are fixes the last bits. */
enum { DEPTH = 256, MOST_COLUMNS = 32, GROUPS = 8 };

#if defined(__x86_64__)
#define NAME(x) x##_avx512
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma")))
#define LANES 16
#define MR 14
#define NV 2
#include "_tile.h"

#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define MR 6
#define NV 2
#include "_tile.h"
#endif

#define NAME(x) x##_plain
#define TARGET
#define LANES 4
#define MR 6
#define NV 2
#include "_tile.h"

typedef struct {
    const char *name;
    long rows, columns; /* of a tile */
    void (*multiply)(long, const float *, const float *, float *, long, int);
    long (*compact)(const float *, const float *, const float *, const int32_t *, long, int32_t *,
                    float *);
} Set;

#define SET(x) {#x, rows_##x, columns_##x, multiply_##x, compact_##x}
static const Set SETS[] = {
#if defined(__x86_64__)
    SET(avx512), SET(avx2),
#endif
    SET(plain),
};

enum { N_SETS = sizeof(SETS) / sizeof(SETS[0]) };

static int has_set(int i)
{
#if defined(__x86_64__)
    if (i == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if (i == 1)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return i == N_SETS - 1;
}

static const Set *find_set(const char *name)
{
    for (int i = 0; i < N_SETS; i++)
        if (has_set(i) && strcmp(SETS[i].name, name) == 0)
            return &SETS[i];
    PyErr_Format(PyExc_ValueError, "this machine has no instruction set called %s", name);
    return NULL;
}

static long round_up(long n, long step) { return (n + step - 1) / step * step; }

static long least(long a, long b) { return a < b ? a : b; }

/* What a task reads and writes. */
typedef struct {
    const Set *set;
    const float *tokens; /* packed: block of DEPTH, tile of rows, [depth][rows] */
    const float *weights; /* [depth in all][stride] */
    const float *bias, *threshold; /* of all features */
    const int32_t *names; /* the task's features, ascending; NULL: first, first + 1, ... */
    long n_tokens, n_inputs, stride, first, n_features;
    int32_t *counts;
    int32_t *features;
    float *activations;
    long n_firings, room;
} Task;

/* Room for a row of firings more; 0 if there is no memory. */
static int make_room(Task *t, long n)
{
    if (t->n_firings + n <= t->room)
        return 1;
    long room = t->room + t->room / 2 + n;
    int32_t *features = realloc(t->features, room * sizeof(*features));
    if (features)
        t->features = features;
    float *activations = realloc(t->activations, room * sizeof(*activations));
    if (activations)
        t->activations = activations;
    if (!features || !activations)
        return 0;
    t->room = room;
    return 1;
}

/* Pack the columns of some features: block of DEPTH, tile of columns, [depth][columns]. Columns
   behind the last feature are zero. */
static void pack_weights(const Task *t, long padded, float *out)
{
    long columns = t->set->columns;
    for (long start = 0; start < t->n_inputs; start += DEPTH) {
        long depth = least(DEPTH, t->n_inputs - start);
        for (long p = 0; p < depth; p++) {
            const float *row = t->weights + (start + p) * t->stride;
            for (long j = 0; j < padded; j += columns) {
                float *to = out + start * padded + j * depth + p * columns;
                long n = j < t->n_features ? least(columns, t->n_features - j) : 0;
                if (!t->names)
                    memcpy(to, row + t->first + j, n * sizeof(float));
                else
                    for (long i = 0; i < n; i++)
                        to[i] = row[t->names[j + i]];
                memset(to + n, 0, (columns - n) * sizeof(float));
            }
        }
    }
}

/* Multiply a group of tiles of rows with all features of the task: pre is [rows][padded]. */
static void multiply(const Task *t, long tile, long n_tiles, long all_tiles, long padded,
                     const float *packed, float *pre)
{
    long rows = t->set->rows, columns = t->set->columns;
    for (long start = 0; start < t->n_inputs; start += DEPTH) {
        long depth = least(DEPTH, t->n_inputs - start);
        const float *block = t->tokens + start * all_tiles * rows;
        for (long i = 0; i < n_tiles; i++)
            for (long j = 0; j < padded; j += columns)
                t->set->multiply(depth, block + (tile + i) * rows * depth,
                                 packed + start * padded + j * depth,
                                 pre + i * rows * padded + j, padded, start == 0);
    }
}

/* Encode; 0 if there is no memory. */
static int run(Task *t)
{
    long rows = t->set->rows;
    long padded = round_up(t->n_features, MOST_COLUMNS);
    long all_tiles = (t->n_tokens + rows - 1) / rows;
    float *packed = malloc((t->n_inputs + 1) * padded * sizeof(float));
    float *pre = calloc(GROUPS * rows * padded, sizeof(float)); /* d may be 0 */
    float *bias = calloc(2 * padded, sizeof(float)), *threshold = bias + padded;
    int32_t *names = calloc(padded, sizeof(int32_t));
    int done = packed && pre && bias && names;
    if (done) {
        pack_weights(t, padded, packed);
        for (long j = 0; j < padded; j++) {
            int is_there = j < t->n_features;
            names[j] = !is_there ? 0 : t->names ? t->names[j] : (int32_t)(t->first + j);
            bias[j] = is_there ? t->bias[names[j]] : 0;
            threshold[j] = is_there ? t->threshold[names[j]] : INFINITY;
        }
    }
    for (long tile = 0; done && tile < all_tiles; tile += GROUPS) {
        long n_tiles = least(GROUPS, all_tiles - tile);
        multiply(t, tile, n_tiles, all_tiles, padded, packed, pre);
        long stop = least(n_tiles * rows, t->n_tokens - tile * rows);
        for (long i = 0; done && i < stop; i++) {
            done = make_room(t, padded);
            if (!done)
                break;
            long n = t->set->compact(pre + i * padded, bias, threshold, names, padded,
                                     t->features + t->n_firings, t->activations + t->n_firings);
            t->counts[tile * rows + i] = (int32_t)n;
            t->n_firings += n;
        }
    }
    free(packed), free(pre), free(bias), free(names);
    return done;
}

/* Whether a buffer holds n * m numbers of 4 bytes; else an error is set. */
static int has_numbers(const Py_buffer *buffer, const char *what, Py_ssize_t n, Py_ssize_t m)
{
    if (n >= 0 && m >= 0 && (m == 0 || n <= PY_SSIZE_T_MAX / 4 / m) && buffer->len == n * m * 4)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: %zd bytes were given, %zd x %zd x 4 expected", what,
                 buffer->len, n, m);
    return 0;
}

PyDoc_STRVAR(sets_doc, "sets() -> names of the instruction sets of this machine, the best first.");

static PyObject *sets(PyObject *self, PyObject *none)
{
    PyObject *found = PyList_New(0);
    for (int i = 0; found && i < N_SETS; i++) {
        if (!has_set(i))
            continue;
        PyObject *name = PyUnicode_FromString(SETS[i].name);
        if (!name || PyList_Append(found, name) < 0)
            Py_CLEAR(found);
        Py_XDECREF(name);
    }
    return found;
}

PyDoc_STRVAR(pack_doc, "pack(set, tokens f32[n, d], n, d) -> bytearray, for encode.");

static PyObject *pack(PyObject *self, PyObject *args)
{
    const char *name;
    Py_buffer tokens;
    Py_ssize_t n, d;
    if (!PyArg_ParseTuple(args, "sy*nn", &name, &tokens, &n, &d))
        return NULL;
    PyObject *result = NULL;
    const Set *set = find_set(name);
    if (set && has_numbers(&tokens, "tokens", n, d))
        result = PyByteArray_FromStringAndSize(NULL, round_up(n, set->rows) * d * 4);
    if (result) {
        const float *from = tokens.buf;
        float *to = (float *)PyByteArray_AsString(result);
        long rows = set->rows;
        Py_BEGIN_ALLOW_THREADS
        for (long start = 0; start < d; start += DEPTH)
            for (long row = 0; row < n; row += rows) {
                long depth = least(DEPTH, d - start), some = least(rows, n - row);
                for (long p = 0; p < depth; p++, to += rows) {
                    for (long i = 0; i < some; i++)
                        to[i] = from[(row + i) * d + start + p];
                    memset(to + some, 0, (rows - some) * sizeof(float));
                }
            }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&tokens);
    return result;
}

static PyObject *to_piece(Task *t, PyObject *counts)
{
    PyObject *features = PyByteArray_FromStringAndSize((char *)t->features, t->n_firings * 4);
    PyObject *activations =
        PyByteArray_FromStringAndSize((char *)t->activations, t->n_firings * 4);
    PyObject *piece = NULL;
    if (features && activations)
        piece = PyTuple_Pack(3, counts, features, activations);
    Py_XDECREF(features);
    Py_XDECREF(activations);
    return piece;
}

PyDoc_STRVAR(encode_doc,
             "encode(set, packed, n, d, weights f32[d, width], bias f32[width],\n"
             "       threshold f32[width], width, first, n_features, names i32[n_features] or b'')\n"
             "-> piece of the features [first, first + n_features), or of those named.");

static PyObject *encode(PyObject *self, PyObject *args)
{
    const char *name;
    Py_buffer tokens, weights, bias, threshold, names;
    Py_ssize_t n, d, width, first, n_features;
    if (!PyArg_ParseTuple(args, "sy*nny*y*y*nnny*", &name, &tokens, &n, &d, &weights, &bias,
                          &threshold, &width, &first, &n_features, &names))
        return NULL;
    PyObject *counts = NULL, *piece = NULL;
    const Set *set = find_set(name);
    Py_ssize_t padded = set && n < PY_SSIZE_T_MAX / 8 ? round_up(n, set->rows) : -1;
    int fits = set && has_numbers(&tokens, "packed", padded, d) &&
               has_numbers(&weights, "weights", d, width) &&
               has_numbers(&bias, "bias", width, 1) &&
               has_numbers(&threshold, "threshold", width, 1) &&
               (!names.len || has_numbers(&names, "names", n_features, 1));
    if (fits && (first < 0 || n_features < 0 || first > width - n_features)) {
        PyErr_Format(PyExc_ValueError, "features [%zd, +%zd) of %zd", first, n_features, width);
        fits = 0;
    }
    const int32_t *chosen = names.len ? names.buf : NULL;
    for (Py_ssize_t i = 0; fits && chosen && i < n_features; i++)
        if (chosen[i] < 0 || chosen[i] >= width) {
            PyErr_Format(PyExc_ValueError, "feature %d of %zd", (int)chosen[i], width);
            fits = 0;
        }
    if (fits)
        counts = PyByteArray_FromStringAndSize(NULL, n * (Py_ssize_t)sizeof(int32_t));
    if (counts) {
        Task task = {set, tokens.buf, weights.buf, bias.buf, threshold.buf, chosen, n, d, width,
                     first, n_features, (int32_t *)PyByteArray_AsString(counts)};
        int done;
        Py_BEGIN_ALLOW_THREADS
        done = run(&task);
        Py_END_ALLOW_THREADS
        piece = done ? to_piece(&task, counts) : PyErr_NoMemory();
        free(task.features);
        free(task.activations);
        Py_DECREF(counts);
    }
    Py_buffer *given[] = {&tokens, &weights, &bias, &threshold, &names};
    for (size_t i = 0; i < sizeof(given) / sizeof(given[0]); i++)
        PyBuffer_Release(given[i]);
    return piece;
}

PyDoc_STRVAR(join_doc,
             "join(pieces, n) -> piece: the firings of each token from one piece after the other.");

static PyObject *join(PyObject *self, PyObject *args)
{
    PyObject *pieces;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(args, "O!n", &PyList_Type, &pieces, &n))
        return NULL;
    Py_ssize_t n_pieces = PyList_Size(pieces), total = 0;
    struct Source {
        const int32_t *counts, *features;
        const float *activations;
    } *from = calloc(n_pieces + 1, sizeof(*from));
    if (!from)
        return PyErr_NoMemory();
    PyObject *counts = PyByteArray_FromStringAndSize(NULL, n * (Py_ssize_t)sizeof(int32_t));
    int fits = counts != NULL;
    for (Py_ssize_t i = 0; fits && i < n_pieces; i++) {
        PyObject *c, *f, *a;
        fits = PyArg_ParseTuple(PyList_GetItem(pieces, i), "O!O!O!", &PyByteArray_Type, &c,
                                &PyByteArray_Type, &f, &PyByteArray_Type, &a);
        if (!fits)
            break;
        struct Source source = {(int32_t *)PyByteArray_AsString(c),
                                (int32_t *)PyByteArray_AsString(f),
                                (float *)PyByteArray_AsString(a)};
        from[i] = source;
        Py_ssize_t here = 0;
        for (Py_ssize_t t = 0; PyByteArray_Size(c) == n * 4 && t < n; t++)
            here += source.counts[t];
        if (PyByteArray_Size(c) != n * 4 || PyByteArray_Size(f) != here * 4 ||
            PyByteArray_Size(a) != here * 4) {
            PyErr_SetString(PyExc_ValueError, "a piece is of other tokens, or cut short");
            fits = 0;
        }
        total += here;
    }
    PyObject *features = fits ? PyByteArray_FromStringAndSize(NULL, total * 4) : NULL;
    PyObject *activations = fits ? PyByteArray_FromStringAndSize(NULL, total * 4) : NULL;
    PyObject *piece = NULL;
    if (features && activations) {
        int32_t *c = (int32_t *)PyByteArray_AsString(counts);
        int32_t *f = (int32_t *)PyByteArray_AsString(features);
        float *a = (float *)PyByteArray_AsString(activations);
        for (Py_ssize_t t = 0; t < n; t++) {
            c[t] = 0;
            for (Py_ssize_t i = 0; i < n_pieces; i++) {
                int32_t some = from[i].counts[t];
                memcpy(f, from[i].features, some * sizeof(*f));
                memcpy(a, from[i].activations, some * sizeof(*a));
                f += some, a += some, c[t] += some;
                from[i].features += some, from[i].activations += some;
            }
        }
        piece = PyTuple_Pack(3, counts, features, activations);
    }
    Py_XDECREF(counts);
    Py_XDECREF(features);
    Py_XDECREF(activations);
    free(from);
    return piece;
}

static PyMethodDef METHODS[] = {
    {"sets", sets, METH_NOARGS, sets_doc},
    {"pack", pack, METH_VARARGS, pack_doc},
    {"encode", encode, METH_VARARGS, encode_doc},
    {"join", join, METH_VARARGS, join_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_native", "Encoding on CPUs, compiled.", 0, METHODS,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&MODULE); }
