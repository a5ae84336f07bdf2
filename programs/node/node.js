// N async functions that each wait SECONDS on a timer.
"use strict";

const delay = require("node:util").promisify(setTimeout);

const tasks = Number(process.argv[2]);
const milliseconds = Number(process.argv[3]) * 1000;
if (!Number.isInteger(tasks) || !Number.isFinite(milliseconds)) {
  console.error("usage: node.js N SECONDS");
  process.exit(2);
}

const payload = Number(process.env.TASK_PAYLOAD ?? 0);
let live = 0;
let livePeak = 0;

async function task() {
  live += 1;
  livePeak = Math.max(livePeak, live);
  if (live === tasks) console.log(`alive=${live}`);
  await delay(milliseconds);
  live -= 1;
}

async function taskWithLoad() {
  const held = new Uint8Array(payload).fill(1);
  await task();
  return held.length;
}

async function main() {
  const pending = [];
  console.log(`launch=${tasks}`);
  // No timer fires before this function has started them all.
  for (let i = 0; i < tasks; i++) pending.push(payload > 0 ? taskWithLoad() : task());
  await Promise.all(pending);
  console.log(`live_peak=${livePeak}`);
}

main();
