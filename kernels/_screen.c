/* The two passes of screened encoding that torch has no operator for.

   candidates: which products of 8-bit numbers may, for all that rounding to 8 bits took away, be
   above their threshold. score: the pre-activations of those, in float32, summed in the very order
   of `_native.c`. Arrays are C-contiguous; both leave the interpreter lock. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH = 256, LANES = 16, PAIRS = 8 };

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EVERY_SET __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_SET
#endif

/* Of a feature: what a unit of the product is worth, what is lacking to its threshold without any
   input, and by how much a token's two norms may raise its pre-activation. */
typedef struct {
    const float *unit, *lack, *by_rest, *by_size;
} Features;

EVERY_SET static long find(const int32_t *product, Features f, long width, float unit, float rest,
                           float size, int32_t first, int32_t *out)
{
    long n = 0;
    for (long start = 0; start < width; start += LANES) {
        long stop = start + LANES < width ? start + LANES : width;
        int any = 0;
        for (long j = start; j < stop; j++)
            any |= unit * f.unit[j] * (float)product[j] + rest * f.by_rest[j] +
                       size * f.by_size[j] >=
                   f.lack[j];
        if (!any)
            continue;
        for (long j = start; j < stop; j++) {
            out[n] = first + (int32_t)j;
            n += unit * f.unit[j] * (float)product[j] + rest * f.by_rest[j] +
                     size * f.by_size[j] >=
                 f.lack[j];
        }
    }
    return n;
}

/* Score up to PAIRS features of a token: as many chains of additions side by side. */
EVERY_SET static void score_some(const float *x, const float *const *rows, long d, float *out)
{
    float total[PAIRS];
    for (long start = 0; start < d; start += DEPTH) {
        long stop = start + DEPTH < d ? start + DEPTH : d;
        float part[PAIRS] = {0};
        for (long p = start; p < stop; p++)
            for (int j = 0; j < PAIRS; j++)
                part[j] = __builtin_fmaf(x[p], rows[j][p], part[j]);
        for (int j = 0; j < PAIRS; j++)
            total[j] = start ? total[j] + part[j] : part[j];
    }
    memcpy(out, total, sizeof(total));
}

static int has_numbers(const Py_buffer *buffer, const char *what, Py_ssize_t n, Py_ssize_t m)
{
    if (n >= 0 && m >= 0 && (m == 0 || n <= PY_SSIZE_T_MAX / 4 / m) && buffer->len == n * m * 4)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: %zd bytes were given, %zd x %zd x 4 expected", what,
                 buffer->len, n, m);
    return 0;
}

/* A list of numbers that grows. */
typedef struct {
    char *bytes;
    Py_ssize_t n, room;
} List;

/* Return the place behind the last of `n` numbers of 4 bytes more; NULL if there is no memory. */
static void *reserve(List *list, Py_ssize_t n)
{
    if (list->n + n >= list->room) { /* never 0 bytes: that may be NULL */
        Py_ssize_t room = list->room + list->room / 2 + n + 1;
        char *bytes = realloc(list->bytes, (size_t)room * 4);
        if (!bytes)
            return NULL;
        list->bytes = bytes;
        list->room = room;
    }
    return list->bytes + list->n * 4;
}

PyDoc_STRVAR(candidates_doc,
             "candidates(product i32[n, width], n, width, tokens f32[3, n], features f32[4, width],\n"
             "           first) -> (counts i32[n], features i32)\n"
             "Tokens have a unit, the norm of what rounding took and that of what it left; features\n"
             "a unit, what is lacking to the threshold, and what each of the norms may add.");

static PyObject *candidates(PyObject *self, PyObject *args)
{
    Py_buffer product, tokens, features;
    Py_ssize_t n, width;
    int first;
    if (!PyArg_ParseTuple(args, "y*nny*y*i", &product, &n, &width, &tokens, &features, &first))
        return NULL;
    PyObject *counts = NULL, *names = NULL, *result = NULL;
    List found = {0};
    if (has_numbers(&product, "product", n, width) && has_numbers(&tokens, "tokens", n, 3) &&
        has_numbers(&features, "features", width, 4))
        counts = PyByteArray_FromStringAndSize(NULL, n * 4);
    if (counts) {
        int32_t *count = (int32_t *)PyByteArray_AsString(counts);
        const float *t = tokens.buf, *f = features.buf;
        Features of = {f, f + width, f + 2 * width, f + 3 * width};
        int done = 1;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < n; i++) {
            int32_t *out = reserve(&found, width);
            if (!out) {
                done = 0;
                break;
            }
            count[i] = (int32_t)find((const int32_t *)product.buf + i * width, of, width, t[i],
                                     t[n + i], t[2 * n + i], first, out);
            found.n += count[i];
        }
        Py_END_ALLOW_THREADS
        if (done)
            names = PyByteArray_FromStringAndSize(found.bytes ? found.bytes : "", found.n * 4);
        else
            PyErr_NoMemory();
    }
    if (names)
        result = PyTuple_Pack(2, counts, names);
    free(found.bytes);
    Py_XDECREF(counts);
    Py_XDECREF(names);
    PyBuffer_Release(&product);
    PyBuffer_Release(&tokens);
    PyBuffer_Release(&features);
    return result;
}

