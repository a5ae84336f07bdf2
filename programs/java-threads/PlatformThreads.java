import java.lang.ref.Reference;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.locks.LockSupport;

/** N platform threads that each sleep SECONDS. */
public class PlatformThreads {
    /** Bytes of stack that a call of {@code descend} takes, about: the interpreter takes more than compiled code. */
    static final int FRAME = 256;
    /** What each thread holds while it waits: bytes of its stack, bytes of an array. */
    static final int DEPTH = bytes("TASK_STACK_DEPTH"), PAYLOAD = bytes("TASK_PAYLOAD");

    static final AtomicInteger live = new AtomicInteger();
    static final AtomicInteger livePeak = new AtomicInteger();
    static final CountDownLatch allAlive = new CountDownLatch(1);
    static CountDownLatch allSlept;

    public static void main(String[] args) throws InterruptedException {
        if (args.length != 2) {
            System.err.println("usage: java-threads N SECONDS");
            System.exit(2);
        }
        int tasks = Integer.parseInt(args[0]);
        long millis = Math.round(Double.parseDouble(args[1]) * 1000);

        allSlept = new CountDownLatch(tasks);
        List<Thread> threads = new ArrayList<>();
        System.out.println("launch=" + tasks);
        for (int started = 0; started < tasks; started++) {
            Thread thread = new Thread(() -> sleep(tasks, millis));
            try {
                thread.start();
            } catch (OutOfMemoryError error) {
                System.err.println("failed at " + started + ": " + error.getMessage());
                Runtime.getRuntime().halt(1); // at once: the threads that did start are not waited for
            }
            threads.add(thread);
        }
        allSlept.await();
        Reference.reachabilityFence(threads);
        System.out.println("live_peak=" + livePeak.get());
        System.out.flush();
        // Not joined: a thread that ends looks for itself on every list of threads that was replaced and may be in
        // use (ThreadsSMRSupport::free_list), so of 100,000 a few ended in a second, and the lists took gigabytes,
        // which are no part of tasks that wait.
        Runtime.getRuntime().halt(0);
    }

    static void sleep(int tasks, long millis) {
        int now = live.incrementAndGet();
        livePeak.accumulateAndGet(now, Math::max);
        if (now == tasks) {
            System.out.println("alive=" + now);
            System.out.flush();
            allAlive.countDown();
        }
        if (DEPTH == 0 && PAYLOAD == 0) {
            await(tasks, millis);
        } else {
            awaitWithLoad(tasks, millis);
        }
        live.decrementAndGet();
        allSlept.countDown();
        while (true) {
            LockSupport.park(); // until main ends the program
        }
    }

    /**
     * The first to be started wait for the last, and then sleep once more, so that all are asleep at once. They do not
     * sleep until then over and over: 100,000 threads that wake every few seconds leave none of the CPU for launching.
     */
    static void await(int tasks, long millis) {
        try {
            Thread.sleep(millis);
            if (livePeak.get() < tasks) {
                allAlive.await();
                Thread.sleep(millis);
            }
        } catch (InterruptedException interrupted) {
            System.err.println("a sleeping thread was interrupted");
            Runtime.getRuntime().halt(1);
        }
    }

    static void awaitWithLoad(int tasks, long millis) {
        byte[] held = new byte[PAYLOAD];
        Arrays.fill(held, (byte) 1);
        descend(DEPTH / FRAME, tasks, millis, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        Reference.reachabilityFence(held);
    }

    /** Calls itself; what is added up afterwards has to be kept in the frame. */
    static long descend(
            int levels, int tasks, long millis, long a, long b, long c, long d, long e, long f, long g, long h, long i) {
        long deeper = 0;
        if (levels > 0) {
            deeper = descend(levels - 1, tasks, millis, b, c, d, e, f, g, h, i, a + 1);
        } else {
            await(tasks, millis);
        }
        return deeper + a + b + c + d + e + f + g + h + i;
    }

    static int bytes(String variable) {
        String text = System.getenv(variable);
        return text == null ? 0 : Integer.parseInt(text);
    }
}
