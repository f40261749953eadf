import { BlockList, isIP } from 'node:net';
import { basename, resolve } from 'node:path';
import { readTraceSettings, type TraceSettings } from './trace-settings';

/** A token bucket: `limit` requests per `periodMs` on average, `burst` of them at once. */
export interface Quota {
  readonly limit: number;
  readonly periodMs: number;
  readonly burst: number;
}

/** A SQLite database. */
export interface SqliteTarget {
  readonly type: 'sqlite';
  /** An absolute path, or `:memory:`. */
  readonly path: string;
}

/** A database on a PostgreSQL server. */
export interface PostgresTarget {
  readonly type: 'postgres';
  /** A connection string for node-postgres; it may hold a password. */
  readonly url: string;
}

/** The address of the database. */
export type DatabaseTarget = SqliteTarget | PostgresTarget;

/** The routes whose quota a setting can replace: `CONTROL_PLANE_QUOTA_<ROUTE>`. */
export const QUOTA_ROUTES = [
  'register',
  'heartbeat',
  'claim',
  'extend',
  'report',
  'metrics',
  'config',
] as const;
export type QuotaRoute = (typeof QUOTA_ROUTES)[number];

const LOG_LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const;
const DAY_MS = 86_400_000;
const MIB = 1_024 * 1_024;

/** All settings: read once at start, validated, and frozen. */
export interface Settings {
  readonly host: string;
  readonly port: number;
  readonly database: DatabaseTarget;
  readonly poolSize: number;
  readonly migrateOnStart: boolean;
  /** With less free space on the disk of a SQLite file, bulk writes are refused, in bytes; 0 never refuses. */
  readonly minFreeDisk: number;
  /** The first admin's token; undefined if one is created and kept in a file. */
  readonly adminToken: string | undefined;
  readonly registration: 'open' | 'token';
  readonly enrollmentTokens: readonly string[];
  readonly agentTokenLifetimeMs: number;
  readonly leaseDurationMs: number;
  readonly leaseLifetimeMs: number;
  /** The most live leases of one agent, regardless of the capacities that it sends. */
  readonly maxLeasesPerAgent: number;
  readonly heartbeatTimeoutMs: number;
  readonly retryBackoffMs: number;
  readonly retryBackoffMaxMs: number;
  readonly taskRetentionMs: number;
  /** The kinds of which every target adapts its rate, unless there are bounds for every target of the kind. */
  readonly adaptiveKinds: readonly string[];
  readonly metricsRetentionMs: number;
  readonly idempotencyRetentionMs: number;
  /** Quotas that replace a route's own; null turns the quota off. */
  readonly quotas: Readonly<Partial<Record<QuotaRoute, Quota | null>>>;
  readonly registerPerIp: Quota | null;
  /** For new identities, of all callers together. */
  readonly registerTotal: Quota | null;
  /** How many bytes of metrics, and of observations, an agent may store per day (UTC); null for no limit. */
  readonly metricsBytesPerDay: number | null;
  readonly observationsBytesPerDay: number | null;
  readonly failedAuthPerIp: Quota | null;
  /** For public routes, unknown paths and calls without valid credentials, per address. */
  readonly publicPerIp: Quota | null;
  /** Per operator's token. */
  readonly operatorQuota: Quota | null;
  /** For bodies that can't be parsed, per caller. */
  readonly parseFailures: Quota | null;
  /** Whether the peer at this address is a trusted proxy, whose `X-Forwarded-For` counts. */
  readonly trustProxy: ((address: string) => boolean) | false;
  readonly logLevel: (typeof LOG_LEVELS)[number];
  /** Which requests get a line in the log. */
  readonly logRequests: 'errors' | 'all';
  readonly shutdownTimeoutMs: number;
  /** How long it keeps serving after it is told to stop, so that load balancers notice; part of `shutdownTimeoutMs`. */
  readonly drainMs: number;
  readonly maxEventLoopDelayMs: number;
  readonly maxWriteQueue: number;
  readonly maxInFlight: number;
  readonly maxWaitingClaims: number;
  readonly maxConnections: number;
  /** How long a request may take to arrive. */
  readonly requestTimeoutMs: number;
  /** How long a client may take to read an answer, plus a time that grows with its size. */
  readonly answerTimeoutMs: number;
  /** How many bytes of answers may wait for clients to read them. */
  readonly maxAnswerBytes: number;
  /** Whether `GET /metrics` needs no token. */
  readonly metricsPublic: boolean;
  /** Labels of agents by which the sums of their own metrics are split. */
  readonly metricsLabels: readonly string[];
  /** Whether the documentation is served: `/docs`, `/docs-json`, `/docs-yaml`. */
  readonly docs: boolean;
  /** The PEM file with the Ed25519 key that signs configuration; created at the first start if it is missing. */
  readonly signingKeyFile: string | undefined;
  /** For the command line: the server's address. Undefined if not set. */
  readonly url: string | undefined;
  /** For the command line: the operator's token to send. */
  readonly token: string | undefined;
  /** Packages or paths of extensions, in the order in which they are loaded. */
  readonly extensions: readonly string[];
  /** Variables of the original control plane's command line that are set, and ignored. */
  readonly ignored: readonly string[];
  /** How traces are sent; undefined if traces are off. */
  readonly traces: TraceSettings | undefined;
  /** Problems with OpenTelemetry's variables. They never keep the service from starting. */
  readonly tracesProblems: readonly string[];
}

