// N goroutines that each sleep SECONDS.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

var live, livePeak atomic.Int64

// What each goroutine does while it waits: bytes of its stack, bytes of an array.
var depth, payload = bytes("TASK_STACK_DEPTH"), bytes("TASK_PAYLOAD")

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

// wait lets the first goroutines go on waiting until the last has come.
func wait(tasks int64, pause time.Duration) {
	for time.Sleep(pause); livePeak.Load() < tasks; {
		time.Sleep(pause)
	}
}

// waitWithLoad waits with an array of `payload` bytes, `depth` bytes further down the stack.
func waitWithLoad(tasks int64, pause time.Duration) {
	held := make([]byte, payload)
	for i := range held {
		held[i] = 1
	}
	var top byte
	descend(&top, tasks, pause)
	runtime.KeepAlive(held)
}

// descend calls itself until it is `depth` bytes below `top`, which the runtime moves with the stack.
//
//go:noinline
func descend(top *byte, tasks int64, pause time.Duration) {
	var frame [256]byte
	for i := range frame {
		frame[i] = byte(tasks)
	}
	if uintptr(unsafe.Pointer(top))-uintptr(unsafe.Pointer(&frame[0])) < uintptr(depth) {
		descend(top, tasks, pause)
	} else {
		wait(tasks, pause)
	}
	runtime.KeepAlive(&frame)
}

func bytes(variable string) int64 {
	text := os.Getenv(variable)
	if text == "" {
		return 0
	}
	number, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		fail(err)
	}
	return number
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
			if depth == 0 && payload == 0 {
				wait(tasks, pause)
			} else {
				waitWithLoad(tasks, pause)
			}
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
