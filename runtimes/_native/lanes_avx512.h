/* Sixteen lanes of AVX-512 with VNNI: one instruction for 64 products. */
#define OFFSET8 128
typedef __m512i I16;
typedef __m512 F16;
typedef __m512i W64;

static inline I16 i16_set(int32_t value) { return _mm512_set1_epi32(value); }
static inline W64 w64_load(const uint8_t *from) { return _mm512_loadu_si512(from); }
static inline W64 w64_low(W64 w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
static inline W64 w64_high(W64 w) { return w64_low(_mm512_srli_epi16(w, 4)); }
static inline W64 w64_load8(const uint8_t *from) { return w64_load(from); }
static inline I16 i16_dot(I16 sum, W64 w, int32_t x) {
    return _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(x));
}
static inline F16 f16_zero(void) { return _mm512_setzero_ps(); }
static inline F16 f16_load(const float *from) { return _mm512_loadu_ps(from); }
static inline void f16_store(float *to, F16 x) { _mm512_storeu_ps(to, x); }
static inline F16 f16_half(const uint16_t *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}
static inline F16 f16_bytes(const int8_t *from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
}
static inline float f16_most(F16 a, F16 b) {
    return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
}
static inline I16 i16_round(F16 x, float by) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(by)));
}
static inline void i16_bytes(I16 x, int8_t *to) {
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(x));
}
static inline int32_t i16_total(I16 a, I16 b) {
    return _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
}
static inline F16 f16_add(F16 a, F16 b) { return _mm512_add_ps(a, b); }
static inline F16 f16_fma(F16 sum, F16 w, float x) {
    return _mm512_fmadd_ps(w, _mm512_set1_ps(x), sum);
}
static inline F16 f16_times(F16 a, F16 b) { return _mm512_mul_ps(a, b); }
static inline F16 f16_dots(F16 sum, I16 dots, float x) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), _mm512_set1_ps(x), sum);
}
static inline F16 f16_scaled(F16 sum, I16 dots, F16 w, float x) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), _mm512_mul_ps(w, _mm512_set1_ps(x)), sum);
}
