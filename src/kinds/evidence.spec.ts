import fc from 'fast-check';
import { dnsEvidence, httpEvidence, pingEvidence, tcpEvidence, traceEvidence } from './evidence';
import type { Observation } from './observations';
import { type EndedCheck, SIGNALS, type Signal, targetSignal } from './signals';

const NOW = Date.parse('2026-01-05T10:00:00.000Z');

const KINDS = {
  dns: dnsEvidence,
  http: httpEvidence,
  tcp: tcpEvidence,
  ping: pingEvidence,
  trace: traceEvidence,
} as const;
type Kind = keyof typeof KINDS;
const NAMES = Object.keys(KINDS) as Kind[];

/** Observations of one value each, by their names. */
const list = (values: Record<string, unknown>): Observation[] =>
  Object.entries(values).map(([name, value]) => ({ name, value }));
const read = (kind: Kind, observations: Observation[]) =>
  KINDS[kind]({ outcome: null, observations, received_at: NOW });
const signalOf = (kind: Kind, values: Record<string, unknown>) => read(kind, list(values))?.signal;

const NODE_ERROR = (code: string) => `connect ${code} 192.0.2.1:443`;
const IMF_DATE = (seconds: number) => new Date(NOW + seconds * 1_000).toUTCString();

describe('what observations show', () => {
  it.each<[Kind, Record<string, unknown>, Signal | undefined]>([
    // What examples/agent.mjs, bench/wire.mjs and the whois example send.
    ['dns', { rtt_ms: 12.34, records: ['192.0.2.7'] }, 'answered'],
    ['dns', { rtt: 12.5, answers: ['192.0.2.1', '192.0.2.2'] }, 'answered'],
    ['dns', { rtt_ms: 4_000.5, error: 'ETIMEOUT' }, 'bad'],
    ['dns', { rtt_ms: 1.5, error: 'ENOTFOUND' }, 'answered'],
    ['dns', { rtt_ms: 1.5, error: 'ENODATA' }, 'answered'],
    ['dns', { rtt_ms: 1.5, error: 'ESERVFAIL' }, 'answered'],
    ['dns', { rtt_ms: 1.5, error: 'EFORMERR' }, 'answered'],
    ['dns', { rtt_ms: 1.5, error: 'EREFUSED' }, 'pushed_back'],
    ['dns', { rtt_ms: 1.5, error: 'ECONNREFUSED' }, 'answered'],
    ['dns', { rtt_ms: 1.5, error: 'EBADNAME' }, 'local'],
    ['dns', { rtt_ms: 1.5, error: 'ECANCELLED' }, 'local'],
    // Response codes.
    ['dns', { rcode: 5 }, 'pushed_back'],
    ['dns', { rcode: '5' }, 'pushed_back'],
    ['dns', { rcode: 'REFUSED' }, 'pushed_back'],
    ['dns', { RCode: 'Query Refused' }, 'pushed_back'],
    ['dns', { 'response-code': 'refused' }, 'pushed_back'],
    ['dns', { rcode: 0 }, 'answered'],
    ['dns', { rcode: 2, error: 'timeout' }, 'answered'],
    ['dns', { rcode: 'NOERROR' }, 'answered'],
    ['dns', { rcode: 'NXDOMAIN', outcome: 'error' }, 'answered'],
    ['dns', { rcode: 'SERVFAIL' }, 'answered'],
    ['dns', { rcode: 'Non-Existent Domain' }, 'answered'],
    ['dns', { rcode: 'TIMEOUT' }, 'bad'],
    ['dns', { rcode: -1 }, undefined],
    ['dns', { rcode: 1e308 }, undefined],
    ['dns', { rcode: '' }, undefined],
    ['dns', { rcode: null, error: 'timed out' }, 'bad'],
    ['dns', { rcode: { code: 5 } }, undefined],
    ['dns', { rcode: 'x'.repeat(65) }, undefined],
    // Errors of other resolvers.
    ['dns', { error: 'server refused the query' }, 'pushed_back'],
    ['dns', { error: 'io error: Connection refused (os error 111)' }, 'answered'],
    ['dns', { error: 'ConnectionRefused' }, 'answered'],
    ['dns', { error: 'request timed out' }, 'bad'],
    ['dns', { error: 'proto error: deadline has elapsed' }, 'bad'],
    ['dns', { error: 'lookup example.com: no such host' }, 'answered'],
    ['dns', { error: 'no record found for Query' }, 'answered'],
    ['dns', { error: 'no servers could be reached' }, 'bad'],
    ['dns', { error: 'no resolvers' }, 'local'],
    ['dns', { error: 'read udp: icmp port unreachable' }, 'answered'],
    ['dns', { error: 'Network is unreachable (os error 101)' }, 'bad'],
    ['dns', { error: 'network is down' }, 'local'],
    ['dns', { status: 'timeout' }, 'bad'],
    ['dns', { status: 'ok' }, 'answered'],
    ['dns', { records: [] }, undefined],
    ['dns', { records: 'none' }, undefined],
    ['dns', { rtt_ms: 5 }, undefined],

    ['http', { status: 200, rtt_ms: 5 }, 'answered'],
    ['http', { status: 500 }, 'answered'],
    ['http', { status_code: 404 }, 'answered'],
    ['http', { statusCode: 429 }, 'pushed_back'],
    ['http', { http_status: '503' }, 'pushed_back'],
    ['http', { status: '429 Too Many Requests' }, 'pushed_back'],
    ['http', { status: 'HTTP/1.1 503 Service Unavailable' }, 'pushed_back'],
    ['http', { http_code: '000', error: 'timeout' }, 'bad'],
    ['http', { status: 0, error: NODE_ERROR('ECONNRESET') }, 'answered'],
    ['http', { status: 429.5 }, undefined],
    ['http', { status: 42_900 }, undefined],
    ['http', { status: [429] }, undefined],
    ['http', { status: '4290' }, undefined],
    ['http', { status: `429 ${'x'.repeat(64)}` }, undefined],
    ['http', { error: 'the server answered status 429' }, 'pushed_back'],
    ['http', { error: 'HTTP 503' }, 'pushed_back'],
    ['http', { error: 'Too Many Requests' }, 'pushed_back'],
    ['http', { error: 'request to http://192.0.2.1/timeout failed' }, undefined],
    [
      'http',
      { error: 'no answer from https://status.example/429 yet: connection reset by peer' },
      'answered',
    ],
    ['http', { error: 'UND_ERR_CONNECT_TIMEOUT' }, 'bad'],
    ['http', { error: 'certificate has expired' }, 'answered'],
    ['http', { error: 'unable to get local issuer certificate' }, 'answered'],
    ['http', { error: 'HPE_INVALID_CONSTANT' }, 'answered'],
    ['http', { error: 'getaddrinfo ENOTFOUND example.com' }, 'local'],
    ['http', { error: 'dns error: failed to lookup address information' }, 'local'],
    ['http', { error: `sending to ${'a'.repeat(2_000)} failed: tcp connect error: timed out` }, 'bad'],

    ['tcp', { connected: true, rtt_ms: 3 }, 'answered'],
    ['tcp', { open: 'true' }, 'answered'],
    ['tcp', { connected: false, error: NODE_ERROR('ECONNREFUSED') }, 'answered'],
    ['tcp', { connected: false }, undefined],
    ['tcp', { state: 'closed' }, 'answered'],
    ['tcp', { state: 'filtered' }, 'bad'],
    ['tcp', { status: 'refused' }, 'answered'],
    ['tcp', { error: 'Connection reset by peer (os error 104)' }, 'answered'],
    ['tcp', { error: NODE_ERROR('ETIMEDOUT') }, 'bad'],
    ['tcp', { error: NODE_ERROR('EHOSTUNREACH') }, 'bad'],
    ['tcp', { error: NODE_ERROR('ENETUNREACH') }, 'bad'],
    ['tcp', { error: 'No route to host (os error 113)' }, 'bad'],
    ['tcp', { error: 'administratively prohibited' }, 'pushed_back'],
    ['tcp', { timed_out: true }, 'bad'],
    ['tcp', { timeout: 2_000 }, undefined],
    ['tcp', { code: 'ENETDOWN' }, 'local'],
    ['tcp', { code: 'EMFILE' }, 'local'],
    ['tcp', { code: 'EADDRNOTAVAIL' }, 'local'],
    ['tcp', { error: 'Permission denied (os error 13)' }, 'local'],
    ['tcp', { error: 'Too many open files (os error 24)' }, 'local'],
    ['tcp', { error: 'getaddrinfo EAI_AGAIN example.com' }, 'local'],
    ['tcp', { failure: 'policy' }, 'local'],
    ['tcp', { failure: 'throttled' }, 'pushed_back'],
    ['tcp', { error: 'refused by policy of the far end' }, undefined],

    ['ping', { packet_loss: 100, unit: '%' }, 'bad'],
    ['ping', { loss_percent: 100 }, 'bad'],
    ['ping', { packet_loss: '100% packet loss' }, 'bad'],
    ['ping', { packet_loss: '100.0 %' }, 'bad'],
    ['ping', { packet_loss: '75%' }, 'answered'],
    ['ping', { loss: 0 }, 'answered'],
    ['ping', { loss_pct: 1 }, 'answered'],
    ['ping', { loss_ratio: 1 }, 'bad'],
    ['ping', { loss_ratio: 0.5 }, 'answered'],
    // Of all, or of a hundred?
    ['ping', { loss: 1 }, undefined],
    ['ping', { loss: 1, received: 0 }, 'bad'],
    ['ping', { loss: 1e308 }, undefined],
    ['ping', { loss: -1 }, undefined],
    ['ping', { loss: 'all' }, undefined],
    ['ping', { sent: 4, received: 4 }, 'answered'],
    ['ping', { packets_received: '1', error: 'Destination Host Unreachable' }, 'answered'],
    ['ping', { sent: 4, received: 0 }, 'bad'],
    ['ping', { received: 0, error: 'ping: socket: Operation not permitted' }, 'local'],
    ['ping', { loss_percent: 100, error: 'Destination administratively prohibited' }, 'pushed_back'],
    ['ping', { loss_percent: 100, error: 'Packet filtered' }, 'pushed_back'],
    ['ping', { received: 2, error: 'communication prohibited' }, 'pushed_back'],
    ['ping', { error: 'Destination Host Unreachable' }, 'bad'],
    ['ping', { error: 'spawn ping ENOENT' }, 'local'],
    ['ping', { error: 'ping: unknown host example.invalid' }, 'local'],
    ['ping', { alive: true }, 'answered'],
    ['ping', { alive: false }, 'bad'],
    ['ping', { reachable: 'false' }, 'bad'],
    ['ping', { rtt_ms: 4 }, undefined],

    ['trace', { reached: true, hops: [null] }, 'answered'],
    ['trace', { destination_reached: 'true' }, 'answered'],
    [
      'trace',
      {
        reached: false,
        hops: [
          { ttl: 1, address: '192.0.2.1' },
          { ttl: 2, address: null },
        ],
      },
      'answered',
    ],
    ['trace', { reached: false, hops: [{ ttl: 1, address: null }, '*', ' 2  * * *', null, ''] }, 'bad'],
    ['trace', { hops: ['1  192.0.2.1  0.5 ms'], error: 'timeout' }, 'answered'],
    ['trace', { hops: ['2001:db8::1'] }, 'answered'],
    ['trace', { hops: [{ ip: '*' }, { host: 'router.example' }] }, 'answered'],
    // Hops of a form that is not known show nothing.
    ['trace', { hops: [{ probes: [{ ip: '192.0.2.1' }] }] }, undefined],
    ['trace', { hops: [1, 2, 3] }, undefined],
    ['trace', { hops: [] }, undefined],
    ['trace', { hops: 12 }, undefined],
    ['trace', { hop_1: '*', hop_2: '192.0.2.9' }, 'answered'],
    ['trace', { hop_1: '*', hop_2: null }, 'bad'],
    ['trace', { hops: [null], error: 'EPERM' }, 'local'],
    ['trace', { reached: true, error: 'administratively prohibited' }, 'pushed_back'],
    ['trace', { error: 'EHOSTUNREACH' }, 'bad'],
  ])('%s %j: %s', (kind, values, signal) => {
    expect(signalOf(kind, values)).toBe(signal);
  });

  it.each<[Kind[], Signal, string[]]>([
    [
      NAMES,
      'local',
      [
        ...[
          'ENETDOWN',
          'EACCES',
          'EPERM',
          'EMFILE',
          'ENFILE',
          'ENOENT',
          'ENOMEM',
          'ENOBUFS',
          'EADDRNOTAVAIL',
        ],
        ...['EAFNOSUPPORT', 'EBADQUERY', 'EBADNAME', 'EBADFAMILY', 'EBADFLAGS', 'ECANCELLED', 'EDESTRUCTION'],
        ...['Permission denied', 'PermissionDenied', 'Operation not permitted', 'too many open files'],
        ...[
          'network down',
          'Network is down',
          'NetworkDown',
          'ping: command not found',
          'No such file or directory',
        ],
        ...['no resolver', 'no DNS resolvers found', 'no nameservers', 'no name server', 'local', 'policy'],
      ],
    ],
    [
      ['http', 'tcp', 'ping', 'trace'],
      'local',
      [
        ...['ENOTFOUND', 'ENODATA', 'ESERVFAIL', 'EAI_AGAIN', 'EAI_NONAME', 'getaddrinfo failed', 'NXDOMAIN'],
        ...['SERVFAIL', 'no such host', 'unknown host', 'dns error', 'Temporary failure in name resolution'],
        ...[
          'Name or service not known',
          'failed to lookup address',
          'could not resolve host',
          "couldn't resolve",
        ],
      ],
    ],
    [
      NAMES,
      'pushed_back',
      [
        ...['administratively prohibited', 'Destination Host Prohibited', 'Packet filtered', 'throttled'],
        ...['throttling', 'rate limit', 'rate-limited', 'RATE_LIMIT', 'too many requests', 'TooManyRequests'],
      ],
    ],
    [['dns'], 'pushed_back', ['REFUSED', 'EREFUSED', 'query refused']],
    [
      ['http'],
      'pushed_back',
      ['503 Service Unavailable', 'Service Unavailable', 'HTTP/1.1 503', 'http 429', 'code: 503'],
    ],
    [
      ['dns'],
      'answered',
      [
        ...['ENOTFOUND', 'ENODATA', 'ESERVFAIL', 'EFORMERR', 'ENOTIMP', 'EBADRESP', 'NXDOMAIN', 'SERVFAIL'],
        ...['FORMERR', 'NOTIMP', 'NOERROR', 'NODATA', 'NOTAUTH', 'NOTZONE', 'no such host', 'no such name'],
        ...['no such domain', 'no record found', 'no records found', 'no answer found', 'no answers found'],
      ],
    ],
    [
      NAMES,
      'answered',
      [
        ...['ECONNREFUSED', 'ECONNRESET', 'EPIPE', 'EPROTO', 'connection refused', 'connection_refused'],
        ...['ConnectionRefused', 'connection reset', 'ConnectionReset', 'reset by peer', 'port unreachable'],
        ...['port-unreachable', 'other side closed', 'ok', 'success', 'succeeded'],
      ],
    ],
    [
      ['http'],
      'answered',
      [
        'certificate has expired',
        'self-signed chain',
        'CERT_HAS_EXPIRED',
        'ERR_TLS_HANDSHAKE',
        'ERR_SSL_X',
        'HPE_X',
      ],
    ],
    [['tcp'], 'answered', ['connected', 'established', 'open', 'closed', 'refused', 'reset']],
    [['tcp'], 'bad', ['filtered']],
    [
      NAMES,
      'bad',
      [
        ...[
          'ETIMEDOUT',
          'ETIMEOUT',
          'ESOCKETTIMEDOUT',
          'EHOSTUNREACH',
          'ENETUNREACH',
          'EHOSTDOWN',
          'timeout',
        ],
        ...['timed out', 'timed-out', 'time out', 'TimedOut', 'HostUnreachable', 'Network is unreachable'],
        ...['no route to host', 'deadline has elapsed', 'deadline exceeded', 'context deadline exceeded'],
        ...[
          'no answer',
          'no reply',
          'no response',
          'no servers could be reached',
          'no server could be reached',
        ],
      ],
    ],
  ])('%j: %s by the texts %j', (kinds, signal, texts) => {
    for (const kind of kinds)
      for (const text of texts)
        expect([kind, text, signalOf(kind, { error: text })]).toEqual([kind, text, signal]);
  });

  it.each<[Kind[], unknown, Signal, string[]]>([
    [
      NAMES,
      'timeout',
      'bad',
      [
        ...['error', 'error_code', 'code', 'err', 'errno', 'error_message', 'failure', 'reason', 'message'],
        ...['status', 'result', 'state'],
      ],
    ],
    [NAMES, true, 'bad', ['timed_out', 'timeout']],
    [['dns'], 5, 'pushed_back', ['rcode', 'dns_rcode', 'response_code']],
    [['dns'], ['192.0.2.1'], 'answered', ['records', 'answers', 'addresses']],
    [
      ['http'],
      503,
      'pushed_back',
      [...['status', 'status_code', 'http_status', 'http_status_code', 'http_code', 'response_code', 'code']],
    ],
    [['tcp'], true, 'answered', ['connected', 'open']],
    [['ping'], 1, 'answered', ['received', 'packets_received', 'replies']],
    [['ping'], 1, 'bad', ['loss_ratio', 'packet_loss_ratio']],
    [['ping'], 1, 'answered', ['loss_percent', 'loss_pct', 'packet_loss_percent', 'packet_loss_pct']],
    [
      ['ping'],
      100,
      'bad',
      ['loss', 'packet_loss', 'loss_percent', 'loss_pct', 'packet_loss_percent', 'packet_loss_pct'],
    ],
    [['ping'], true, 'answered', ['alive', 'reachable']],
    [['ping'], false, 'bad', ['alive', 'reachable']],
    [['trace'], true, 'answered', ['reached', 'destination_reached']],
    [['trace'], ['192.0.2.1'], 'answered', ['hops', 'path', 'route']],
    [['trace'], '192.0.2.1', 'answered', ['hop', 'hop_1', 'hop.02', 'Hop 255']],
    [
      ['trace'],
      ['address', 'addr', 'ip', 'host', 'hostname', 'name'].map((name) => ({ ttl: 1, [name]: null })),
      'bad',
      ['hops'],
    ],
  ])('%j: %j is %3$s under each of its names', (kinds, value, signal, names) => {
    for (const kind of kinds)
      for (const name of names)
        expect([kind, name, signalOf(kind, { [name]: value })]).toEqual([kind, name, signal]);
  });

  it('is in texts of up to 64 characters for a code, of 32 for a number', () => {
    expect(signalOf('dns', { rcode: 'x'.repeat(64) })).toBe('answered');
    expect(signalOf('dns', { rcode: 4_095 })).toBe('answered');
    expect(signalOf('dns', { rcode: 4_096 })).toBeUndefined();
    const status = `503 ${'x'.repeat(60)}`;
    expect([signalOf('http', { status }), signalOf('http', { status: `${status}x` })]).toEqual([
      'pushed_back',
      undefined,
    ]);
    const loss = `100%${' '.repeat(60)}`;
    expect([signalOf('ping', { loss }), signalOf('ping', { loss: `${loss} ` })]).toEqual(['bad', undefined]);
  });

  it('counts a loss of 1 % that has its unit', () => {
    expect(read('ping', [{ name: 'loss', value: 1, unit: '%' }])?.signal).toBe('answered');
    expect(read('ping', [{ name: 'loss', value: 100, unit: '%' }])?.signal).toBe('bad');
  });

  it('counts every hop of one name', () => {
    const hops = ['*', '192.0.2.1', '*'].map((value) => ({ name: 'hop', value }));
    expect(read('trace', hops)?.signal).toBe('answered');
  });

  it.each(NAMES)('is nothing for %s without observations', (kind) => {
    expect(read(kind, [])).toBeUndefined();
  });

  it('is the first of several with one name', () => {
    const twice = ['ETIMEOUT', 'EREFUSED'].map((value) => ({ name: 'error', value }));
    expect(read('dns', twice)?.signal).toBe('bad');
  });

  it('is the best name, not the first: an error says more than a message', () => {
    expect(signalOf('tcp', { message: 'timeout', error: 'ECONNRESET' })).toBe('answered');
    expect(signalOf('tcp', { message: 'timeout', error: 'no idea' })).toBe('bad');
  });

  it('is in the first 64, in four texts, and in names of at most 32 characters', () => {
    const filler = Array.from({ length: 63 }, (_, i) => ({ name: `o${i}`, value: 'timeout' }));
    const error = { name: 'error', value: 'ETIMEOUT' };
    expect(read('dns', [...filler, error])?.signal).toBe('bad');
    expect(read('dns', [...filler, filler[0] as Observation, error])?.signal).toBeUndefined();
    const texts = { error: 'a', error_code: 'b', code: 'c', err: 'd' };
    expect(signalOf('tcp', { ...texts, message: 'timeout' })).toBeUndefined();
    expect(signalOf('tcp', { error: 'a', code: 'c', err: 'd', message: 'timeout' })).toBe('bad');
    expect(signalOf('tcp', { [`error${'_'.repeat(27)}`]: 'timeout' })).toBe('bad');
    expect(signalOf('tcp', { [`error${'_'.repeat(28)}`]: 'timeout' })).toBeUndefined();
    expect(signalOf('trace', { hops: [...Array(64).fill('?'), '192.0.2.1'] })).toBe('answered');
    expect(signalOf('trace', { hops: [...Array(64).fill('*'), '192.0.2.1'] })).toBe('bad');
  });

  it('is in the start and the end of a long text, of which the middle is not read', () => {
    const around = (text: string) => `${'a '.repeat(1_000)}${text}${' b'.repeat(1_000)}`;
    expect(signalOf('tcp', { error: `timeout ${around('')}` })).toBe('bad');
    expect(signalOf('tcp', { error: `${around('')} timeout` })).toBe('bad');
    expect(signalOf('tcp', { error: around('timeout') })).toBeUndefined();
  });
});

