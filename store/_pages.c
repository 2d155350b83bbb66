/* Columns of integers and floats as the bytes of Parquet's pages, compiled.
 *
 * Encodings are those of the Parquet format's specification (Encodings.md): DELTA_BINARY_PACKED,
 * the hybrid of runs and bit-packed groups, BYTE_STREAM_SPLIT. Bytes are little-endian, as this
 * machine has to be. Values come as buffers, results are bytes.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "pages are written as this machine holds numbers, which has to be little-endian"
#endif

enum { BLOCK = 128, MINI = 32, MINIS = BLOCK / MINI, GROUP = 8, MOST_GROUPS = 63 };

static int bits_of(uint64_t value) { return value ? 64 - __builtin_clzll(value) : 0; }

static uint8_t *varint(uint8_t *to, uint64_t value)
{
    for (; value > 127; value >>= 7)
        *to++ = (uint8_t)(value | 128);
    *to++ = (uint8_t)value;
    return to;
}

static uint8_t *zigzag(uint8_t *to, int64_t value)
{
    return varint(to, ((uint64_t)value << 1) ^ (uint64_t)(value >> 63));
}

/* Pack values of `bits` bits each, lowest first; their number times `bits` is of whole bytes. */
static uint8_t *pack(uint8_t *to, const uint64_t *values, int n, int bits)
{
    uint64_t held = 0;
    int filled = 0;
    for (int i = 0; i < n; i++) {
        held |= values[i] << filled;
        filled += bits;
        if (filled >= 64) {
            memcpy(to, &held, 8);
            to += 8, filled -= 64;
            held = filled ? values[i] >> (bits - filled) : 0;
        }
    }
    for (; filled > 0; filled -= 8, held >>= 8)
        *to++ = (uint8_t)held;
    return to;
}

static int64_t value_at(const void *values, int size, Py_ssize_t i)
{
    if (size == 8)
        return ((const int64_t *)values)[i];
    return size == 4 ? ((const int32_t *)values)[i] : ((const int8_t *)values)[i];
}

/* Differences are taken modulo 2^64, or 2^32 where the column is of 32 bits, as the specification
 * says. */
static uint8_t *delta_block(uint8_t *to, const int64_t *values, int64_t before, int n, int narrow)
{
    uint64_t difference[BLOCK];
    int64_t least = INT64_MAX;
    for (int i = 0; i < n; i++) {
        difference[i] = (uint64_t)values[i] - (uint64_t)(i ? values[i - 1] : before);
        if (narrow)
            difference[i] = (uint64_t)(int64_t)(int32_t)difference[i];
        if ((int64_t)difference[i] < least)
            least = (int64_t)difference[i];
    }
    to = zigzag(to, least);
    uint8_t *widths = to;
    to += MINIS;
    for (int mini = 0; mini < MINIS; mini++) {
        uint64_t *of = difference + mini * MINI, all = 0;
        const int held = n - mini * MINI < MINI ? n - mini * MINI : MINI;
        for (int i = 0; i < held; i++)
            all |= of[i] -= (uint64_t)least;
        for (int i = held < 0 ? 0 : held; i < MINI; i++)
            of[i] = 0;
        widths[mini] = (uint8_t)bits_of(all);
        if (all)
            to = pack(to, of, MINI, widths[mini]);
    }
    return to;
}

static inline __attribute__((always_inline)) uint8_t *
delta_all(uint8_t *to, const void *values, const int size, Py_ssize_t n)
{
    int64_t block[BLOCK], before = n ? value_at(values, size, 0) : 0;
    to = varint(to, BLOCK);
    to = varint(to, MINIS);
    to = varint(to, (uint64_t)n);
    to = zigzag(to, before);
    for (Py_ssize_t at = 1; at < n; at += BLOCK) {
        const int held = n - at < BLOCK ? (int)(n - at) : BLOCK;
        for (int i = 0; i < held; i++)
            block[i] = value_at(values, size, at + i);
        to = delta_block(to, block, before, held, size < 8);
        before = block[held - 1];
    }
    return to;
}

