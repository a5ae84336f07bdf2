"""N asyncio tasks that each sleep SECONDS."""

import asyncio
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


async def main(tasks, seconds):
    print(f"launch={tasks}", flush=True)
    pending = [asyncio.create_task(task(tasks, seconds)) for _ in range(tasks)]
    await asyncio.gather(*pending)
    print(f"live_peak={live_peak}", flush=True)


if len(sys.argv) != 3:
    sys.exit("usage: tasks.py N SECONDS")
asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