describe('the duration in observations', () => {
  it.each<[Observation[], number | null]>([
    [[{ name: 'rtt_ms', value: 12.5, unit: 'ms' }], 12.5],
    [[{ name: 'rtt_ms', value: 0 }], 0],
    [[{ name: 'rttMs', value: '12.5' }], 12.5],
    [[{ name: 'rtt', value: 12.5, unit: 'ms' }], 12.5],
    [[{ name: 'rtt', value: 12.5 }], 12.5],
    [[{ name: 'rtt', value: 0.5, unit: 's' }], 500],
    [[{ name: 'rtt', value: 0.5, unit: 'Seconds' }], 500],
    [[{ name: 'rtt', value: 500, unit: '\u00b5s' }], 0.5],
    [[{ name: 'rtt', value: 500, unit: 'us' }], 0.5],
    [[{ name: 'rtt', value: 2e6, unit: 'ns' }], 2],
    [[{ name: 'rtt_us', value: 500 }], 0.5],
    [[{ name: 'latency_s', value: 2 }], 2_000],
    [[{ name: 'latency', value: '12.5ms' }], 12.5],
    [[{ name: 'latency', value: '1.5 s', unit: 'ms' }], 1_500],
    [[{ name: 'duration_ms', value: 9 }], 9],
    [[{ name: 'time_ms', value: 9 }], 9],
    [[{ name: 'rtt_avg_ms', value: 9 }], 9],
    // The better name, and of that the first that can be read.
    [
      [
        { name: 'duration_ms', value: 9 },
        { name: 'rtt_ms', value: 4 },
      ],
      4,
    ],
    [
      [
        { name: 'rtt_ms', value: null },
        { name: 'duration_ms', value: 9 },
      ],
      9,
    ],
    [
      [
        { name: 'rtt_ms', value: 4 },
        { name: 'rtt', value: 9 },
      ],
      4,
    ],
    [[{ name: 'rtt_ms', value: 3_600_000 }], 3_600_000],
    [[{ name: 'rtt_ms', value: 3_600_001 }], null],
    [[{ name: 'rtt_ms', value: -1 }], null],
    [[{ name: 'rtt_ms', value: 1e308 }], null],
    [[{ name: 'rtt_ms', value: 'NaN' }], null],
    [[{ name: 'rtt_ms', value: '1e3' }], null],
    [[{ name: 'rtt_ms', value: '9'.repeat(40) }], null],
    [[{ name: 'rtt_ms', value: [5] }], null],
    [[{ name: 'rtt_ms', value: true }], null],
    [[{ name: 'rtt', value: 5, unit: 'hops' }], null],
    [[{ name: 'rtt', value: 5, unit: 'constructor' }], null],
    [[{ name: 'time', value: 1_764_000_000 }], null],
  ])('%j: %s', (observations, ms) => {
    for (const kind of NAMES) expect(read(kind, observations)?.rttMs ?? null).toBe(ms);
  });
});

