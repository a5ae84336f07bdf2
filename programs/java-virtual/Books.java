import java.lang.management.GarbageCollectorMXBean;
import java.lang.management.ManagementFactory;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.util.Arrays;
import java.util.Map;
import java.util.StringTokenizer;
import java.util.TreeMap;
import java.util.concurrent.Semaphore;

/**
 * Runs another main class, and on SIGUSR2 prints what the JVM says of its own memory: the books that a look
 * from outside is compared with. No part of a measured program.
 *
 * <p>The commands are those of jcmd, called from inside and past the MBean server: starting that one makes
 * some megabytes of objects, and attaching from outside starts a thread.
 */
public class Books {
    public static void main(String[] args) throws Exception {
        Semaphore asked = new Semaphore(0);
        sun.misc.Signal.handle(new sun.misc.Signal("USR2"), signal -> asked.release());
        Thread printer = new Thread(() -> print(asked), "books");
        printer.setDaemon(true);
        printer.start();
        Method main = Class.forName(args[0]).getMethod("main", String[].class);
        main.invoke(null, (Object) Arrays.copyOfRange(args, 1, args.length));
    }

    static void print(Semaphore asked) {
        try {
            // For nothing: so the classes and code that it takes are there before the program begins, and
            // most of what will be compiled of it is.
            for (int time = 0; time < 5; time++) {
                sun.misc.Signal.raise(new sun.misc.Signal("USR2"));
                asked.acquire();
                line();
            }
            while (true) {
                asked.acquire();
                System.out.println(line());
                System.out.flush();
            }
        } catch (Throwable error) {
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
        }
    }

    static String line() throws Exception {
        // The signal has a thread of its own, and it a stack.
        for (Thread handler : Thread.getAllStackTraces().keySet()) {
            if (handler.getName().equals("SIGUSR2 handler")) {
                handler.join();
            }
        }
        Map<String, Long> books = new TreeMap<>();
        // First, since all that follows makes objects.
        map(command("System.map"), books);
        classes(command("GC.class_histogram -all"), books);
        kilobytes("heap.used", "used ", command("GC.heap_info"), books);
        kilobytes("code.used", ", used=", command("Compiler.codecache"), books);
        // Last, so that a collection in between shows too.
        for (GarbageCollectorMXBean collector : ManagementFactory.getGarbageCollectorMXBeans()) {
            // The pauses of one at work beside the program are none of its collections.
            if (!collector.getName().contains("Concurrent")) {
                books.merge("collections", collector.getCollectionCount(), Long::sum);
            }
        }
        StringBuilder line = new StringBuilder("books={");
        for (Map.Entry<String, Long> book : books.entrySet()) {
            line.append(line.length() == 7 ? "\"" : ", \"").append(book.getKey());
            line.append("\": ").append(book.getValue());
        }
        return line.append('}').toString();
    }

    /** What jcmd would print; nothing when this JVM does not know the command (System.map before 24). */
    static String command(String command) throws ReflectiveOperationException {
        String internal = "com.sun.management.internal.";
        Class.forName(internal + "PlatformMBeanProviderImpl"); // loads the library
        Class<?> commands = Class.forName(internal + "DiagnosticCommandImpl");
        Method get = commands.getDeclaredMethod("getDiagnosticCommandMBean");
        Method execute = commands.getDeclaredMethod("executeDiagnosticCommand", String.class);
        get.setAccessible(true);
        execute.setAccessible(true);
        try {
            return (String) execute.invoke(get.invoke(null), command);
        } catch (InvocationTargetException unknown) {
            return "";
        }
    }

    /** Rows are: number and a colon, instances, bytes, class. */
    static void classes(String histogram, Map<String, Long> books) {
        for (StringTokenizer rows = new StringTokenizer(histogram, "\n"); rows.hasMoreTokens(); ) {
            StringTokenizer words = new StringTokenizer(rows.nextToken(), " ");
            if (words.countTokens() < 4 || !words.nextToken().endsWith(":")) {
                continue;
            }
            long instances = Long.parseLong(words.nextToken());
            long bytes = Long.parseLong(words.nextToken());
            String name = words.nextToken();
            String kind = "objects";
            if (name.equals("jdk.internal.vm.StackChunk")) {
                kind = "chunks";
            } else if (name.contains("jdk.internal.vm.Filler")) {
                kind = "fillers";
            }
            books.merge(kind + ".instances", instances, Long::sum);
            books.merge(kind + ".bytes", bytes, Long::sum);
        }
    }

    /** Rows are: range, size, protection, resident bytes, huge pages, page size, notes, kind, file. */
    static void map(String map, Map<String, Long> books) {
        for (StringTokenizer rows = new StringTokenizer(map, "\n"); rows.hasMoreTokens(); ) {
            StringTokenizer words = new StringTokenizer(rows.nextToken(), " ");
            if (words.countTokens() < 8 || !words.nextToken().startsWith("0x")) {
                continue;
            }
            words.nextToken();
            words.nextToken();
            long resident = Long.parseLong(words.nextToken());
            words.nextToken();
            words.nextToken();
            words.nextToken();
            String kind = words.nextToken();
            int end = 0; // of "STACK" in "STACK-Thread-1-17-main"
            while (end < kind.length() && Character.isUpperCase(kind.charAt(end))) {
                end++;
            }
            books.merge("rss." + (end == 0 ? "untagged" : kind.substring(0, end)), resident, Long::sum);
        }
    }

    /** The number of KiB that stands behind the first such text. */
    static void kilobytes(String name, String text, String report, Map<String, Long> books) {
        int start = report.indexOf(text);
        if (start >= 0) {
            start += text.length();
            long number = Long.parseLong(report.substring(start, report.indexOf('K', start)));
            books.put(name, number * 1024);
        }
    }
}
