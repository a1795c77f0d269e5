/* The transforms of transforms.py and the streams of streams.py, compiled: one pass over memory in place of thirty.

   Every value takes the same +, -, *, /, sqrt and integer operations in the same order as there, so it is the same
   to the bit. That is why this file must be compiled without fused multiply-adds (-ffp-contract=off) and without
   -ffast-math. kernels.py compares before it trusts. What the formulas mean is said in transforms.py. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__GLIBC__) && defined(__x86_64__) && (!defined(__clang__) || __clang_major__ >= 14)
/* Compiled for three widths of vectors; the widest that the processor has is taken when the module is loaded. */
#define VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORS
#endif

#define SIGN 0x80000000u
#define UNIT (2 * 0.69314718055994530942 * 0x1p-23)
#define LOG_K 21.865291409044612
#define COUNT(coefficients) (sizeof(coefficients) / sizeof((coefficients)[0]))

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float from_int(uint32_t word) { return (float)(int32_t)word; }

static inline float polynomial(float x, const float *coefficients, size_t count) {
    float value = coefficients[0];
    for (size_t i = 1; i < count; i++)
        value = value * x + coefficients[i];
    return value;
}

/* -2 ln(x / y) / UNIT, from the bits of y * sqrt(1/2), y and 2 LOG_K y. */
static inline float logarithm(float x, uint32_t root_half, float y, float two_k_y) {
    uint32_t bits = as_bits(x);
    uint32_t exponent = (bits - root_half) & 0xFF800000u;
    float s = two_k_y / (as_float(bits - exponent) + y) + (float)-LOG_K;
    float square = s * s + (float)385.8187036572521;
    square = square * square + (float)958122.5061065344;
    return s * square - from_int(exponent);
}

VECTORS static void normal_row(const uint32_t *restrict bits, float *restrict out, Py_ssize_t half, float scale) {
    const uint32_t *restrict first = bits, *restrict second = bits + half;
    float *restrict cosines = out, *restrict sines = out + half;
    for (Py_ssize_t i = 0; i < half; i++) {
        float sine = from_int(second[i]) * (float)(-0.2435582052936112 * 0x1p-31);
        float square = sine * sine;
        float spare = square + (float)-1.5964147587233588;
        spare = (spare * spare + (float)2.430949226065124) * (square + (float)-0.9158351511578676);
        sine = sine * spare;
        float radius = logarithm(from_int(first[i] | 0x80000001u), 0x3F3504F3u + (31u << 23) - SIGN,
                                 (float)-0x1p31, (float)(-2 * LOG_K * 0x1p31));
        radius = sqrtf(radius) * scale;
        radius = as_float(as_bits(radius) ^ (first[i] & SIGN));
        spare = sine * sine;
        sines[i] = sine * sqrtf(2.0f - spare) * radius;
        cosines[i] = (1.0f - spare) * radius;
    }
}

VECTORS static void uniform_row(const uint32_t *restrict bits, float *restrict out, Py_ssize_t count, float step,
                                float mid) {
    for (Py_ssize_t i = 0; i < count; i++)
        out[i] = from_int(bits[i]) * step + mid;
}

static const float CENTRE_P[] = {(float)2922.77873, (float)8205.91331, (float)3507.84685, (float)287.546939,
                                 (float)3.30365607};
static const float CENTRE_Q[] = {(float)205.538282, (float)3812.56398, (float)5969.04009,
                                 (float)1808.3624,  (float)113.830213, (float)1.0};
static const float TAIL[] = {(float)-1.4158677e-05,  (float)7.14273676e-05,  (float)-8.17368537e-05,
                             (float)-2.9539976e-04,  (float)1.63557662e-03,  (float)-4.88183391e-03,
                             (float)9.67325227e-03,  (float)1.41798003,      (float)4.00618723};
#define TAIL_START (float)0.0433

static inline float centre(float x, float square) {
    return polynomial(square, CENTRE_P, COUNT(CENTRE_P)) * x / polynomial(square, CENTRE_Q, COUNT(CENTRE_Q));
}

static inline float tail(float square) {
    float r = logarithm(square, 0x3F3504F3u, 1.0f, (float)(2 * LOG_K)) * (float)(UNIT / 2);
    return polynomial(sqrtf(r) - 3.0f, TAIL, COUNT(TAIL));
}

VECTORS static void narrow_row(const uint32_t *restrict bits, float *restrict out, Py_ssize_t count, float step,
                               float scale) {
    for (Py_ssize_t i = 0; i < count; i++) {
        float x = from_int(bits[i] & ~SIGN) * step;
        float value = centre(x, 1.0f - x * x) * scale;
        out[i] = as_float(as_bits(value) ^ (bits[i] & SIGN));
    }
}

VECTORS static void truncated_row(const uint32_t *restrict bits, float *restrict out, Py_ssize_t count, float step,
                                  float start, float scale, int tails) {
    for (Py_ssize_t i = 0; i < count; i++) {
        float x = from_int(bits[i] & ~SIGN) * step + start;
        float square = (2.0f - x) * x;
        float value = centre(1.0f - x, square);
        if (tails)
            value = square < TAIL_START ? tail(square) : value;
        value = value * scale;
        out[i] = as_float(as_bits(value) ^ (bits[i] & SIGN));
    }
}