it.each([
  ...['rtt', 'rtt_avg', 'avg_rtt', 'rtt_median', 'latency', 'avg', 'response_time', 'query_time'],
  ...['connect_time', 'duration', 'elapsed', 'time'],
])('the duration may be named %s, with or without its unit', (name) => {
  const ms = (more: string, value: unknown, unit?: string) =>
    read('tcp', [{ name: name + more, value, unit }])?.rttMs;
  expect([ms('', 5), ms('_ms', 5, 's'), ms('_us', 5_000), ms('_s', 0.005)]).toEqual([5, 5, 5, 5]);
  for (const unit of ['ms', 'msec', 'milliseconds']) expect(ms('', 5, unit)).toBe(5);
  for (const unit of ['s', 'sec', 'seconds']) expect(ms('', 5, unit)).toBe(5_000);
  for (const unit of ['us', '\u00b5s', '\u03bcs', 'usec', 'microseconds'])
    expect(ms('', 5_000, unit)).toBe(5);
  for (const unit of ['ns', 'nanoseconds']) expect(ms('', 5e6, unit)).toBe(5);
});

describe('the pause in observations', () => {
  it.each<[Observation, number | null]>([
    [{ name: 'retry_after', value: 30 }, 30_000],
    [{ name: 'Retry-After', value: '30' }, 30_000],
    [{ name: 'retryAfter', value: 1.5 }, 1_500],
    [{ name: 'retry_after', value: 250, unit: 'ms' }, 250],
    [{ name: 'retry_after_ms', value: 250 }, 250],
    [{ name: 'retry_after_seconds', value: 2 }, 2_000],
    [{ name: 'retry_after_s', value: 2 }, 2_000],
    [{ name: 'retry_after', value: 0 }, 0],
    [{ name: 'retry_after', value: 3_601 }, 3_600_000],
    [{ name: 'retry_after', value: 1e308 }, 3_600_000],
    [{ name: 'retry-after', value: IMF_DATE(90) }, 90_000],
    [{ name: 'retry-after', value: IMF_DATE(-90) }, 0],
    [{ name: 'retry-after', value: IMF_DATE(86_400) }, 3_600_000],
    [{ name: 'retry-after', value: 'Mon, 99 Foo 2026 10:00:00 GMT' }, null],
    [{ name: 'retry-after', value: '2026-01-05' }, null],
    [{ name: 'retry_after', value: -1 }, null],
    [{ name: 'retry_after', value: '-1' }, null],
    [{ name: 'retry_after', value: 'soon' }, null],
    [{ name: 'retry_after', value: {} }, null],
    [{ name: 'retry_after', value: 5, unit: 'fortnights' }, null],
  ])('%j: %s', (pause, ms) => {
    const found = read('http', [{ name: 'status', value: 429 }, pause]);
    expect([found?.signal, found?.retryAfterMs ?? null]).toEqual(['pushed_back', ms]);
  });
});

