"""N asyncio tasks that each sleep SECONDS."""

import asyncio
import os
import sys

live = 0
live_peak = 0


async def task(tasks, seconds):
    global live, live_peak
    live += 1
    live_peak = max(live_peak, live)
    if live == tasks:
        print(f"alive={live}", flush=True)
    await asyncio.sleep(seconds)
    live -= 1


async def task_with_load(tasks, seconds, payload):
    held = bytearray(b"\1") * payload
    await task(tasks, seconds)
    return len(held)


async def main(tasks, seconds):
    payload = int(os.environ.get("TASK_PAYLOAD", 0))
    print(f"launch={tasks}", flush=True)
    # The first sleeper wakes when all have gone to sleep: the loop runs what is ready before it looks at timers.
    if payload:
        pending = [asyncio.create_task(task_with_load(tasks, seconds, payload)) for _ in range(tasks)]
    else:
        pending = [asyncio.create_task(task(tasks, seconds)) for _ in range(tasks)]
    await asyncio.gather(*pending)
    print(f"live_peak={live_peak}", flush=True)


if len(sys.argv) != 3:
    sys.exit("usage: tasks.py N SECONDS")
asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