/* SFC64 (Doty-Humphrey), its counter at 1. Neither array needs to be aligned. */
static void stream(const char *start, char *words, Py_ssize_t count) {
    uint64_t state[3];
    memcpy(state, start, sizeof state);
    uint64_t a = state[0], b = state[1], c = state[2];
    for (Py_ssize_t i = 0; i < count; i++) {
        uint64_t word = a + b + (uint64_t)(i + 1);
        a = b ^ (b >> 11);
        b = c + (c << 3);
        c = ((c << 24) | (c >> 40)) + word;
        memcpy(words + 8 * i, &word, sizeof word);
    }
}

/* What Python calls. */

typedef struct {
    Py_buffer bits, out;
    Py_ssize_t rows, count;
} Pair;

static void let_go(Pair *pair) {
    PyBuffer_Release(&pair->bits);
    PyBuffer_Release(&pair->out);
}

/* Words and values: contiguous, four bytes each, of one shape with one or two dimensions. */
static int take(Pair *pair, PyObject *bits, PyObject *out) {
    if (PyObject_GetBuffer(bits, &pair->bits, PyBUF_C_CONTIGUOUS) < 0)
        return 0;
    if (PyObject_GetBuffer(out, &pair->out, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&pair->bits);
        return 0;
    }
    int ndim = pair->out.ndim;
    int same = pair->bits.ndim == ndim && (ndim == 1 || ndim == 2) && pair->bits.itemsize == 4 &&
               pair->out.itemsize == 4 && !memcmp(pair->bits.shape, pair->out.shape, (size_t)ndim * sizeof(Py_ssize_t));
    if (!same) {
        PyErr_SetString(PyExc_ValueError, "bits and out must be int32 and float32 arrays of one shape, (n,) or (rows, n)");
        let_go(pair);
        return 0;
    }
    pair->rows = ndim == 2 ? pair->out.shape[0] : 1;
    pair->count = pair->out.shape[ndim - 1];
    return 1;
}

static PyObject *normal(PyObject *self, PyObject *args) {
    PyObject *bits, *out;
    double std;
    Pair pair;
    if (!PyArg_ParseTuple(args, "OOd", &bits, &out, &std) || !take(&pair, bits, out))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    float scale = (float)(sqrt(UNIT) * std);
    for (Py_ssize_t row = 0; row < pair.rows; row++)
        normal_row((uint32_t *)pair.bits.buf + row * pair.count, (float *)pair.out.buf + row * pair.count,
                   pair.count / 2, scale);
    Py_END_ALLOW_THREADS
    let_go(&pair);
    Py_RETURN_NONE;
}

static PyObject *uniform(PyObject *self, PyObject *args) {
    PyObject *bits, *out;
    double low, high;
    Pair pair;
    if (!PyArg_ParseTuple(args, "OOdd", &bits, &out, &low, &high) || !take(&pair, bits, out))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    double mid = (high + low) / 2;
    uniform_row(pair.bits.buf, pair.out.buf, pair.rows * pair.count, (float)((high - low) * 0x1p-32),
                mid == 0.0 ? -0.0f : (float)mid); /* x + -0 is x, also where x is -0 */
    Py_END_ALLOW_THREADS
    let_go(&pair);
    Py_RETURN_NONE;
}

static PyObject *truncated(PyObject *self, PyObject *args) {
    PyObject *bits, *out;
    double scale, edge, beyond;
    Pair pair;
    if (!PyArg_ParseTuple(args, "OOddd", &bits, &out, &scale, &edge, &beyond) || !take(&pair, bits, out))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    float step = (float)(edge * 0x1p-31);
    if (edge < 0.5)
        narrow_row(pair.bits.buf, pair.out.buf, pair.rows * pair.count, step, (float)scale);
    else
        truncated_row(pair.bits.buf, pair.out.buf, pair.rows * pair.count, step,
                      (float)(beyond + edge * 0x1p-32), (float)scale,
                      beyond * (2.0 - beyond) < (double)TAIL_START);
    Py_END_ALLOW_THREADS
    let_go(&pair);
    Py_RETURN_NONE;
}

static PyObject *streams(PyObject *self, PyObject *args) {
    Py_buffer states, words;
    if (!PyArg_ParseTuple(args, "y*w*", &states, &words))
        return NULL;
    Py_ssize_t rows = states.len / 24, count = rows ? words.len / 8 / rows : 0;
    if (states.len != rows * 24 || words.len != rows * count * 8) {
        PyErr_SetString(PyExc_ValueError, "states must have 24 bytes for each stream, and words an even number for each");
    } else {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t row = 0; row < rows; row++)
            stream((const char *)states.buf + 24 * row, (char *)words.buf + 8 * count * row, count);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&states);
    PyBuffer_Release(&words);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"normal", normal, METH_VARARGS, "normal(bits, out, std)"},
    {"uniform", uniform, METH_VARARGS, "uniform(bits, out, low, high)"},
    {"truncated", truncated, METH_VARARGS, "truncated(bits, out, scale, edge, beyond)"},
    {"streams", streams, METH_VARARGS, "streams(states, words): 24 bytes of state for each stream"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", "Compiled transforms and streams.", 0, methods};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&module); }
