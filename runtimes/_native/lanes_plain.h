/* Sixteen lanes in plain C: what every other set of lanes is tested against. */
#include <math.h>
#include <string.h>

#define OFFSET8 128
typedef struct { int32_t lane[16]; } I16;
typedef struct { float lane[16]; } F16;
typedef struct { uint8_t byte[64]; } W64;

static inline I16 i16_set(int32_t value) {
    I16 out;
    for (int i = 0; i < 16; i++) out.lane[i] = value;
    return out;
}
static inline W64 w64_load(const uint8_t *from) { W64 w; memcpy(w.byte, from, 64); return w; }
static inline W64 w64_low(W64 w) { for (int i = 0; i < 64; i++) w.byte[i] &= 15; return w; }
static inline W64 w64_high(W64 w) { for (int i = 0; i < 64; i++) w.byte[i] >>= 4; return w; }
static inline W64 w64_load8(const uint8_t *from) { return w64_load(from); }
/* lane i += the four bytes i of w times the four signed bytes of x */
static inline I16 i16_dot(I16 sum, W64 w, int32_t x) {
    int8_t four[4];
    memcpy(four, &x, 4);
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 4; k++) sum.lane[i] += (int32_t)w.byte[4 * i + k] * four[k];
    return sum;
}
static inline float from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    float value;
    if (rest >= 0x7c00) { /* infinity, or no number */
        uint32_t bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
        memcpy(&value, &bits, 4);
        return value;
    }
    uint32_t bits = rest << 13;
    memcpy(&value, &bits, 4);
    value *= 0x1p112f; /* the exponents differ by 112; subnormals come out right as well */
    return sign ? -value : value;
}
static inline F16 f16_zero(void) { F16 out; memset(&out, 0, sizeof out); return out; }
static inline F16 f16_load(const float *from) { F16 out; memcpy(out.lane, from, 64); return out; }
static inline void f16_store(float *to, F16 x) { memcpy(to, x.lane, 64); }
static inline F16 f16_half(const uint16_t *from) {
    F16 out;
    for (int i = 0; i < 16; i++) out.lane[i] = from_half(from[i]);
    return out;
}
static inline F16 f16_bytes(const int8_t *from) {
    F16 out;
    for (int i = 0; i < 16; i++) out.lane[i] = (float)from[i];
    return out;
}
/* The largest of both without their signs. */
static inline float f16_most(F16 a, F16 b) {
    float most = 0;
    for (int i = 0; i < 16; i++) most = fabsf(a.lane[i]) > most ? fabsf(a.lane[i]) : most;
    for (int i = 0; i < 16; i++) most = fabsf(b.lane[i]) > most ? fabsf(b.lane[i]) : most;
    return most;
}
/* x * by, to the nearest integer, to the even one of two */
static inline I16 i16_round(F16 x, float by) {
    I16 out;
    for (int i = 0; i < 16; i++) out.lane[i] = (int32_t)rintf(x.lane[i] * by);
    return out;
}
static inline void i16_bytes(I16 x, int8_t *to) {
    for (int i = 0; i < 16; i++) to[i] = (int8_t)x.lane[i];
}
static inline int32_t i16_total(I16 a, I16 b) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += a.lane[i] + b.lane[i];
    return sum;
}
static inline F16 f16_add(F16 a, F16 b) {
    for (int i = 0; i < 16; i++) a.lane[i] += b.lane[i];
    return a;
}
/* sum + w * x */
static inline F16 f16_fma(F16 sum, F16 w, float x) {
    for (int i = 0; i < 16; i++) sum.lane[i] = fmaf(w.lane[i], x, sum.lane[i]);
    return sum;
}
static inline F16 f16_times(F16 a, F16 b) {
    for (int i = 0; i < 16; i++) a.lane[i] *= b.lane[i];
    return a;
}
/* sum + dots * x */
static inline F16 f16_dots(F16 sum, I16 dots, float x) {
    for (int i = 0; i < 16; i++) sum.lane[i] = fmaf((float)dots.lane[i], x, sum.lane[i]);
    return sum;
}
/* sum + dots * (w * x) */
static inline F16 f16_scaled(F16 sum, I16 dots, F16 w, float x) {
    for (int i = 0; i < 16; i++)
        sum.lane[i] = fmaf((float)dots.lane[i], w.lane[i] * x, sum.lane[i]);
    return sum;
}
