/* Sixteen lanes as four quarters of NEON with the dot-product instructions (ARMv8.2). */
#define OFFSET8 0
typedef struct { int32x4_t quarter[4]; } I16;
typedef struct { float32x4_t quarter[4]; } F16;
typedef struct { int8x16_t quarter[4]; } W64;
#define EACH for (int i = 0; i < 4; i++)

static inline I16 i16_set(int32_t value) { I16 out; EACH out.quarter[i] = vdupq_n_s32(value); return out; }
static inline W64 w64_load(const uint8_t *from) {
    W64 w;
    EACH w.quarter[i] = vreinterpretq_s8_u8(vld1q_u8(from + 16 * i));
    return w;
}
static inline W64 w64_low(W64 w) {
    EACH w.quarter[i] = vandq_s8(w.quarter[i], vdupq_n_s8(15));
    return w;
}
static inline W64 w64_high(W64 w) {
    EACH w.quarter[i] =
        vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(w.quarter[i]), 4));
    return w;
}
static inline W64 w64_load8(const uint8_t *from) {
    W64 w = w64_load(from); /* w + 128 becomes w */
    EACH w.quarter[i] = veorq_s8(w.quarter[i], vdupq_n_s8((int8_t)0x80));
    return w;
}
static inline I16 i16_dot(I16 sum, W64 w, int32_t x) {
    int8x16_t all = vreinterpretq_s8_s32(vdupq_n_s32(x));
    EACH sum.quarter[i] = vdotq_s32(sum.quarter[i], w.quarter[i], all);
    return sum;
}
static inline F16 f16_zero(void) { F16 out; EACH out.quarter[i] = vdupq_n_f32(0); return out; }
static inline F16 f16_load(const float *from) { F16 out; EACH out.quarter[i] = vld1q_f32(from + 4 * i); return out; }
static inline void f16_store(float *to, F16 x) { EACH vst1q_f32(to + 4 * i, x.quarter[i]); }
static inline F16 f16_half(const uint16_t *from) {
    F16 out;
    EACH out.quarter[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i)));
    return out;
}
static inline F16 f16_bytes(const int8_t *from) {
    F16 out;
    for (int i = 0; i < 2; i++) {
        int16x8_t eight = vmovl_s8(vld1_s8(from + 8 * i));
        out.quarter[2 * i] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(eight)));
        out.quarter[2 * i + 1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(eight)));
    }
    return out;
}
static inline float f16_most(F16 a, F16 b) {
    float32x4_t most = vdupq_n_f32(0);
    EACH most = vmaxq_f32(most, vmaxq_f32(vabsq_f32(a.quarter[i]), vabsq_f32(b.quarter[i])));
    return vmaxvq_f32(most);
}
static inline I16 i16_round(F16 x, float by) {
    I16 out;
    EACH out.quarter[i] = vcvtnq_s32_f32(vmulq_n_f32(x.quarter[i], by));
    return out;
}
static inline void i16_bytes(I16 x, int8_t *to) {
    int16x8_t low = vcombine_s16(vmovn_s32(x.quarter[0]), vmovn_s32(x.quarter[1]));
    int16x8_t high = vcombine_s16(vmovn_s32(x.quarter[2]), vmovn_s32(x.quarter[3]));
    vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
static inline int32_t i16_total(I16 a, I16 b) {
    int32x4_t sum = vdupq_n_s32(0);
    EACH sum = vaddq_s32(sum, vaddq_s32(a.quarter[i], b.quarter[i]));
    return vaddvq_s32(sum);
}
static inline F16 f16_add(F16 a, F16 b) {
    EACH a.quarter[i] = vaddq_f32(a.quarter[i], b.quarter[i]);
    return a;
}
static inline F16 f16_fma(F16 sum, F16 w, float x) {
    EACH sum.quarter[i] = vfmaq_n_f32(sum.quarter[i], w.quarter[i], x);
    return sum;
}
static inline F16 f16_times(F16 a, F16 b) {
    EACH a.quarter[i] = vmulq_f32(a.quarter[i], b.quarter[i]);
    return a;
}
static inline F16 f16_dots(F16 sum, I16 dots, float x) {
    EACH sum.quarter[i] = vfmaq_n_f32(sum.quarter[i], vcvtq_f32_s32(dots.quarter[i]), x);
    return sum;
}
static inline F16 f16_scaled(F16 sum, I16 dots, F16 w, float x) {
    EACH sum.quarter[i] = vfmaq_f32(sum.quarter[i], vcvtq_f32_s32(dots.quarter[i]),
                                    vmulq_n_f32(w.quarter[i], x));
    return sum;
}
#undef EACH
