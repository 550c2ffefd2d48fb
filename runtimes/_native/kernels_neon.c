/* The kernels for ARM CPUs with the dot-product instructions. */
#include "engine.h"

#if defined(__aarch64__)
#include <math.h>
#include <string.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
/* 1 where the CPU has them; every Apple one has. */
int neon_has_dot(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) >> 20) & 1; /* HWCAP_ASIMDDP */
#else
    return 1;
#endif
}
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#include <arm_neon.h>
#define KERNELS kernels_neon
#define KERNELS_NAME "neon"
#include "lanes_neon.h"
#include "kernels.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
