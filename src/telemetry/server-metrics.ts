import type { FastifyInstance } from 'fastify';
import { collectDefaultMetrics, Registry } from 'prom-client';
import type { Database } from '../database/database';
import type { AnswerLimits } from '../http/answer-limits';
import type { ControlPlaneRequest } from '../http/control-plane-request';
import { refusalOf } from '../http/error-filter';
import { waitedMs } from '../http/hang-up';
import { type RequestEnds, UNANSWERED } from '../http/request-ends';
import { type RouteDeclaration, routeOf } from '../http/route-declaration';
import { QUOTA_ROUTES, type Settings } from '../settings';
import { tracing } from '../tracing';
import type { InFlight } from './in-flight';
import type { Lifecycle } from './lifecycle';
import type { LogOutput } from './log-output';
import type { Meter } from './meter';
import type { Overload } from './overload';
import { METHODS } from './request-spans';

/** Upper bounds in seconds; they include each service level of the contract. */
const REQUEST_BUCKETS = [
  0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 1, 2.5, 5, 10,
];
const COMMIT_BUCKETS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5];
const UNIT_BUCKETS = [1, 2, 5, 10, 20, 50, 100, 200, 512];

/** Routes by method and class of status: a few hundred, and those of extensions. */
const MAX_REQUEST_SERIES = 2_000;

/** Gauges of prom-client named like counters, which Prometheus' linter reports; the same values exist under other names. */
const MISNAMED = [
  'nodejs_active_handles_total',
  'nodejs_active_requests_total',
  'nodejs_active_resources_total',
];

/** The reasons for which requests to a route can be refused, by the route's access. */
const OF_PUBLIC = ['quota', 'overload', 'in_flight'];
const OF_CALLERS = [...OF_PUBLIC, 'authentication', 'forbidden'];
const OF_AGENTS = [...OF_CALLERS, 'disk', 'database'];

/** All quotas, except those of extensions. */
const QUOTAS = [
  ...QUOTA_ROUTES,
  ...['register-per-ip', 'register-total', 'public', 'health', 'operator', 'parse-failures', 'failed-auth'],
  ...['metrics_bytes_per_day', 'observations_bytes_per_day'],
];

/** The parts of the process that are observed. */
export interface Observed {
  readonly settings: Pick<Settings, 'database' | 'minFreeDisk'>;
  readonly version: string;
  readonly database: Database;
  readonly lifecycle: Lifecycle;
  readonly overload: Overload;
  readonly answers: AnswerLimits;
  readonly inFlight: InFlight;
  readonly ends: RequestEnds;
  /** The log's output, if it is ours. */
  readonly log: LogOutput | undefined;
}

/** Declares and updates the metrics of the process itself: its requests, database, limits and runtime. */
export function observeProcess(meter: Meter, http: FastifyInstance, observed: Observed): void {
  observeRuntime(meter, observed);
  observeRequests(meter, http, observed);
  observeDatabase(meter, observed);
}

let runtime: Registry | undefined;

/** prom-client's metrics of the runtime, created once for the process: its observers can't be stopped. */
function runtimeMetrics(): Registry {
  if (runtime) return runtime;
  runtime = new Registry();
  collectDefaultMetrics({ register: runtime });
  for (const name of MISNAMED) runtime.removeSingleMetric(name);
  return runtime;
}

function observeRuntime(
  meter: Meter,
  { settings, version, lifecycle, overload, log }: Omit<Observed, 'database'>,
): void {
  meter.include(runtimeMetrics());
  meter
    .gauge({
      name: 'build_info',
      help: 'Always 1: which version runs, on which Node.js and database.',
      labels: ['version', 'node', 'database'],
    })
    .set({ version, node: process.version, database: settings.database.type }, 1);
  meter.readGauge({ name: 'draining', help: '1 after the process was asked to stop, else 0.' }, () =>
    lifecycle.draining ? 1 : 0,
  );
  meter.readGauge(
    {
      name: 'event_loop_delay_seconds',
      help: 'Mean delay of the event loop in the last half second.',
    },
    () => overload.loopDelayMs / 1_000,
  );
  meter.readGauge(
    {
      name: 'overload_ratio',
      help: 'The load as a share of the limit: at 1 new work is refused, at 2 everything is.',
    },
    () => overload.level,
  );
  meter.readCounter(
    {
      name: 'trace_spans_lost_total',
      help: 'Spans that could not be sent: the collector did not accept them, or too many waited.',
    },
    () => tracing?.lost ?? 0,
  );
  meter.readCounter(
    { name: 'log_lines_dropped_total', help: 'Log lines that the output did not accept.' },
    () => log?.droppedTotal ?? 0,
  );
}