PyDoc_STRVAR(delta_doc, "delta(values, size) -> page: integers of 1, 4 or 8 bytes, as "
                        "DELTA_BINARY_PACKED.");

static PyObject *delta(PyObject *self, PyObject *args)
{
    Py_buffer b;
    int size;
    if (!PyArg_ParseTuple(args, "y*i", &b, &size))
        return NULL;
    PyObject *made = NULL;
    if ((size != 1 && size != 4 && size != 8) || b.len % size) {
        PyErr_SetString(PyExc_ValueError, "these are not integers of 1, 4 or 8 bytes");
        goto done;
    }
    const Py_ssize_t n = b.len / size;
    made = PyByteArray_FromStringAndSize(NULL, 64 + (n / BLOCK + 1) * (16 + 8 * BLOCK));
    if (!made)
        goto done;
    uint8_t *start = (uint8_t *)PyByteArray_AsString(made), *end;
    Py_BEGIN_ALLOW_THREADS
    end = size == 8   ? delta_all(start, b.buf, 8, n)
          : size == 4 ? delta_all(start, b.buf, 4, n)
                      : delta_all(start, b.buf, 1, n);
    Py_END_ALLOW_THREADS
    if (PyByteArray_Resize(made, end - start) < 0)
        Py_CLEAR(made);
done:
    PyBuffer_Release(&b);
    return made;
}

static uint8_t *pack_groups(uint8_t *to, const uint32_t *values, Py_ssize_t n, int bits)
{
    for (Py_ssize_t i = 0; i < n; i += GROUP) {
        uint64_t group[GROUP] = {0};
        for (int j = 0; j < GROUP && i + j < n; j++)
            group[j] = values[i + j];
        to = pack(to, group, GROUP, bits);
    }
    return to;
}

/* Whether eight of one value begin here. */
static int repeats(const uint32_t *v, Py_ssize_t left)
{
    if (left < GROUP || v[0] != v[GROUP - 1])
        return 0;
    uint32_t other = 0;
    for (int i = 1; i < GROUP; i++)
        other |= v[i] ^ v[0];
    return !other;
}

/* Runs of one value, and between them groups of eight, at most 63 under one header of a byte. */
static uint8_t *hybrid(uint8_t *to, const uint32_t *v, Py_ssize_t n, int bits)
{
    for (Py_ssize_t i = 0; i < n;) {
        Py_ssize_t end = i;
        if (repeats(v + i, n - i)) {
            while (end < n && v[end] == v[i])
                end++;
            to = varint(to, (uint64_t)(end - i) << 1);
            memcpy(to, v + i, 4);
            to += (bits + 7) / 8;
        } else {
            int groups = 0;
            while (end < n && groups < MOST_GROUPS && !repeats(v + end, n - end))
                end += GROUP, groups++;
            end = end < n ? end : n;
            *to++ = (uint8_t)(groups << 1 | 1);
            to = pack_groups(to, v + i, end - i, bits);
        }
        i = end;
    }
    return to;
}

/* Number the values that occur, in their order, in `number` [span], and each value by it; return how
 * many occur, 0 if one is beyond the bounds. Inlined, so that the size is a constant. */
static inline __attribute__((always_inline)) uint32_t
numbered(const void *values, const int size, Py_ssize_t n, int64_t low, int64_t span,
         uint32_t *number, uint32_t *index)
{
    uint32_t count = 0;
    int outside = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        const int64_t value = value_at(values, size, i) - low;
        outside |= value < 0 || value >= span;
        index[i] = (uint32_t)value;
    }
    if (outside)
        return 0;
    for (Py_ssize_t i = 0; i < n; i++)
        number[index[i]] = 1;
    for (int64_t i = 0; i < span; i++)
        number[i] = number[i] ? count++ : UINT32_MAX;
    if (count < span)
        for (Py_ssize_t i = 0; i < n; i++)
            index[i] = number[index[i]];
    return count;
}

