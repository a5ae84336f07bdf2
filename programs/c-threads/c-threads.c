// N POSIX threads that each sleep SECONDS. The stack size is glibc's default: `ulimit -s`, 8 MiB as a rule.
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long tasks;
static size_t depth, payload;
static struct timespec pause_each;
static atomic_long live, live_peak;

static void wait_for_all(void) {
    do {
        struct timespec left = pause_each;
        while (nanosleep(&left, &left) == -1 && errno == EINTR) {
        }
    } while (atomic_load(&live_peak) < tasks); // the first to be started wait until the last has come
}

// Waits at least `depth` bytes below `top`.
static __attribute__((noinline)) void descend(const volatile char *top) {
    volatile char frame[256];
    memset((void *)frame, 1, sizeof frame);
    if ((size_t)(top - frame) < depth)
        descend(top);
    else
        wait_for_all();
    frame[0] = 2; // not the last thing that is done above, or there would be no frame
}

static void wait_with_load(void) {
    volatile char top = 0;
    char *held = payload ? malloc(payload) : NULL;
    if (!held && payload) {
        fprintf(stderr, "no memory for a payload\n");
        _exit(1);
    }
    if (held)
        memset(held, 1, payload);
    descend(&top);
    __asm__ volatile("" : : "r"(held) : "memory");
    free(held);
}

static size_t bytes(const char *variable) {
    const char *text = getenv(variable);
    return text ? strtoul(text, NULL, 10) : 0;
}

static void *wait_once(void *unused) {
    long now = atomic_fetch_add(&live, 1) + 1;
    long peak = atomic_load(&live_peak);
    while (peak < now && !atomic_compare_exchange_weak(&live_peak, &peak, now)) {
    }
    if (now == tasks) {
        printf("alive=%ld\n", now);
        fflush(stdout);
    }
    if (depth || payload)
        wait_with_load();
    else
        wait_for_all();
    atomic_fetch_sub(&live, 1);
    return unused;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: c-threads N SECONDS\n");
        return 2;
    }
    tasks = atol(argv[1]);
    double seconds = atof(argv[2]);
    pause_each.tv_sec = (time_t)seconds;
    pause_each.tv_nsec = (long)((seconds - (double)pause_each.tv_sec) * 1e9);

    depth = bytes("TASK_STACK_DEPTH");
    payload = bytes("TASK_PAYLOAD");

    pthread_t *threads = malloc((size_t)tasks * sizeof *threads);
    if (!threads) {
        fprintf(stderr, "failed at 0: %s\n", strerror(errno));
        return 1;
    }
    printf("launch=%ld\n", tasks);
    fflush(stdout);
    for (long started = 0; started < tasks; started++) {
        int error = pthread_create(&threads[started], NULL, wait_once, NULL);
        if (error) {
            fprintf(stderr, "failed at %ld: %s\n", started, strerror(error));
            _exit(1); // at once: the threads that did start are not waited for
        }
    }
    for (long i = 0; i < tasks; i++)
        pthread_join(threads[i], NULL);
    printf("live_peak=%ld\n", atomic_load(&live_peak));
    return 0;
}
