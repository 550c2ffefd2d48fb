/* The kernels for any CPU. */
#include "engine.h"
#define KERNELS kernels_plain
#define KERNELS_NAME "plain"
#include "lanes_plain.h"
#include "kernels.h"
