import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;

/** N platform threads that each sleep SECONDS. */
public class PlatformThreads {
    static final AtomicInteger live = new AtomicInteger();
    static final AtomicInteger livePeak = new AtomicInteger();

    public static void main(String[] args) throws InterruptedException {
        if (args.length != 2) {
            System.err.println("usage: java-threads N SECONDS");
            System.exit(2);
        }
        int tasks = Integer.parseInt(args[0]);
        long millis = Math.round(Double.parseDouble(args[1]) * 1000);

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
        for (Thread thread : threads) {
            thread.join();
        }
        System.out.println("live_peak=" + livePeak.get());
    }

    static void sleep(int tasks, long millis) {
        int now = live.incrementAndGet();
        livePeak.accumulateAndGet(now, Math::max);
        if (now == tasks) {
            System.out.println("alive=" + now);
            System.out.flush();
        }
        try {
            Thread.sleep(millis);
        } catch (InterruptedException interrupted) {
            System.err.println("a sleeping thread was interrupted");
            Runtime.getRuntime().halt(1);
        }
        live.decrementAndGet();
    }
}