/** The injection token of {@link Settings}. */
export const SETTINGS = Symbol('settings');

/** A setting is unknown or invalid. The message names the setting and never its value. */
export class SettingsError extends Error {}

const PREFIX = 'CONTROL_PLANE_';
/** Variables of the original control plane's command line: an environment made for it must not stop the start. */
const ORIGINALS = [`${PREFIX}BASE_URL`];
const UNITS_MS: Record<string, number> = { s: 1_000, m: 60_000, h: 3_600_000, d: DAY_MS };

/**
 * Parses `rate/period,burst` (`6/1m,3`): at most `burst` at once and `rate` in each period, which is a number of
 * seconds, minutes, hours or days (`/minute` is the same as `/1m`).
 * @returns undefined if the text is not of that form
 */
export function parseQuota(text: string): Quota | undefined {
  const match = /^(\d{1,9})\/(\d{0,6})(s|m|h|d|second|minute|hour|day),(\d{1,9})$/.exec(text);
  if (!match) return undefined;
  const limit = Number(match[1]);
  const periodMs = (match[2] === '' ? 1 : Number(match[2])) * (UNITS_MS[match[3][0]] as number);
  const burst = Number(match[4]);
  // A bucket counts in integers up to this product, see access/token-buckets.ts.
  const countable = Number.isSafeInteger(burst * periodMs);
  return limit > 0 && periodMs > 0 && burst > 0 && countable ? { limit, periodMs, burst } : undefined;
}

/** Reads settings by name, and remembers which names are known. */
class Reader {
  readonly known = new Set<string>();
  constructor(private readonly env: NodeJS.ProcessEnv) {}

  text(name: string): string | undefined {
    const key = PREFIX + name;
    this.known.add(key);
    const value = this.env[key];
    return value === undefined || value === '' ? undefined : value;
  }

  integer(name: string, fallback: number, min: number, max: number): number {
    const text = this.text(name);
    if (text === undefined) return fallback;
    const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max)) throw bad(name, `must be an integer from ${min} to ${max}`);
    return value;
  }

  /** Reads a number of bytes; null if it is 0 or `off`. */
  bytes(name: string, fallback: number): number | null {
    if (this.text(name) === 'off') return null;
    return this.integer(name, fallback, 0, Number.MAX_SAFE_INTEGER) || null;
  }

  days(name: string, fallback: number): number {
    return this.integer(name, fallback, 1, 3650) * DAY_MS;
  }

  choice<T extends string>(name: string, fallback: T, allowed: readonly T[]): T {
    const text = this.text(name) ?? fallback;
    if (!allowed.includes(text as T)) throw bad(name, `must be one of ${allowed.join(', ')}`);
    return text as T;
  }

  quota(name: string): Quota | null | undefined {
    const text = this.text(name);
    if (text === undefined) return undefined;
    if (text === 'off') return null;
    const quota = parseQuota(text);
    if (!quota) throw bad(name, 'must be rate/period,burst such as 6/1m,3, or off');
    return quota;
  }
}

