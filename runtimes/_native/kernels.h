/* The arithmetic, written once over lanes (I16, F16, W64) and compiled for each kind of CPU.

   Loops without lanes are left to the compiler, which may reorder sums only where `omp simd` says. */
#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* Unlike fmaxf, whose rule for NaN has no instruction, this vectorises. */
INLINE float larger(float a, float b) { return b > a ? b : a; }

INLINE int32_t four(const int8_t *from) {
    int32_t x;
    memcpy(&x, from, 4);
    return x;
}

/* 16 * blocks rows of `tokens` inputs at 4 or 8 bit; both counts are constants where it is used. */
INLINE void tile(const Matrix *m, const Input *in, int token, int tokens, int block, int blocks,
                 int bits, int by_row, float *y, size_t stride) {
    const int groups = m->k / GROUP, line = 64 * bits / 8, lines = GROUP / 4;
    const int32_t offset = bits == 8 ? OFFSET8 : 8;
    const size_t group_bytes = (size_t)lines * line;
    F16 total[8];
    UNROLL for (int i = 0; i < tokens * blocks; i++) total[i] = f16_zero();
    for (int g = 0; g < groups; g++) {
        I16 sum[8];
        const int8_t *x = in->q + (size_t)token * m->k + (size_t)g * GROUP;
        const uint8_t *w = m->weights + ((size_t)block * groups + g) * group_bytes;
        UNROLL for (int t = 0; t < tokens; t++)
            UNROLL for (int b = 0; b < blocks; b++)
                sum[t * blocks + b] = i16_set(-offset * in->sum[(size_t)(token + t) * groups + g]);
        for (int k = 0; k < lines * bits / 8; k++)
            UNROLL for (int b = 0; b < blocks; b++) {
                const uint8_t *at = w + (size_t)b * groups * group_bytes + (size_t)k * 64;
                if (bits == 8) {
                    W64 both = w64_load8(at);
                    UNROLL for (int t = 0; t < tokens; t++)
                        sum[t * blocks + b] =
                            i16_dot(sum[t * blocks + b], both, four(x + (size_t)t * m->k + 4 * k));
                } else {
                    W64 both = w64_load(at), low = w64_low(both), high = w64_high(both);
                    UNROLL for (int t = 0; t < tokens; t++) {
                        const int8_t *eight = x + (size_t)t * m->k + 8 * k;
                        I16 part = i16_dot(sum[t * blocks + b], low, four(eight));
                        sum[t * blocks + b] = i16_dot(part, high, four(eight + 4));
                    }
                }
            }
        UNROLL for (int b = 0; b < blocks; b++) {
            F16 scale = by_row ? f16_zero()
                               : f16_half(m->scales + ((size_t)(block + b) * groups + g) * ROWS);
            UNROLL for (int t = 0; t < tokens; t++) {
                const F16 now = total[t * blocks + b];
                const float x = in->scale[(size_t)(token + t) * groups + g];
                total[t * blocks + b] = by_row ? f16_dots(now, sum[t * blocks + b], x)
                                               : f16_scaled(now, sum[t * blocks + b], scale, x);
            }
        }
    }
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int b = 0; b < blocks; b++) {
            F16 out = total[t * blocks + b];
            if (by_row) out = f16_times(out, f16_half(m->scales + (size_t)(block + b) * ROWS));
            if (m->bias) out = f16_add(out, f16_load(m->bias + (size_t)(block + b) * ROWS));
            f16_store(y + (size_t)(token + t) * stride + (size_t)(block + b) * ROWS, out);
        }
}

