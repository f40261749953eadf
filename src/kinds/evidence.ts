import type { Observation } from './observations';
import { type Evidence, MAX_OBSERVED, MAX_SIGNAL_MS, type ObservedCheck, type Signal } from './signals';

/** Longer names are not looked at: none of those that are read is so long. */
const MAX_NAME = 32;
/** How much of a text is read, in UTF-16 units: half of it from its start, half from its end. */
const MAX_TEXT = 256;
/** Longer texts are not numbers, codes or dates. */
const MAX_WORD = 64;
/** How many texts of a report are read. */
const MAX_TEXTS = 4;

/** Names of observations in which agents say how a check went, the best first. Compared as {@link bareName} spells them. */
const TEXT_NAMES = [
  ...['error', 'errorcode', 'code', 'err', 'errno', 'errormessage', 'failure', 'reason', 'message'],
  ...['status', 'result', 'state'],
];

/** Names of durations, the best first: each also with `_ms`, `_us` or `_s`. */
const DURATION_NAMES = [
  ...['rtt', 'rttavg', 'avgrtt', 'rttmedian', 'latency', 'avg', 'responsetime', 'querytime'],
  ...['connecttime', 'duration', 'elapsed', 'time'],
];

const MS_OF_UNIT = new Map<string, number>([
  ...['ms', 'msec', 'milliseconds'].map((unit) => [unit, 1] as const),
  ...['s', 'sec', 'seconds'].map((unit) => [unit, 1_000] as const),
  ...['us', '\u00b5s', '\u03bcs', 'usec', 'microseconds'].map((unit) => [unit, 1e-3] as const),
  ...['ns', 'nanoseconds'].map((unit) => [unit, 1e-6] as const),
]);

interface Duration {
  readonly rank: number;
  /** Undefined if the name does not say it. */
  readonly unit: string | undefined;
}

const DURATIONS = new Map<string, Duration>(
  DURATION_NAMES.flatMap((name, rank) =>
    [undefined, 'ms', 'us', 's'].map((unit) => [name + (unit ?? ''), { rank, unit }] as const),
  ),
);

type Rules = readonly (readonly [RegExp, Signal])[];

/** The agent's own trouble. */
const OWN_TROUBLE: Rules = [
  [
    /\b(?:e(?:netdown|acces|perm|mfile|nfile|noent|nomem|nobufs|addrnotavail|afnosupport|badquery|badname|badfamily|badflags|cancelled|destruction)|permission ?denied|operation not permitted|too many open files|network ?(?:is )?down|command not found|no such file|no (?:dns )?(?:resolver|name ?server)s?)\b|^(?:local|policy)$/,
    'local',
  ],
];