PyDoc_STRVAR(dictionary_doc,
             "dictionary(values, size, low, high) -> (values i32, page): integers of 1 or 4 bytes, "
             "all of low..high, as those that occur, ascending, and the page of their numbers.");

static PyObject *dictionary(PyObject *self, PyObject *args)
{
    Py_buffer b;
    int size;
    long long low, high;
    if (!PyArg_ParseTuple(args, "y*iLL", &b, &size, &low, &high))
        return NULL;
    PyObject *values = NULL, *page = NULL, *found = NULL;
    const int64_t span = high - low + 1;
    const Py_ssize_t n = size > 0 ? b.len / size : 0;
    uint32_t *number = NULL, *index = NULL;
    if ((size != 1 && size != 4) || b.len % size || span < 1 || span > INT32_MAX || !n) {
        PyErr_SetString(PyExc_ValueError, "these are not integers of 1 or 4 bytes between bounds");
        goto done;
    }
    number = calloc((size_t)span, sizeof *number);
    index = malloc((size_t)n * sizeof *index);
    if (!number || !index) {
        PyErr_NoMemory();
        goto done;
    }
    uint32_t count;
    Py_BEGIN_ALLOW_THREADS
    count = size == 4 ? numbered(b.buf, 4, n, low, span, number, index)
                      : numbered(b.buf, 1, n, low, span, number, index);
    Py_END_ALLOW_THREADS
    if (!count) {
        PyErr_SetString(PyExc_ValueError, "a value is beyond the bounds");
        goto done;
    }
    /* A width of 0 is not read by all, and no width makes a group longer than its values. */
    const int bits = count > 1 ? bits_of(count - 1) : 1;
    values = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)count * 4);
    page = PyByteArray_FromStringAndSize(NULL, 64 + 6 * (n + GROUP));
    if (!values || !page)
        goto done;
    int32_t *of = (int32_t *)PyByteArray_AsString(values);
    uint8_t *start = (uint8_t *)PyByteArray_AsString(page), *end = start;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t i = 0; i < span; i++)
        if (number[i] != UINT32_MAX)
            of[number[i]] = (int32_t)(low + i);
    *end++ = (uint8_t)bits;
    end = hybrid(end, index, n, bits);
    Py_END_ALLOW_THREADS
    if (PyByteArray_Resize(page, end - start) == 0)
        found = PyTuple_Pack(2, values, page);
done:
    Py_XDECREF(values);
    Py_XDECREF(page);
    free(number);
    free(index);
    PyBuffer_Release(&b);
    return found;
}

PyDoc_STRVAR(split_doc, "split(values) -> page: floats of 4 bytes, as BYTE_STREAM_SPLIT.");

static PyObject *split(PyObject *self, PyObject *args)
{
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "y*", &b))
        return NULL;
    PyObject *made = NULL;
    if (b.len % 4) {
        PyErr_SetString(PyExc_ValueError, "these are not floats of 4 bytes");
        goto done;
    }
    made = PyByteArray_FromStringAndSize(NULL, b.len);
    if (!made)
        goto done;
    const Py_ssize_t n = b.len / 4;
    const uint32_t *value = b.buf;
    uint8_t *to = (uint8_t *)PyByteArray_AsString(made);
    Py_BEGIN_ALLOW_THREADS
    for (int byte = 0; byte < 4; byte++)
        for (Py_ssize_t i = 0; i < n; i++)
            *to++ = (uint8_t)(value[i] >> 8 * byte);
    Py_END_ALLOW_THREADS
done:
    PyBuffer_Release(&b);
    return made;
}

static PyMethodDef METHODS[] = {
    {"delta", delta, METH_VARARGS, delta_doc},
    {"dictionary", dictionary, METH_VARARGS, dictionary_doc},
    {"split", split, METH_VARARGS, split_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_pages", "Columns as the bytes of Parquet's pages, compiled.", 0,
    METHODS,
};

PyMODINIT_FUNC PyInit__pages(void) { return PyModule_Create(&MODULE); }
