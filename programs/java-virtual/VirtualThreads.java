import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;

/** N virtual threads that each sleep SECONDS. */
public class VirtualThreads {
    static final AtomicInteger live = new AtomicInteger();
    static final AtomicInteger livePeak = new AtomicInteger();

    public static void main(String[] args) throws InterruptedException {
        if (args.length != 2) {
            System.err.println("usage: java-virtual N SECONDS");
            System.exit(2);
        }
        int tasks = Integer.parseInt(args[0]);
        long millis = Math.round(Double.parseDouble(args[1]) * 1000);

        List<Thread> threads = new ArrayList<>();
        System.out.println("launch=" + tasks);
        for (int i = 0; i < tasks; i++) {
            threads.add(Thread.startVirtualThread(() -> sleep(tasks, millis)));
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
