// Loaded into a measured process before its program: sends its parent the resources that the process has used so far.
import { performance } from 'node:perf_hooks';

process.on('message', ({ collect }) => {
  if (collect) globalThis.gc();
  const { user, system } = process.cpuUsage();
  const { rss, heapUsed, external } = process.memoryUsage();
  process.send({
    atMs: performance.now(),
    /** Processor time of all its threads. */
    cpuMs: (user + system) / 1_000,
    /** How long its event loop was busy. */
    activeMs: performance.eventLoopUtilization().active,
    ...{ rss, heapUsed, external },
  });
});
// The process must be able to end while its parent runs.
process.channel.unref();
