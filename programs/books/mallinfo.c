/* glibc's own books, for `cargo xtask accuracy`: preloaded into a program, it waits for SIGUSR2 and then
 * writes what mallinfo2(3) says as one line, `books={...}`. It allocates nothing itself.
 *
 * The signal is blocked before the program makes its first thread, so every thread has it blocked, and the
 * one made here takes it with sigwait(3): no call of the program is interrupted. */
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static sigset_t asked;

static void *answer(void *unused) {
    int signal_number;
    while (sigwait(&asked, &signal_number) == 0) {
        struct mallinfo2 info = mallinfo2();
        char line[256];
        int length = snprintf(line, sizeof line,
                              "books={\"arena\":%zu,\"uordblks\":%zu,\"fordblks\":%zu,\"hblkhd\":%zu}\n",
                              info.arena, info.uordblks, info.fordblks, info.hblkhd);
        if (write(STDOUT_FILENO, line, length) != length) break;
    }
    return unused;
}

__attribute__((constructor)) static void begin(void) {
    pthread_t thread;
    sigemptyset(&asked);
    sigaddset(&asked, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &asked, NULL);
    if (pthread_create(&thread, NULL, answer, NULL) == 0) pthread_detach(thread);
}
