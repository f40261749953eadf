// The memory of claims that wait for tasks, without that of their sockets: the growth when connected agents begin to
// wait.
import { setTimeout as sleep } from 'node:timers/promises';
import { Connection, requestText } from './connection.mjs';
import { each, register } from './load.mjs';
import { maxOpenFiles, startBareWait, startServer } from './processes.mjs';
import { count, figure, table } from './report.mjs';
import { agentHeaders, claimBody, heartbeatBody } from './wire.mjs';

const SIZES = [10_000, 100_000];
const WAIT_MS = 30_000;
/** Reserved for files that are not sockets. */
const SPARE_FILES = 500;
/** The number of claims that are sent before waiting until the server has read them. */
const SENT_AT_ONCE = 250;
const CONNECTED_AT_ONCE = 64;
/** One loopback address has some 28,000 ports to connect from, and those of closed connections are not free at once. */
const SOCKETS_AN_ADDRESS = 4_000;
const AIM_KIB = 1.5;

export async function polls({ database, quick }) {
  // A connection's requests are handled one after the other: each claim that waits needs a socket, at both ends.
  const most = maxOpenFiles() - SPARE_FILES;
  const sizes = [...new Set(SIZES.map((size) => Math.min(size, most)))];
  const rows = [];
  for (const size of quick ? sizes.slice(0, 1) : sizes) {
    rows.push({
      name: 'bare node:http',
      ...(await measure(await startBareWait(), strangers(size), { isAnswered: false })),
    });
    const server = await startServer(database);
    rows.push({ name: 'control plane', ...(await measure(server, (await register(server, size)).agents)) });
  }
  return [
    table(
      `Memory of waiting claims (${database})`,
      {
        Server: ({ name }) => name,
        Claims: ({ waiting }) => count(waiting),
        Sockets: ({ size }) => count(size),
        'An idle socket, KiB RSS': ({ socket }) => figure(socket.rss),
        'KiB heap of it': ({ socket }) => figure(socket.heap),
        'A waiting claim on it, KiB RSS': ({ claim }) => figure(claim.rss),
        'KiB heap of that': ({ claim }) => figure(claim.heap),
        Aim: () => `≤ ${AIM_KIB} KiB`,
        Met: ({ claim }) => (claim.heap <= AIM_KIB ? 'yes' : 'no'),
        'Sent in, s': ({ sentInMs }) => figure(sentInMs / 1_000),
        'Answered at once': ({ early }) =>
          Object.entries(early)
            .map(([status, times]) => `${times} × ${status}`)
            .join(', ') || '0',
      },
      rows,
      [
        'Each after a garbage collection: with every socket idle after a heartbeat and a claim that found nothing, against before they were opened; and with claims waiting on them, against that.',
        'Bare node:http reads the same requests and never answers the claims.',
        `Aimed at ${SIZES.map(count).join(' and ')}; here a process may have ${count(maxOpenFiles())} files open (ulimit -n), and each claim that waits takes a socket.`,
      ],
    ),
  ];
}

/** Agents of a server that knows none. */
const strangers = (size) =>
  Array.from({ length: size }, (_, i) => ({ id: i + 1, token: `dcpa_${'x'.repeat(49)}` }));

async function measure(server, agents, { isAnswered } = { isAnswered: true }) {
  const size = agents.length;
  const connections = agents.map(
    (_, i) => new Connection(server.port, `127.0.0.${2 + Math.floor(i / SOCKETS_AN_ADDRESS)}`),
  );
  const before = await server.usage({ collect: true });
  const indexes = agents.map((_, i) => i);
  await each(indexes, CONNECTED_AT_ONCE, async (i) => {
    const headers = agentHeaders(agents[i]);
    await connections[i].post('/heartbeat', heartbeatBody(agents[i]), headers);
    // What the server learns of an agent by its first claim is no part of a wait.
    if (isAnswered) await connections[i].post('/claim', claimBody(agents[i], 1), headers);
  });
  await sleep(1_000);
  const idle = await server.usage({ collect: true });

  const early = {};
  let isOver = false;
  const control = new Connection(server.port);
  const beat = () => control.post('/heartbeat', heartbeatBody(agents[0]), agentHeaders(agents[0]));
  const sentFrom = performance.now();
  for (let i = 0; i < size; i++) {
    const body = JSON.stringify(claimBody(agents[i], 1, WAIT_MS));
    connections[i].send(requestText('POST', '/claim', agentHeaders(agents[i]), body), (status) => {
      if (!isOver) early[status] = (early[status] ?? 0) + 1;
    });
    // Its answer comes after the claims were read.
    if (i % SENT_AT_ONCE === 0) await beat();
    // The first claims must still wait when all others do.
    if (performance.now() - sentFrom > WAIT_MS - 5_000) break;
  }
  await beat();
  const sentInMs = performance.now() - sentFrom;
  await sleep(1_000);
  const polling = await server.usage({ collect: true });
  isOver = true;
  const waiting = connections.reduce((sum, { unanswered }) => sum + unanswered, 0);
  for (const connection of [control, ...connections]) connection.close();
  await server.stop();
  if (waiting === 0) throw new Error(`no claim waits; answers by status: ${JSON.stringify(early)}`);
  const kib = (from, to, name, by) => (to[name] - from[name]) / 1024 / by;
  return {
    ...{ size, waiting, early, sentInMs },
    socket: {
      rss: kib(before, idle, 'rss', size),
      heap: kib(before, idle, 'heapUsed', size),
    },
    claim: {
      rss: kib(idle, polling, 'rss', waiting),
      heap: kib(idle, polling, 'heapUsed', waiting),
    },
  };
}