function bad(name: string, problem: string): SettingsError {
  return new SettingsError(`${PREFIX}${name} ${problem}`);
}

function readBind(reader: Reader): { host: string; port: number } {
  const text = reader.text('BIND') ?? '127.0.0.1:8080';
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]\s]+)):(\d{1,5})$/.exec(text);
  const port = match ? Number(match[3]) : Number.NaN;
  if (!match || !(port <= 65_535))
    throw bad('BIND', 'must be address:port such as 0.0.0.0:8080 or [::1]:8080');
  return { host: (match[1] ?? match[2]) as string, port };
}

function readDatabase(reader: Reader): DatabaseTarget {
  const target = parseDatabaseUrl(reader.text('DATABASE_URL') ?? 'sqlite://control-plane.db');
  if (typeof target === 'string') throw bad('DATABASE_URL', target);
  return target;
}

/** Parses the address of a database. @returns the problem, as the end of a sentence, if it is invalid; without the address */
export function parseDatabaseUrl(text: string): DatabaseTarget | string {
  if (text === 'sqlite::memory:') return { type: 'sqlite', path: ':memory:' };
  if (/^postgres(?:ql)?:\/\//.test(text)) {
    const url = URL.parse(text);
    // If a password holds one of these characters unescaped, a part of it would be parsed as a port or name, and be shown.
    const isComplete = url && url.hostname !== '' && url.hash === '' && /^\/[^/@]+$/.test(url.pathname);
    if (!isComplete || !isDecodable(`${url.username}:${url.password}${url.pathname}`))
      return 'must name a host and a database: postgres://user:password@host:5432/name, with % / ? # @ in a password written as %25 %2F %3F %23 %40';
    return { type: 'postgres', url: text };
  }
  const path = text.startsWith('sqlite://') ? text.slice('sqlite://'.length) : '';
  if (path === '' || path.includes('?') || path.includes('\0'))
    return 'must be sqlite://file.db, sqlite:///absolute/file.db, sqlite::memory: or postgres://user:password@host/name';
  return { type: 'sqlite', path: resolve(path) };
}

function isDecodable(text: string): boolean {
  try {
    decodeURIComponent(text);
    return true;
  } catch {
    return false;
  }
}

function readTrustProxy(reader: Reader): Settings['trustProxy'] {
  const text = reader.text('TRUST_PROXY');
  if (text === undefined) return false;
  const trusted = new BlockList();
  for (const entry of text.split(',').map((part) => part.trim())) {
    const [address, prefix] = entry.split('/');
    const family = isIP(address ?? '');
    const bits =
      prefix === undefined ? (family === 4 ? 32 : 128) : /^\d{1,3}$/.test(prefix) ? Number(prefix) : -1;
    if (family === 0 || bits < 0 || bits > (family === 4 ? 32 : 128)) {
      throw bad('TRUST_PROXY', 'must be a list of addresses or CIDR ranges such as 10.0.0.0/8,::1');
    }
    trusted.addSubnet(address as string, bits, family === 4 ? 'ipv4' : 'ipv6');
  }
  return (address) => {
    const family = isIP(address);
    return family !== 0 && trusted.check(address, family === 4 ? 'ipv4' : 'ipv6');
  };
}

function readAdminToken(reader: Reader): string | undefined {
  const token = reader.text('ADMIN_TOKEN');
  if (token !== undefined && !/^[\x21-\x7e]{24,512}$/.test(token)) {
    throw bad('ADMIN_TOKEN', 'must be 24 to 512 visible ASCII characters');
  }
  return token;
}