/* What is scored: x[n][d] with rows[width][d]. */
typedef struct {
    const float *x, *rows, *bias, *threshold;
    Py_ssize_t n, d;
    const int32_t *counts, *features;
} Pairs;

/* Score all pairs and append those that fire; 0 if there is no memory. */
static int score_all(const Pairs *pairs, int32_t *counts, List *features, List *activations)
{
    const int32_t *feature = pairs->features;
    for (Py_ssize_t i = 0; i < pairs->n; i++) {
        int32_t n = pairs->counts[i];
        int32_t *names = reserve(features, n);
        float *values = reserve(activations, n);
        if (!names || !values)
            return 0;
        int32_t fired = 0;
        for (int32_t start = 0; start < n; start += PAIRS) {
            int some = n - start < PAIRS ? n - start : PAIRS;
            const float *rows[PAIRS];
            float pre[PAIRS];
            for (int j = 0; j < PAIRS; j++)
                rows[j] = pairs->rows + (Py_ssize_t)feature[start + (j < some ? j : 0)] * pairs->d;
            score_some(pairs->x + i * pairs->d, rows, pairs->d, pre);
            for (int j = 0; j < some; j++) {
                int32_t name = feature[start + j];
                names[fired] = name;
                values[fired] = pre[j] + pairs->bias[name];
                fired += values[fired] > pairs->threshold[name];
            }
        }
        counts[i] = fired;
        features->n += fired;
        activations->n += fired;
        feature += n;
    }
    return 1;
}

PyDoc_STRVAR(score_doc,
             "score(x f32[n, d], n, d, rows f32[width, d], bias f32[width], threshold f32[width],\n"
             "      width, counts i32[n], features i32) -> piece, as of _native, of what fires.");

static PyObject *score(PyObject *self, PyObject *args)
{
    Py_buffer x, rows, bias, threshold, counts, features;
    Py_ssize_t n, d, width;
    if (!PyArg_ParseTuple(args, "y*nny*y*y*ny*y*", &x, &n, &d, &rows, &bias, &threshold, &width,
                          &counts, &features))
        return NULL;
    int fits = has_numbers(&x, "x", n, d) && has_numbers(&rows, "rows", width, d) &&
               has_numbers(&bias, "bias", width, 1) &&
               has_numbers(&threshold, "threshold", width, 1) && has_numbers(&counts, "counts", n, 1);
    Py_ssize_t total = 0;
    for (Py_ssize_t i = 0; fits && i < n; i++)
        total += ((const int32_t *)counts.buf)[i];
    fits = fits && has_numbers(&features, "features", total, 1);
    for (Py_ssize_t i = 0; fits && i < total; i++) {
        int32_t name = ((const int32_t *)features.buf)[i];
        if (name < 0 || name >= width) {
            PyErr_Format(PyExc_ValueError, "feature %d of %zd", (int)name, width);
            fits = 0;
        }
    }
    PyObject *fired = fits ? PyByteArray_FromStringAndSize(NULL, n * 4) : NULL;
    PyObject *names = NULL, *values = NULL, *piece = NULL;
    List found = {0}, activations = {0};
    if (fired) {
        Pairs pairs = {x.buf, rows.buf, bias.buf, threshold.buf, n, d, counts.buf, features.buf};
        int done;
        Py_BEGIN_ALLOW_THREADS
        done = score_all(&pairs, (int32_t *)PyByteArray_AsString(fired), &found, &activations);
        Py_END_ALLOW_THREADS
        if (done) {
            names = PyByteArray_FromStringAndSize(found.bytes ? found.bytes : "", found.n * 4);
            values = PyByteArray_FromStringAndSize(activations.bytes ? activations.bytes : "",
                                                   activations.n * 4);
        } else {
            PyErr_NoMemory();
        }
    }
    if (names && values)
        piece = PyTuple_Pack(3, fired, names, values);
    free(found.bytes);
    free(activations.bytes);
    Py_XDECREF(fired);
    Py_XDECREF(names);
    Py_XDECREF(values);
    PyBuffer_Release(&x);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&bias);
    PyBuffer_Release(&threshold);
    PyBuffer_Release(&counts);
    PyBuffer_Release(&features);
    return piece;
}

static PyMethodDef METHODS[] = {
    {"candidates", candidates, METH_VARARGS, candidates_doc},
    {"score", score, METH_VARARGS, score_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_screen", "Screened encoding, compiled.", 0, METHODS,
};

PyMODINIT_FUNC PyInit__screen(void) { return PyModule_Create(&MODULE); }
