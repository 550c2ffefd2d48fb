/* The kernels for CPUs with avx2,fma,f16c. */
#include "engine.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define KERNELS kernels_avx2
#define KERNELS_NAME "avx2"
#include "lanes_avx2.h"
#include "kernels.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