INLINE void exact_tile(const Matrix *m, const Input *in, int token, int tokens, int block, float *y,
                       size_t stride) {
    const float *w = (const float *)m->weights + (size_t)block * m->k * ROWS;
    F16 total[4];
    UNROLL for (int t = 0; t < tokens; t++) total[t] = f16_zero();
    for (int k = 0; k < m->k; k++) {
        F16 line = f16_load(w + (size_t)k * ROWS);
        UNROLL for (int t = 0; t < tokens; t++)
            total[t] = f16_fma(total[t], line, in->exact[(size_t)(token + t) * m->k + k]);
    }
    UNROLL for (int t = 0; t < tokens; t++) {
        if (m->bias) total[t] = f16_add(total[t], f16_load(m->bias + (size_t)block * ROWS));
        f16_store(y + (size_t)(token + t) * stride + (size_t)block * ROWS, total[t]);
    }
}

/* All tokens over the blocks of rows [block, end), in tiles whose sums fit the registers. */
INLINE void rows_of(const Matrix *m, const Input *in, int tokens, int block, int end, int bits,
                    int by_row, float *y, size_t stride) {
    const int quads = tokens / 4 * 4;
    int token = quads;
    for (int b = block; quads && b < end; b += 2)
        for (int t = 0; t < quads; t += 4)
            if (b + 2 <= end) tile(m, in, t, 4, b, 2, bits, by_row, y, stride);
            else tile(m, in, t, 4, b, 1, bits, by_row, y, stride);
    for (; token < tokens; token++) {
        int b = block;
        for (; b + 4 <= end; b += 4) tile(m, in, token, 1, b, 4, bits, by_row, y, stride);
        for (; b < end; b++) tile(m, in, token, 1, b, 1, bits, by_row, y, stride);
    }
}

static void project(const Matrix *m, const Input *in, int tokens, int block, int end, float *y,
                    size_t stride) {
    if (m->bits == 8 && m->by_row) rows_of(m, in, tokens, block, end, 8, 1, y, stride);
    if (m->bits == 8 && !m->by_row) rows_of(m, in, tokens, block, end, 8, 0, y, stride);
    if (m->bits == 4 && m->by_row) rows_of(m, in, tokens, block, end, 4, 1, y, stride);
    if (m->bits == 4 && !m->by_row) rows_of(m, in, tokens, block, end, 4, 0, y, stride);
    if (m->bits != 32) return;
    for (int b = block; b < end; b++) {
        int token = 0;
        for (; token + 4 <= tokens; token += 4) exact_tile(m, in, token, 4, b, y, stride);
        for (; token < tokens; token++) exact_tile(m, in, token, 1, b, y, stride);
    }
}

/* q = round(x / scale) in -127..127, scale = largest of the group / 127. */
static void quantize(const float *x, int tokens, int k, Input *in) {
    for (int g = 0; g < tokens * (k / GROUP); g++) {
        const F16 low = f16_load(x + (size_t)g * GROUP), high = f16_load(x + (size_t)g * GROUP + 16);
        const float most = f16_most(low, high), inverse = most > 0 ? 127.0f / most : 0;
        const I16 first = i16_round(low, inverse), second = i16_round(high, inverse);
        in->scale[g] = most * (1.0f / 127.0f);
        in->sum[g] = i16_total(first, second);
        i16_bytes(first, in->q + (size_t)g * GROUP);
        i16_bytes(second, in->q + (size_t)g * GROUP + 16);
    }
}

static void normalise(const float *x, const Norm *norm, int tokens, int width, float epsilon,
                      float *y) {
    for (int t = 0; t < tokens; t++, x += width, y += width) {
        float mean = 0, square = 0;
        if (norm->bias) {
#pragma omp simd reduction(+ : mean)
            for (int i = 0; i < width; i++) mean += x[i];
            mean /= (float)width;
        }
#pragma omp simd reduction(+ : square)
        for (int i = 0; i < width; i++) square += (x[i] - mean) * (x[i] - mean);
        const float factor = 1.0f / sqrtf(square / (float)width + epsilon);
        if (norm->bias)
            for (int i = 0; i < width; i++) y[i] = (x[i] - mean) * factor * norm->weight[i] + norm->bias[i];
        else
            for (int i = 0; i < width; i++) y[i] = x[i] * factor * norm->weight[i];
    }
}

