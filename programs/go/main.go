// N goroutines that each sleep SECONDS.
package main

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

var live, livePeak atomic.Int64

// enter counts this goroutine as alive, and says so when it is the last of them.
func enter(tasks int64) {
	now := live.Add(1)
	for peak := livePeak.Load(); peak < now && !livePeak.CompareAndSwap(peak, now); {
		peak = livePeak.Load()
	}
	if now == tasks {
		fmt.Printf("alive=%d\n", now)
	}
}

func main() {
	if len(os.Args) != 3 {
		fail("usage: go N SECONDS")
	}
	tasks, err := strconv.ParseInt(os.Args[1], 10, 64)
	if err != nil {
		fail(err)
	}
	seconds, err := strconv.ParseFloat(os.Args[2], 64)
	if err != nil {
		fail(err)
	}
	pause := time.Duration(seconds * float64(time.Second))

	var wg sync.WaitGroup
	fmt.Printf("launch=%d\n", tasks)
	for i := int64(0); i < tasks; i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			enter(tasks)
			time.Sleep(pause)
			live.Add(-1)
		}()
	}
	wg.Wait()
	fmt.Printf("live_peak=%d\n", livePeak.Load())
}

func fail(reason any) {
	fmt.Fprintln(os.Stderr, reason)
	os.Exit(2)
}
