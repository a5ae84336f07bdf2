// Loaded before node.js by --require where the profiler is compared with V8's own figures: on SIGUSR2 they
// go to standard output, as one line.
"use strict";

const v8 = require("node:v8");

process.on("SIGUSR2", () => {
  const books = {};
  for (const space of v8.getHeapSpaceStatistics()) {
    books[`${space.space_name}.committed`] = space.space_size;
    books[`${space.space_name}.used`] = space.space_used_size;
  }
  console.log(`books=${JSON.stringify(books)}`);
});