/** Observations as strangers write them: names that are read, with values of any form. */
const hostile = fc.array(
  fc.record({
    name: fc.oneof(
      fc.constantFrom(
        ...['error', 'code', 'status', 'rcode', 'records', 'connected', 'loss', 'packet_loss', 'received'],
        ...['hops', 'hop', 'reached', 'rtt_ms', 'rtt', 'latency', 'time_ms', 'retry_after', 'retry_after_ms'],
        ...['__proto__', 'constructor', 'toString', 'timed_out', 'alive', 'loss_ratio'],
      ),
      fc.string({ unit: 'binary', minLength: 1 }),
    ),
    value: fc.oneof(
      fc.jsonValue(),
      fc.constantFrom<unknown>(
        '429',
        '503',
        'timeout',
        'REFUSED',
        '1e999',
        'NaN',
        '-0',
        '100%',
        ' ',
        '9'.repeat(400),
      ),
      fc.constantFrom<unknown>(1e308, -1e308, -0, 5e-324, 2 ** 53, -1, 429, 100, true, false, null),
      fc.constantFrom<unknown>(
        JSON.parse('{"__proto__":{"code":"x"},"constructor":1,"toString":1,"valueOf":2}'),
      ),
      fc.constantFrom<unknown>([[[[]]]], [null], ['*'], [{ address: {} }], [{ ip: '*' }]),
    ),
    unit: fc.option(fc.oneof(fc.constantFrom('ms', 's', '%', 'constructor', '__proto__', ''), fc.string()), {
      nil: null,
    }),
  }),
  { maxLength: 80 },
);

describe('any observations', () => {
  it('give one of the signals, and times within their bounds', () => {
    const report: fc.Arbitrary<EndedCheck> = fc.record({
      report: fc.constantFrom('completed' as const, 'cancelled' as const),
      outcome: fc.constantFrom('success' as const, 'timeout' as const, 'error' as const, null),
      failure: fc.constantFrom('refused' as const, 'timeout' as const, 'local' as const, null),
      observations: hostile,
      received_at: fc.constant(NOW),
    });
    const isTime = (ms: unknown) =>
      ms === null || (Number.isFinite(ms) && Number(ms) >= 0 && Number(ms) <= 3_600_000);
    fc.assert(
      fc.property(fc.constantFrom(...NAMES), report, (kind, check) => {
        const evidence = KINDS[kind]({
          outcome: check.outcome ?? null,
          observations: check.observations ?? [],
          received_at: NOW,
        });
        const { signal, rttMs, retryAfterMs } = targetSignal(check, evidence);
        expect(SIGNALS).toContain(signal);
        expect([rttMs, retryAfterMs].every(isTime)).toBe(true);
      }),
      { numRuns: 5_000 },
    );
  });
});
