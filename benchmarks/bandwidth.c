// How fast this machine reads memory: `bandwidth MEGABYTES THREADS` prints GB/s, the median of 7.
// Each thread reads its own part again and again, with eight sums so that none waits for another.

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TRIES = 7, LANES = 64 };
static const double READ_BYTES = 2e9;

typedef struct {
    const uint64_t *from;
    size_t words;
    int repeats;
    uint64_t sum;
    pthread_barrier_t *together;
} Part;

static void *read_part(void *given) {
    Part *part = given;
    uint64_t sums[LANES] = {0};
    pthread_barrier_wait(part->together);
    for (int n = 0; n < part->repeats; n++) {
        for (size_t i = 0; i + LANES <= part->words; i += LANES)
            for (int lane = 0; lane < LANES; lane++) sums[lane] += part->from[i + lane];
        __asm__ volatile("" ::: "memory");  // the next round reads again
    }
    for (int lane = 0; lane < LANES; lane++) part->sum += sums[lane];
    pthread_barrier_wait(part->together);
    return NULL;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    size_t bytes = (size_t)(atof(arguments[1]) * 1e6);
    int threads = atoi(arguments[2]);
    if (threads < 1 || threads > 256 || bytes < 4096) return 2;
    size_t words = bytes / 8 / (size_t)threads / LANES * LANES;
    int repeats = (int)(READ_BYTES / (double)bytes) + 1;
    uint64_t *memory = aligned_alloc(4096, (words * (size_t)threads * 8 + 4095) / 4096 * 4096);
    if (!memory) return 1;
    memset(memory, 1, words * (size_t)threads * 8);
    double found[TRIES];
    for (int try = 0; try < TRIES; try++) {
        pthread_barrier_t together;
        pthread_barrier_init(&together, NULL, (unsigned)threads + 1);
        pthread_t *ids = calloc((size_t)threads, sizeof *ids);
        Part *parts = calloc((size_t)threads, sizeof *parts);
        for (int n = 0; n < threads; n++) {
            parts[n] = (Part){memory + words * (size_t)n, words, repeats, 0, &together};
            pthread_create(&ids[n], NULL, read_part, &parts[n]);
        }
        pthread_barrier_wait(&together);
        double start = seconds();
        pthread_barrier_wait(&together);
        found[try] = (double)words * 8 * threads * repeats / (seconds() - start) / 1e9;
        for (int n = 0; n < threads; n++) pthread_join(ids[n], NULL);
        free(ids);
        free(parts);
    }
    qsort(found, TRIES, sizeof *found, ascending);
    printf("%.2f\n", found[TRIES / 2]);
    free(memory);
    return 0;
}