function observeRequests(meter: Meter, http: FastifyInstance, { answers, inFlight, ends }: Observed): void {
  const durations = meter.histogram({
    name: 'http_request_duration_seconds',
    help: 'How long requests took until the answer was sent or the caller gave up, not counting the time that a claim waited for work.',
    labels: ['method', 'route', 'status'],
    buckets: REQUEST_BUCKETS,
    maxSeries: MAX_REQUEST_SERIES,
  });
  const refused = meter.counter({
    name: 'requests_refused_total',
    help: 'Requests that were refused before they had an effect, by reason.',
    labels: ['route', 'reason'],
    maxSeries: MAX_REQUEST_SERIES,
  });
  const quotas = meter.counter({
    name: 'quota_refusals_total',
    help: 'Requests that were over a quota, by quota.',
    labels: ['quota'],
  });
  // A series that starts with a burst shows no increase: the series that alerts use start with their route.
  for (const quota of QUOTAS) quotas.add({ quota }, 0);
  http.addHook('onRoute', ({ url, method, config }) => {
    const { declared } = (config ?? {}) as { declared?: RouteDeclaration };
    if (!declared) return;
    const route = patternOf(url);
    const isAgents = declared.access.kind === 'agent' || declared.quota !== undefined;
    const reasons = declared.access.kind === 'public' ? OF_PUBLIC : OF_CALLERS;
    for (const reason of isAgents ? OF_AGENTS : reasons) refused.add({ route, reason }, 0);
    for (const each of isAgents ? [method].flat() : [])
      for (const status of ['2xx', '5xx', UNANSWERED]) durations.begin({ method: each, route, status });
  });
  ends.onEnd((request, reply, isAnswered) => {
    const route = nameOf(request);
    durations.observe(
      {
        method: METHODS.has(request.method) ? request.method : 'OTHER',
        route,
        status: isAnswered ? `${Math.floor(reply.statusCode / 100)}xx` : UNANSWERED,
      },
      Math.max(0, reply.elapsedTime - waitedMs(request)) / 1_000,
    );
    const refusal = request.refusal && refusalOf(request.refusal);
    if (refusal) {
      refused.add({ route, reason: refusal.reason });
      if (refusal.quota !== undefined) quotas.add({ quota: refusal.quota });
    }
  });

  const dropped = { limit: 0, unreadable: 0 };
  http.server.on('drop', () => {
    dropped.limit++;
  });
  // Fastify's own listener comes first and stays; it answers.
  http.server.on('clientError', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'ECONNRESET') dropped.unreadable++;
  });
  meter.readGauge({ name: 'connections', help: 'Open connections.' }, () => inFlight.connected);
  meter.readGauge({ name: 'long_polls', help: 'Claims that wait for work.' }, () => inFlight.waitingClaims);
  meter.readGauge(
    { name: 'requests_in_flight', help: 'Requests that are being handled, without claims that wait.' },
    () => inFlight.working,
  );
  meter.readGauge(
    { name: 'answers_sending_bytes', help: 'Bytes of answers that are being sent.' },
    () => answers.load.bytes,
  );
  meter.tallies(
    {
      name: 'connections_refused_total',
      help: 'Connections that were refused or closed because of their clients, by reason.',
      labels: ['reason'],
    },
    () => ({ ...dropped, ...answers.closed }),
  );
}

const nameOf = (request: ControlPlaneRequest): string => patternOf(routeOf(request).url ?? 'unknown');

/** The pattern of a route; all pages of the documentation count as one. */
const patternOf = (url: string): string => (url.startsWith('/docs') ? '/docs' : url);

function observeDatabase(
  meter: Meter,
  { settings, database }: Pick<Observed, 'settings' | 'database'>,
): void {
  const units = meter.histogram({
    name: 'commit_units',
    help: 'Units of work that shared a commit.',
    buckets: UNIT_BUCKETS,
  });
  const duration = meter.histogram({
    name: 'commit_duration_seconds',
    help: 'How long commits took to be on the disk.',
    buckets: COMMIT_BUCKETS,
  });
  const failures = meter.counter({ name: 'commit_failures_total', help: 'Commits that failed.' });
  failures.add({}, 0);
  database.onCommit((commit) => {
    if (commit.failed) {
      failures.add({});
      return;
    }
    units.observe({}, commit.units);
    duration.observe({}, commit.durationMs / 1_000);
  });
  meter.readGauge(
    { name: 'write_queue_depth', help: 'Units of work that wait to be written, or for a connection.' },
    () => database.writeQueueDepth,
  );
  const size = meter.gauge({
    name: 'database_size_bytes',
    help: 'Size of the database on the disk, with its log.',
  });
  const isOnOurDisk = settings.database.type === 'sqlite';
  const free = isOnOurDisk
    ? meter.gauge({ name: 'disk_free_bytes', help: "Free space on the database's disk for this process." })
    : undefined;
  const pool = isOnOurDisk
    ? undefined
    : {
        connections: meter.gauge({
          name: 'database_connections',
          help: 'Connections of the pool.',
          labels: ['state'],
        }),
        waiting: meter.gauge({
          name: 'database_connections_waiting',
          help: 'Units of work that wait for a connection.',
        }),
      };
  if (isOnOurDisk)
    meter.readGauge(
      {
        name: 'disk_watermark_bytes',
        help: 'With fewer free bytes on the disk, bulk writes are refused; 0 never refuses.',
      },
      () => settings.minFreeDisk,
    );
  meter.onScrape(async () => {
    const stats = await database.stats();
    if (stats.sizeBytes !== undefined) size.set({}, stats.sizeBytes);
    if (stats.freeBytes !== undefined) free?.set({}, stats.freeBytes);
    if (!stats.connections) return;
    const { idle, busy, waiting } = stats.connections;
    pool?.connections.set({ state: 'idle' }, idle);
    pool?.connections.set({ state: 'busy' }, busy);
    pool?.waiting.set({}, waiting);
  });
}