function readEnrollmentTokens(reader: Reader): string[] {
  const text = reader.text('ENROLLMENT_TOKENS');
  if (text === undefined) return [];
  const tokens = text.split(',').map((token) => token.trim());
  if (tokens.some((token) => !/^[\x21-\x7e]{24,512}$/.test(token))) {
    throw bad(
      'ENROLLMENT_TOKENS',
      'must be a comma-separated list of tokens of 24 to 512 visible ASCII characters',
    );
  }
  return tokens;
}

function readToken(reader: Reader): string | undefined {
  const token = reader.text('TOKEN');
  if (token !== undefined && !/^[\x21-\x7e]{1,512}$/.test(token))
    throw bad('TOKEN', 'must be 1 to 512 visible ASCII characters');
  return token;
}

function readUrl(reader: Reader): string | undefined {
  const text = reader.text('URL');
  if (text === undefined) return undefined;
  const url = URL.parse(text);
  if (
    !url ||
    !/^https?:$/.test(url.protocol) ||
    url.username !== '' ||
    url.password !== '' ||
    url.search !== ''
  )
    throw bad(
      'URL',
      'must be the address of a control plane such as http://127.0.0.1:8080, without credentials',
    );
  return url.href.replace(/\/+$/, '');
}

/** The drain leaves at least a second of the shutdown timeout for requests in flight. */
function readDrain(reader: Reader, shutdownTimeoutMs: number): number {
  const max = shutdownTimeoutMs - 1_000;
  const drainMs = reader.integer('DRAIN_MS', Math.min(3_000, max), 0, 600_000);
  if (drainMs > max)
    throw bad('DRAIN_MS', `must be at least 1,000 below ${PREFIX}SHUTDOWN_TIMEOUT_MS: at most ${max}`);
  return drainMs;
}

/** Whether they exist is known once extensions are loaded. */
function readAdaptiveKinds(reader: Reader): readonly string[] {
  const names = (reader.text('ADAPTIVE_KINDS') ?? '').split(',').flatMap((part) => part.trim() || []);
  if (names.some((name) => !/^[a-z][a-z0-9_-]{0,63}$/.test(name)))
    throw bad('ADAPTIVE_KINDS', 'must be a comma-separated list of task kinds');
  return [...new Set(names)];
}

/** Agents' labels that become labels of Prometheus, so they must not clash with labels that the series have. */
function readMetricsLabels(reader: Reader): string[] {
  const names = (reader.text('METRICS_LABELS') ?? '').split(',').flatMap((part) => part.trim() || []);
  const isUsable = (name: string) =>
    /^[a-z][a-z0-9_]{0,62}$/.test(name) && !['name', 'stat', 'job', 'instance', 'le'].includes(name);
  if (names.length > 3 || new Set(names).size < names.length || !names.every(isUsable))
    throw bad(
      'METRICS_LABELS',
      'must be a comma-separated list of at most 3 names of labels, each once, of lower case letters, digits and _, and none of name, stat, job, instance, le',
    );
  return names;
}

function readExtensions(reader: Reader): string[] {
  const text = reader.text('EXTENSIONS');
  if (text === undefined) return [];
  const specifiers = text.split(',').map((part) => part.trim());
  if (specifiers.includes('') || new Set(specifiers).size < specifiers.length)
    throw bad('EXTENSIONS', 'must be a comma-separated list of packages or paths, each once');
  return specifiers;
}

/**
 * Reads and validates every `CONTROL_PLANE_*` variable, and those of OpenTelemetry.
 * @throws SettingsError naming the first setting that is unknown or invalid, without its value
 */
