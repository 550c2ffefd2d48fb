/* Sixteen lanes as two halves of AVX2. Without VNNI the products are summed in pairs of 16 bit,
   which would overflow for unsigned weights of 8 bit: so these are signed here, and the sign of x
   is moved to them. With AVX-VNNI (DOT_VNNI) there is an instruction for it. */
typedef struct { __m256i half[2]; } I16;
typedef struct { __m256 half[2]; } F16;
typedef struct { __m256i half[2]; } W64;
#ifdef DOT_VNNI
#define OFFSET8 128
#else
#define OFFSET8 0
#endif

static inline I16 i16_set(int32_t value) {
    __m256i all = _mm256_set1_epi32(value);
    return (I16){{all, all}};
}
static inline W64 w64_load(const uint8_t *from) {
    const __m256i *two = (const __m256i *)from;
    return (W64){{_mm256_loadu_si256(two), _mm256_loadu_si256(two + 1)}};
}
static inline W64 w64_low(W64 w) {
    __m256i mask = _mm256_set1_epi8(15);
    return (W64){{_mm256_and_si256(w.half[0], mask), _mm256_and_si256(w.half[1], mask)}};
}
static inline W64 w64_high(W64 w) {
    return w64_low((W64){{_mm256_srli_epi16(w.half[0], 4), _mm256_srli_epi16(w.half[1], 4)}});
}
static inline W64 w64_load8(const uint8_t *from) {
    W64 w = w64_load(from);
#ifndef DOT_VNNI
    __m256i flip = _mm256_set1_epi8((char)0x80); /* w + 128 becomes w */
    w.half[0] = _mm256_xor_si256(w.half[0], flip);
    w.half[1] = _mm256_xor_si256(w.half[1], flip);
#endif
    return w;
}
static inline __m256i dot_half(__m256i sum, __m256i w, __m256i x) {
#ifdef DOT_VNNI
    return _mm256_dpbusd_avx_epi32(sum, w, x);
#else
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}
static inline I16 i16_dot(I16 sum, W64 w, int32_t x) {
    __m256i all = _mm256_set1_epi32(x);
    return (I16){{dot_half(sum.half[0], w.half[0], all), dot_half(sum.half[1], w.half[1], all)}};
}
static inline F16 f16_zero(void) { return (F16){{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
static inline F16 f16_load(const float *from) {
    return (F16){{_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}};
}
static inline void f16_store(float *to, F16 x) {
    _mm256_storeu_ps(to, x.half[0]);
    _mm256_storeu_ps(to + 8, x.half[1]);
}
static inline F16 f16_half(const uint16_t *from) {
    const __m128i *two = (const __m128i *)from;
    return (F16){{_mm256_cvtph_ps(_mm_loadu_si128(two)), _mm256_cvtph_ps(_mm_loadu_si128(two + 1))}};
}
static inline __m256 eight_bytes(const int8_t *from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
}
static inline F16 f16_bytes(const int8_t *from) {
    return (F16){{eight_bytes(from), eight_bytes(from + 8)}};
}
static inline float f16_most(F16 a, F16 b) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 most = _mm256_max_ps(
        _mm256_max_ps(_mm256_andnot_ps(sign, a.half[0]), _mm256_andnot_ps(sign, a.half[1])),
        _mm256_max_ps(_mm256_andnot_ps(sign, b.half[0]), _mm256_andnot_ps(sign, b.half[1])));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
static inline I16 i16_round(F16 x, float by) {
    __m256 all = _mm256_set1_ps(by);
    return (I16){{_mm256_cvtps_epi32(_mm256_mul_ps(x.half[0], all)),
                  _mm256_cvtps_epi32(_mm256_mul_ps(x.half[1], all))}};
}
static inline void i16_bytes(I16 x, int8_t *to) {
    /* packing goes by halves of 128 bits, so the middle quarters have to change places */
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.half[0], x.half[1]), 0xd8);
    _mm_storeu_si128((__m128i *)to, _mm_packs_epi16(_mm256_castsi256_si128(words),
                                                    _mm256_extracti128_si256(words, 1)));
}
static inline int32_t i16_total(I16 a, I16 b) {
    __m256i both = _mm256_add_epi32(_mm256_add_epi32(a.half[0], a.half[1]),
                                    _mm256_add_epi32(b.half[0], b.half[1]));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}
static inline F16 f16_add(F16 a, F16 b) {
    return (F16){{_mm256_add_ps(a.half[0], b.half[0]), _mm256_add_ps(a.half[1], b.half[1])}};
}
static inline F16 f16_fma(F16 sum, F16 w, float x) {
    __m256 all = _mm256_set1_ps(x);
    return (F16){{_mm256_fmadd_ps(w.half[0], all, sum.half[0]),
                  _mm256_fmadd_ps(w.half[1], all, sum.half[1])}};
}
static inline F16 f16_times(F16 a, F16 b) {
    return (F16){{_mm256_mul_ps(a.half[0], b.half[0]), _mm256_mul_ps(a.half[1], b.half[1])}};
}
static inline F16 f16_dots(F16 sum, I16 dots, float x) {
    return f16_fma(sum, (F16){{_mm256_cvtepi32_ps(dots.half[0]), _mm256_cvtepi32_ps(dots.half[1])}}, x);
}
static inline F16 f16_scaled(F16 sum, I16 dots, F16 w, float x) {
    __m256 all = _mm256_set1_ps(x);
    for (int i = 0; i < 2; i++)
        sum.half[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots.half[i]),
                                      _mm256_mul_ps(w.half[i], all), sum.half[i]);
    return sum;
}
