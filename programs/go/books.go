//go:build books

// The runtime's own figures, printed on SIGUSR2. Only in a build with the tag `books`: never in the
// program that is measured.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/metrics"
	"sync"
	"syscall"
)

// What runtime/metrics tells without stopping the program or emptying a cache.
var samples = []metrics.Sample{
	{Name: "/memory/classes/heap/stacks:bytes"},
	{Name: "/memory/classes/heap/objects:bytes"},
	{Name: "/memory/classes/heap/unused:bytes"},
	{Name: "/memory/classes/heap/free:bytes"},
	{Name: "/sched/goroutines:goroutines"},
}

// startThreads makes the runtime hold so many idle threads. A thread that was started only to
// print would bring 64 KiB of stacks into the spans between the two looks; idle ones are never ended.
func startThreads(count int) {
	var started, done sync.WaitGroup
	started.Add(count)
	done.Add(count)
	release := make(chan struct{})
	for i := 0; i < count; i++ {
		go func() {
			runtime.LockOSThread()
			started.Done()
			<-release
			runtime.UnlockOSThread() // without it the thread would end with its goroutine
			done.Done()
		}()
	}
	started.Wait()
	close(release)
	done.Wait()
}

func init() {
	// Both calls set up what they need when they are made first.
	var stats runtime.MemStats
	metrics.Read(samples)
	runtime.ReadMemStats(&stats)

	startThreads(runtime.GOMAXPROCS(0) + 4)

	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR2)
	go func() {
		for range asked {
			metrics.Read(samples)
			runtime.ReadMemStats(&stats)
			books := map[string]uint64{
				"StackInuse":  stats.StackInuse,
				"HeapInuse":   stats.HeapInuse,
				"HeapAlloc":   stats.HeapAlloc,
				"HeapObjects": stats.HeapObjects,
				"HeapIdle":    stats.HeapIdle,
				"GCSys":       stats.GCSys,
			}
			for _, sample := range samples {
				books[sample.Name] = sample.Value.Uint64()
			}
			line, err := json.Marshal(books)
			if err != nil {
				fail(err)
			}
			fmt.Printf("books=%s\n", line)
		}
	}()
}
