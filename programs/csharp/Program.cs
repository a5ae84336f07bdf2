using System;
using System.Collections.Generic;
using System.Globalization;
using System.Threading;
using System.Threading.Tasks;

/// <summary>N tasks that each await a delay of SECONDS.</summary>
public static class Program
{
    static int live, livePeak;

    /// <summary>Bytes of an array that each task holds while it waits.</summary>
    static readonly int payload = int.Parse(
        Environment.GetEnvironmentVariable("TASK_PAYLOAD") ?? "0", CultureInfo.InvariantCulture);

    public static int Main(string[] args)
    {
        if (args.Length != 2)
        {
            Console.Error.WriteLine("usage: csharp N SECONDS");
            return 2;
        }
        int count = int.Parse(args[0], CultureInfo.InvariantCulture);
        TimeSpan pause = TimeSpan.FromSeconds(double.Parse(args[1], CultureInfo.InvariantCulture));

        List<Task> tasks = new List<Task>();
        Console.WriteLine("launch=" + count);
        for (int i = 0; i < count; i++)
        {
            if (payload > 0)
            {
                tasks.Add(Task.Run(async () =>
                {
                    byte[] held = new byte[payload];
                    Array.Fill(held, (byte)1);
                    Enter(count);
                    do await Task.Delay(pause); while (Volatile.Read(ref livePeak) < count);
                    Interlocked.Decrement(ref live);
                    GC.KeepAlive(held);
                }));
                continue;
            }
            tasks.Add(Task.Run(async () =>
            {
                Enter(count);
                // The first to be started go on waiting until the last has come.
                do await Task.Delay(pause); while (Volatile.Read(ref livePeak) < count);
                Interlocked.Decrement(ref live);
            }));
        }
        // Not `await`: the compiler that is had without an SDK knows no `async Main`.
        Task.WhenAll(tasks).Wait();
        Console.WriteLine("live_peak=" + livePeak);
        return 0;
    }

    /// <summary>Counts this task as alive, and says so when it is the last of them.</summary>
    static void Enter(int count)
    {
        int now = Interlocked.Increment(ref live);
        int peak = Volatile.Read(ref livePeak);
        while (peak < now)
        {
            int seen = Interlocked.CompareExchange(ref livePeak, now, peak);
            if (seen == peak) break;
            peak = seen;
        }
        if (now == count)
        {
            Console.WriteLine("alive=" + now);
        }
    }
}