/* e^x by 2^whole * polynomial, to 2 ulp or so, in a form that compilers vectorise.
   Source: Cephes, expf. */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float whole = rintf(x * 1.44269504f);
    const float f = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    const int32_t bits = ((int32_t)whole + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

#include "attention.h"

/* One head for a cache at 8 bit: x = q * scale, the largest one 127. */
static void round8(const float *x, int head_dim, int8_t *q, float *scale) {
    float most = 0;
#pragma omp simd reduction(max : most)
    for (int i = 0; i < head_dim; i++) most = larger(most, fabsf(x[i]));
    const float inverse = most > 0 ? 127.0f / most : 0;
#pragma omp simd
    for (int i = 0; i < head_dim; i++) q[i] = (int8_t)(int32_t)rintf(x[i] * inverse);
    *scale = most / 127.0f;
}

/* gate = silu(gate) * up */
static void gated(float *gate, const float *up, int count) {
#pragma omp simd
    for (int i = 0; i < count; i++) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

/* GELU by its tanh formula; tanh(z) = 1 - 2 / (1 + e^2z). */
static void gelu(float *x, int count) {
#pragma omp simd
    for (int i = 0; i < count; i++) {
        const float z = 0.7978845608f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
        x[i] = x[i] * (1.0f - 1.0f / (1.0f + exponential(2.0f * z)));
    }
}

enum { STRETCH = 64 }; /* numbers that are looked at together */

/* The first of the largest. Twice through x: unlike one loop that keeps the place, both vectorise. */
static float largest(const float *x, int count, int *where) {
    float most = -INFINITY, poison = 0;
#pragma omp simd reduction(max : most) reduction(+ : poison)
    for (int i = 0; i < count; i++) {
        most = x[i] > most ? x[i] : most;
        poison += x[i] * 0.0f; /* no number, or infinity, makes it one */
    }
    if (poison != poison) return NAN;
    int at = 0;
    for (int found = 0; at + STRETCH <= count; at += STRETCH) {
        for (int i = 0; i < STRETCH; i++) found |= x[at + i] == most;
        if (found) break;
    }
    while (at < count - 1 && x[at] != most) at++;
    *where = at;
    return most;
}

/* e^(x - most) in double, x at most `most`: 2^whole times the Taylor series, to 2 ulp or so. */
static void exponentials(const double *x, double most, int count, double *y) {
#pragma omp simd
    for (int i = 0; i < count; i++) {
        double z = x[i] - most;
        z = z < -700.0 ? -700.0 : z;
        const double shifted = z * 1.4426950408889634 + 0x1.8p52; /* the integer in its last bits */
        const double whole = shifted - 0x1.8p52;
        const double f = (z - whole * 6.93145751953125e-1) - whole * 1.42860682030941723212e-6;
        double p = 1.0 / 6227020800.0;
        p = p * f + 1.0 / 479001600.0;
        p = p * f + 1.0 / 39916800.0;
        p = p * f + 1.0 / 3628800.0;
        p = p * f + 1.0 / 362880.0;
        p = p * f + 1.0 / 40320.0;
        p = p * f + 1.0 / 5040.0;
        p = p * f + 1.0 / 720.0;
        p = p * f + 1.0 / 120.0;
        p = p * f + 1.0 / 24.0;
        p = p * f + 1.0 / 6.0;
        p = p * f + 0.5;
        p = p * f + 1.0;
        p = p * f + 1.0;
        uint64_t bits;
        memcpy(&bits, &shifted, 8);
        bits = (bits + 1023) << 52;
        double power;
        memcpy(&power, &bits, 8);
        y[i] = p * power;
    }
}

const Kernels KERNELS = {KERNELS_NAME, project, quantize, normalise, attend,
                         round8,       gated,   gelu,     largest,   exponentials};

#undef INLINE
#undef UNROLL
