/* For `cargo xtask accuracy`: preloaded into a program whose language cannot wait for a signal, it turns
 * SIGUSR2 into a byte on descriptor 100.
 *
 * The signal is blocked before the program makes its first thread, so every thread has it blocked, and the
 * one made here takes it with sigwait(3). */
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

enum { READ_END = 100, WRITE_END = 101 };

static sigset_t asked;

static void *pass_on(void *unused) {
    int signal_number;
    while (sigwait(&asked, &signal_number) == 0)
        if (write(WRITE_END, "", 1) != 1) break;
    return unused;
}

__attribute__((constructor)) static void begin(void) {
    int ends[2];
    pthread_t thread;
    sigemptyset(&asked);
    sigaddset(&asked, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &asked, NULL);
    if (pipe(ends) == 0 && dup2(ends[0], READ_END) >= 0 && dup2(ends[1], WRITE_END) >= 0 &&
        pthread_create(&thread, NULL, pass_on, NULL) == 0)
        pthread_detach(thread);
}