export function readSettings(env: NodeJS.ProcessEnv = process.env): Settings {
  const reader = new Reader(env);
  const quotas: Partial<Record<QuotaRoute, Quota | null>> = {};
  for (const route of QUOTA_ROUTES) {
    const quota = reader.quota(`QUOTA_${route.toUpperCase()}`);
    if (quota !== undefined) quotas[route] = quota;
  }
  const registerPerIp = reader.quota('REGISTER_PER_IP');
  const registerTotal = reader.quota('REGISTER_TOTAL');
  const failedAuthPerIp = reader.quota('FAILED_AUTH_PER_IP');
  const publicPerIp = reader.quota('QUOTA_PUBLIC');
  const operatorQuota = reader.quota('QUOTA_OPERATOR');
  const parseFailures = reader.quota('PARSE_FAILURES');
  const leaseDurationMs = reader.integer('LEASE_DURATION_MS', 60_000, 1_000, DAY_MS);
  const shutdownTimeoutMs = reader.integer('SHUTDOWN_TIMEOUT_MS', 9_000, 1_000, 600_000);
  const retryBackoffMs = reader.integer('RETRY_BACKOFF_MS', 1_000, 1, DAY_MS);
  const traces = readTraceSettings(env);
  const settings: Settings = {
    ...readBind(reader),
    database: readDatabase(reader),
    poolSize: reader.integer('POOL_SIZE', 10, 1, 1_000),
    migrateOnStart: reader.choice('MIGRATE_ON_START', 'true', ['true', 'false']) === 'true',
    minFreeDisk: reader.integer('MIN_FREE_DISK_MB', 512, 0, 1_000_000) * 1024 * 1024,
    adminToken: readAdminToken(reader),
    registration: reader.choice('REGISTRATION', 'open', ['open', 'token']),
    enrollmentTokens: readEnrollmentTokens(reader),
    agentTokenLifetimeMs: reader.integer('AGENT_TOKEN_LIFETIME_MS', 0, 0, 3650 * DAY_MS),
    leaseDurationMs,
    leaseLifetimeMs: reader.integer(
      'LEASE_LIFETIME_MS',
      Math.max(3_600_000, leaseDurationMs),
      leaseDurationMs,
      7 * DAY_MS,
    ),
    maxLeasesPerAgent: reader.integer('MAX_LEASES_PER_AGENT', 1_000, 1, 100_000),
    heartbeatTimeoutMs: reader.integer('HEARTBEAT_TIMEOUT_MS', 45_000, 1_000, DAY_MS),
    retryBackoffMs,
    retryBackoffMaxMs: reader.integer(
      'RETRY_BACKOFF_MAX_MS',
      Math.max(300_000, retryBackoffMs),
      retryBackoffMs,
      7 * DAY_MS,
    ),
    taskRetentionMs: reader.days('TASK_RETENTION_DAYS', 30),
    adaptiveKinds: readAdaptiveKinds(reader),
    metricsRetentionMs: reader.days('METRICS_RETENTION_DAYS', 30),
    idempotencyRetentionMs: reader.days('IDEMPOTENCY_RETENTION_DAYS', 1),
    quotas: Object.freeze(quotas),
    registerPerIp: registerPerIp === undefined ? { limit: 600, periodMs: 60_000, burst: 600 } : registerPerIp,
    registerTotal:
      registerTotal === undefined ? { limit: 3_600, periodMs: 3_600_000, burst: 1_000 } : registerTotal,
    metricsBytesPerDay: reader.bytes('METRICS_BYTES_PER_DAY', 64 * MIB),
    observationsBytesPerDay: reader.bytes('OBSERVATIONS_BYTES_PER_DAY', 256 * MIB),
    failedAuthPerIp:
      failedAuthPerIp === undefined ? { limit: 30, periodMs: 60_000, burst: 30 } : failedAuthPerIp,
    publicPerIp: publicPerIp === undefined ? { limit: 600, periodMs: 60_000, burst: 200 } : publicPerIp,
    operatorQuota:
      operatorQuota === undefined ? { limit: 1_200, periodMs: 60_000, burst: 300 } : operatorQuota,
    parseFailures: parseFailures === undefined ? { limit: 120, periodMs: 60_000, burst: 120 } : parseFailures,
    trustProxy: readTrustProxy(reader),
    logLevel: reader.choice('LOG_LEVEL', 'info', LOG_LEVELS),
    logRequests: reader.choice('LOG_REQUESTS', 'errors', ['errors', 'all']),
    shutdownTimeoutMs,
    drainMs: readDrain(reader, shutdownTimeoutMs),
    maxEventLoopDelayMs: reader.integer('MAX_EVENT_LOOP_DELAY_MS', 500, 10, 60_000),
    maxWriteQueue: reader.integer('MAX_WRITE_QUEUE', 4_000, 1, 1_000_000),
    maxInFlight: reader.integer('MAX_IN_FLIGHT', 5_000, 1, 1_000_000),
    maxWaitingClaims: reader.integer('MAX_WAITING_CLAIMS', 100_000, 0, 1_000_000),
    maxConnections: reader.integer('MAX_CONNECTIONS', 150_000, 1, 1_000_000),
    requestTimeoutMs: reader.integer('REQUEST_TIMEOUT_MS', 30_000, 1_000, 600_000),
    answerTimeoutMs: reader.integer('ANSWER_TIMEOUT_MS', 30_000, 1_000, 600_000),
    maxAnswerBytes: reader.integer('MAX_ANSWER_BYTES', 256 * MIB, 32 * MIB, 65_536 * MIB),
    metricsPublic: reader.choice('METRICS_PUBLIC', 'false', ['true', 'false']) === 'true',
    metricsLabels: readMetricsLabels(reader),
    docs: reader.choice('DOCS', 'on', ['on', 'off']) === 'on',
    signingKeyFile: reader.text('SIGNING_KEY_FILE'),
    url: readUrl(reader),
    token: readToken(reader),
    extensions: readExtensions(reader),
    ignored: Object.freeze(ORIGINALS.filter((name) => name in env)),
    traces: traces.settings,
    tracesProblems: Object.freeze(traces.problems),
  };
  // Checked last, when the reader has seen every known name.
  for (const name of Object.keys(env)) {
    if (ORIGINALS.includes(name)) continue;
    if (name.startsWith(PREFIX) && !reader.known.has(name) && !name.startsWith(`${PREFIX}TEST_`)) {
      throw new SettingsError(`${name} is not a setting of this program; see docs/control-plane-deploy.md`);
    }
  }
  return Object.freeze(settings);
}

