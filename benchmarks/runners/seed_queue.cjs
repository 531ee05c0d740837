// The usual queue on top of customerio-node: batches of 50, and in each of them one call per event, ten at a time.
//
// As it is mostly written, enqueue() starts a flush and does not wait for it ("overlapping"): under a burst there are
// as many calls at a time as events. Here the producer waits by default, so that ten calls at a time are ten.
"use strict";

const http = require("node:http");
const fs = require("node:fs");
const { TrackClient } = require("customerio-node");

const BATCH_SIZE = 50;
const CONCURRENCY = 10;

class Queue {
  constructor(client) {
    this.client = client;
    this.events = [];
  }

  enqueue(person, name, data) {
    this.events.push({ person, name, data });
    return this.events.length >= BATCH_SIZE ? this.flush() : undefined;
  }

  async flush() {
    const batch = this.events.splice(0, BATCH_SIZE);
    for (let begin = 0; begin < batch.length; begin += CONCURRENCY) {
      const calls = batch
        .slice(begin, begin + CONCURRENCY)
        .map(({ person, name, data }) => this.client.track(person, { name, data }));
      for (const { reason } of await Promise.allSettled(calls)) {
        if (reason !== undefined) throw reason;
      }
    }
  }
}

async function send(job, events) {
  const url = new URL(job.url);
  // Its address has no port, and its requests are https: both come from the options of Node's own request.
  const client = new TrackClient("site", "key", {
    url: `${job.url}/api/v1`,
    protocol: "http:",
    port: url.port,
    agent: http.globalAgent,
  });
  const queue = new Queue(client);
  const flushes = [];
  for (let number = 0; number < events; number += 1) {
    const flush = queue.enqueue(`user-${number % job.people}`, "page_viewed", job.data);
    if (flush !== undefined) {
      flushes.push(flush);
      if (!job.overlapping) await flush;
    }
  }
  await Promise.all([...flushes, queue.flush()]);
}

async function main() {
  const job = JSON.parse(fs.readFileSync(0, "utf8"));
  if (job.warm_up) await send(job, job.warm_up);
  const used = process.cpuUsage();
  const began = process.hrtime.bigint();
  await send(job, job.events);
  const seconds = Number(process.hrtime.bigint() - began) / 1e9;
  const { user, system } = process.cpuUsage(used);
  const { version } = JSON.parse(fs.readFileSync(`${process.env.NODE_PATH}/customerio-node/package.json`, "utf8"));
  process.stdout.write(JSON.stringify({ version, seconds, cpu_seconds: (user + system) / 1e6 }));
  process.exit(0); // the agent keeps its connections, and with them the process, open
}

main();
