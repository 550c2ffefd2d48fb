/* The kernels for CPUs with avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c. */
#include "engine.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")
#endif
#define KERNELS kernels_avx512
#define KERNELS_NAME "avx512"
#include "lanes_avx512.h"
#include "kernels.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