/** The path of a file beside the database: for `control-plane.db` it is `control-plane.<suffix>`. */
function fileBesideDatabase(database: DatabaseTarget, suffix: string): string {
  if (database.type === 'postgres') return resolve(`control-plane.${suffix}`);
  return database.path === ':memory:'
    ? resolve(`control-plane.memory.${suffix}`)
    : `${database.path.replace(/\.(db|sqlite3?)$/, '')}.${suffix}`;
}

/** The file with the admin's token, if the program created it. */
export const adminTokenFile = (database: DatabaseTarget): string =>
  fileBesideDatabase(database, 'admin-token');

/** The file by which the command line of the same machine finds a running server. */
export const serverFile = (database: DatabaseTarget): string => fileBesideDatabase(database, 'server.json');

/**
 * Identifies a database among those whose servers write files of the same name: PostgreSQL databases served from one folder, or
 * `x.db` and `x.sqlite`. It holds no password.
 */
export function databaseIdentity(database: DatabaseTarget): string {
  // The folder is that of the file that holds the identity.
  if (database.type === 'sqlite') return `sqlite:${basename(database.path)}`;
  const { hostname, port, pathname } = new URL(database.url);
  return `postgres:${hostname.toLowerCase()}:${port || 5432}${pathname}`;
}

/** The file with the keys that sign configuration. */
export const signingKeysFile = (settings: Pick<Settings, 'database' | 'signingKeyFile'>): string =>
  settings.signingKeyFile ?? fileBesideDatabase(settings.database, 'signing-key.pem');

/** Whether an address can be reached only from this machine. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^(?:::ffff:)?127\./i.test(host);
}

/** Whether anyone who reaches the service from another machine can register agents. */
export function hasPublicRegistration({
  host,
  registration,
}: Pick<Settings, 'host' | 'registration'>): boolean {
  return registration === 'open' && !isLoopback(host);
}

/** Whether the database ends with the process. */
export function isInMemory(database: DatabaseTarget): boolean {
  return database.type === 'sqlite' && database.path === ':memory:';
}