/** The host of the target could not be looked up, so that the target received nothing. */
const UNRESOLVED: Rules = [
  [
    /\b(?:enotfound|enodata|eservfail|eai_[a-z]+|getaddrinfo|nxdomain|servfail|no such host|unknown host|dns error|name resolution|name or service not known|failed to lookup|could ?n[o']t resolve)\b/,
    'local',
  ],
];

const PUSHED_BACK: Rules = [
  [
    /\bprohibited\b|\bpacket filtered\b|\bthrottl|\brate[ _-]?limit|\btoo[ _-]?many[ _-]?requests\b/,
    'pushed_back',
  ],
];

/** A reset or a closed port is an answer: somebody is there, and says so at once. */
const ANSWERED: Rules = [
  [
    /\be(?:connrefused|connreset|pipe|proto)\b|\bconnection[ _-]?(?:refused|reset)|\breset by peer\b|\bport[ _-]?unreachable\b|\bother side closed\b/,
    'answered',
  ],
];

const UNANSWERED: Rules = [
  [
    /\be(?:hostunreach|netunreach|hostdown)\b|timed?[ _-]?out|unreachable|\bno[ _-]?route\b|\bdeadline (?:has )?(?:elapsed|exceeded)\b|\bno (?:answer|reply|response)\b|\bno servers? could be reached\b/,
    'bad',
  ],
];

const DONE: Rules = [[/^(?:ok|success|succeeded)$/, 'answered']];

const COMMON: Rules = [...PUSHED_BACK, ...ANSWERED, ...UNANSWERED, ...DONE];

const DNS_RULES: Rules = [
  ...OWN_TROUBLE,
  [/\berefused\b|(?<!connection[ _-])\brefused\b/, 'pushed_back'],
  [
    /\b(?:enotfound|enodata|eservfail|eformerr|enotimp|ebadresp|nxdomain|servfail|formerr|notimp|noerror|nodata|notauth|notzone|no such (?:host|name|domain)|no (?:records?|answers?) found)\b/,
    'answered',
  ],
  ...COMMON,
];

const HTTP_RULES: Rules = [
  ...OWN_TROUBLE,
  [/\bservice unavailable\b|\b(?:http|status|code)(?:\/[\d.]+)?[ :=]{0,2}(?:429|503)\b/, 'pushed_back'],
  ...UNRESOLVED,
  ...COMMON,
  [/\bcertificate\b|\bself[ -]signed\b|\b(?:cert|err_tls|err_ssl|hpe)_/, 'answered'],
];

const TCP_RULES: Rules = [
  ...OWN_TROUBLE,
  ...UNRESOLVED,
  [/^(?:connected|established|open|closed|refused|reset)$/, 'answered'],
  [/^filtered$/, 'bad'],
  ...COMMON,
];

const PING_RULES: Rules = [...OWN_TROUBLE, ...UNRESOLVED, ...COMMON];

/** Names are compared without case and separators, so that `Retry-After`, `retry_after` and `retryAfter` are one. */
const bareName = (name: string): string => name.toLowerCase().replace(/[^a-z0-9]/g, '');

/** The observations of a check by their names. Of several with one name, the first counts. */
class Observed {
  /** All of them, with their bare names. */
  readonly all: (readonly [string, Observation])[] = [];
  private readonly byName = new Map<string, Observation>();

  constructor(observations: readonly Observation[]) {
    const end = Math.min(observations.length, MAX_OBSERVED);
    for (let i = 0; i < end; i++) {
      const one = observations[i] as Observation;
      if (one.name.length > MAX_NAME) continue;
      const name = bareName(one.name);
      this.all.push([name, one]);
      if (!this.byName.has(name)) this.byName.set(name, one);
    }
  }

  /** Returns what `read` finds under the first of the names under which it finds something. */
  first<T>(names: readonly string[], read: (one: Observation) => T | undefined): T | undefined {
    for (const name of names) {
      const one = this.byName.get(name);
      const found = one && read(one);
      if (found !== undefined) return found;
    }
    return undefined;
  }

  /** Whether one of the names has this boolean, also as a text. */
  is(value: boolean, ...names: string[]): boolean {
    return (
      this.first(names, (one) => one.value === value || one.value === String(value) || undefined) ?? false
    );
  }

  /** The first number under one of the names that is not negative. */
  number(...names: string[]): number | undefined {
    return this.first(names, ({ value }) => numberOf(value));
  }

  /** Applies the rules to the texts that say how the check went, the best first. */
  said(rules: Rules): Signal | undefined {
    let left = MAX_TEXTS;
    return this.first(TEXT_NAMES, ({ value }) =>
      typeof value === 'string' && left-- > 0 ? applied(rules, value) : undefined,
    );
  }
}

/** Reads a number that is not negative, also as a text. */
function numberOf(value: unknown): number | undefined {
  if (typeof value === 'string')
    return value.length <= MAX_NAME && /^\d{1,15}(?:\.\d{1,15})?$/.test(value) ? Number(value) : undefined;
  return typeof value === 'number' && value >= 0 ? value : undefined;
}

/** Applies the first rule that matches to a text. */
function applied(rules: Rules, text: string): Signal | undefined {
  const part = text.length <= MAX_TEXT ? text : `${text.slice(0, MAX_TEXT / 2)} ${text.slice(-MAX_TEXT / 2)}`;
  // Words of a URL say nothing of the check.
  const words = part.toLowerCase().replace(/https?:\/\/\S*/g, ' ');
  return rules.find(([pattern]) => pattern.test(words))?.[1];
}

const DURATION = /^(\d{1,15}(?:\.\d{1,15})?) ?([a-z\u00b5\u03bc]{1,12})?$/;

/** Reads a duration, such as 12.5 or '12.5ms'. @returns ms; undefined if it is none, or longer than an hour */
function durationOf({ value, unit }: Observation, unitOfName: string | undefined): number | undefined {
  let number = value;
  let written: string | undefined;
  if (typeof value === 'string') {
    if (value.length > MAX_NAME) return undefined;
    const match = DURATION.exec(value);
    if (!match) return undefined;
    number = Number(match[1]);
    written = match[2];
  }
  const factor = MS_OF_UNIT.get(written ?? unitOfName ?? (unit ? unit.toLowerCase() : 'ms'));
  if (typeof number !== 'number' || factor === undefined) return undefined;
  const ms = number * factor;
  return ms >= 0 && ms <= MAX_SIGNAL_MS ? ms : undefined;
}

function rttOf(observed: Observed): number | undefined {
  let [best, least] = [undefined as number | undefined, Number.POSITIVE_INFINITY];
  for (const [name, one] of observed.all) {
    const duration = DURATIONS.get(name);
    if (!duration || duration.rank >= least) continue;
    const ms = durationOf(one, duration.unit);
    if (ms !== undefined) [best, least] = [ms, duration.rank];
  }
  return best;
}

const HTTP_DATE = /^[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT$/;

/** Reads a Retry-After (RFC 9110, 10.2.3): seconds, or a date. @returns ms, at most an hour */
function retryAfterOf(observed: Observed, now: number): number | undefined {
  const inUnit = (msPerUnit: number) => (one: Observation) => {
    const { value, unit } = one;
    if (typeof value === 'string' && value.length <= MAX_WORD && HTTP_DATE.test(value)) {
      const at = Date.parse(value);
      return Number.isNaN(at) ? undefined : Math.min(Math.max(0, at - now), MAX_SIGNAL_MS);
    }
    const number = numberOf(value);
    const factor = unit ? MS_OF_UNIT.get(unit.toLowerCase()) : msPerUnit;
    if (number === undefined || factor === undefined) return undefined;
    return Math.min(number * factor, MAX_SIGNAL_MS);
  };
  return (
    observed.first(['retryafter', 'retryafters', 'retryafterseconds'], inUnit(1_000)) ??
    observed.first(['retryafterms'], inUnit(1))
  );
}

const isFilledList = (value: unknown): true | undefined =>
  (Array.isArray(value) && value.length > 0) || undefined;

/** Creates a kind's reading: the signal by its observations, with the times that any kind can have. */
const reading =
  (signalOf: (observed: Observed) => Signal | undefined) =>
  ({ observations, received_at }: ObservedCheck): Evidence | undefined => {
    if (observations.length === 0) return undefined;
    const observed = new Observed(observations);
    return {
      signal: signalOf(observed) ?? (observed.is(true, 'timedout', 'timeout') ? 'bad' : undefined),
      rttMs: rttOf(observed),
      retryAfterMs: retryAfterOf(observed, received_at),
    };
  };

/** The response code REFUSED of DNS (RFC 1035, 4.1.1), and the highest code with EDNS (RFC 6891, 6.1.3). */
const RCODE_REFUSED = 5;
const MAX_RCODE = 4_095;

/** Reads a DNS lookup: REFUSED pushes back; every other response code is an answer, NXDOMAIN and SERVFAIL included. */
export const dnsEvidence = reading(
  (observed) =>
    observed.first(['rcode', 'dnsrcode', 'responsecode'], ({ value }) => {
      const code = numberOf(value);
      if (code === RCODE_REFUSED) return 'pushed_back';
      if (code !== undefined) return code <= MAX_RCODE ? 'answered' : undefined;
      if (typeof value !== 'string' || value === '' || value.length > MAX_WORD) return undefined;
      return applied(DNS_RULES, value) ?? 'answered';
    }) ??
    observed.said(DNS_RULES) ??
    observed.first(['records', 'answers', 'addresses'], ({ value }) => isFilledList(value) && 'answered'),
);

const STATUS = /^(?:HTTP\/[\d.]{1,3} )?([1-9]\d\d)(?: .*)?$/i;

/** Reads an HTTP request: the status 429 or 503 pushes back; every other status is an answer. */
export const httpEvidence = reading(
  (observed) =>
    observed.first(
      ['status', 'statuscode', 'httpstatus', 'httpstatuscode', 'httpcode', 'responsecode', 'code'],
      ({ value }) => {
        const isShort = typeof value === 'number' || (typeof value === 'string' && value.length <= MAX_WORD);
        const status = isShort ? STATUS.exec(String(value))?.[1] : undefined;
        if (status === undefined) return undefined;
        return status === '429' || status === '503' ? 'pushed_back' : 'answered';
      },
    ) ?? observed.said(HTTP_RULES),
);

/** Reads a TCP connection: a refused one and a reset are answers. */
export const tcpEvidence = reading((observed) =>
  observed.is(true, 'connected', 'open') ? 'answered' : observed.said(TCP_RULES),
);

/** Reads echo requests: any reply is an answer. */
export const pingEvidence = reading((observed) => {
  const said = observed.said(PING_RULES);
  if (said === 'pushed_back') return said;
  const isAnswered = observed.is(true, 'alive', 'reachable') || repliesOf(observed);
  if (isAnswered === true) return 'answered';
  if (said !== undefined) return said;
  return isAnswered === false || observed.is(false, 'alive', 'reachable') ? 'bad' : undefined;
});

const LOSS = /^(\d{1,3}(?:\.\d{1,9})?) ?%/;

/** Whether replies came. @returns undefined if it is not said */
function repliesOf(observed: Observed): boolean | undefined {
  const received = observed.number('received', 'packetsreceived', 'replies');
  if (received !== undefined) return received > 0;
  const ratio = observed.number('lossratio', 'packetlossratio');
  if (ratio !== undefined) return ratio < 1;
  const names = ['loss', 'packetloss', 'losspercent', 'losspct', 'packetlosspercent', 'packetlosspct'];
  for (const [i, name] of names.entries()) {
    const percent = observed.first([name], ({ value, unit }) => {
      const written =
        typeof value === 'string' && value.length <= MAX_WORD ? LOSS.exec(value)?.[1] : undefined;
      if (written !== undefined) return Number(written);
      const number = numberOf(value);
      // Without a unit, 1 is all as a ratio and little as a percentage.
      return number === 1 && i < 2 && !unit ? undefined : number;
    });
    if (percent !== undefined && percent <= 100) return percent < 100;
  }
  return undefined;
}

/** Reads a trace: the destination or a hop that answered is an answer; it is bad only if nothing on the way answered. */
export const traceEvidence = reading((observed) => {
  const said = observed.said(PING_RULES);
  if (said === 'pushed_back') return said;
  if (observed.is(true, 'reached', 'destinationreached')) return 'answered';
  const hops = hopsOf(observed).map(isAnswered);
  if (hops.includes(true)) return 'answered';
  return said ?? (hops.length > 0 && hops.every((one) => one === false) ? 'bad' : undefined);
});

/** The hops of a trace: one list, or observations named `hop`, `hop_1`, ... */
function hopsOf(observed: Observed): unknown[] {
  const list = observed.first(['hops', 'path', 'route'], ({ value }) =>
    Array.isArray(value) ? value.slice(0, MAX_OBSERVED) : undefined,
  );
  return list ?? observed.all.flatMap(([name, { value }]) => (/^hop\d{0,3}$/.test(name) ? [value] : []));
}

const ADDRESS_NAMES = ['address', 'addr', 'ip', 'host', 'hostname', 'name'];

/**
 * Whether a hop of a trace answered: a text of more than its number, spaces and asterisks, or an object with one as its address.
 * @returns undefined if it has neither form
 */
function isAnswered(hop: unknown): boolean | undefined {
  if (hop === null) return false;
  if (typeof hop === 'string') return /[^\d\s*]/.test(hop.slice(0, MAX_WORD));
  if (typeof hop !== 'object' || Array.isArray(hop)) return undefined;
  const name = ADDRESS_NAMES.find((one) => Object.hasOwn(hop, one));
  const address = name === undefined ? undefined : (hop as Record<string, unknown>)[name];
  return address === null || typeof address === 'string' ? isAnswered(address) : undefined;
}
